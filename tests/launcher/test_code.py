"""A program's folder: what is meant of it, its digest, and how it comes into a shared dir, in a local shell."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from clusterft import places
from clusterft.errors import ClusterftError, UsageError
from clusterft.remote import Unreachable
from clusterft.remote.files import CannotWrite
from clusterft.remote.local import LocalRemote
from clusterft.ship import code, depot, ignore
from clusterft.ship.depot import CodeChanged


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A program as people have them."""
    root = tmp_path / "my code"
    for path, text in {
        "train.py": "print('hello')\n",
        "model/net.py": "LAYERS = 2\n",
        "model/again.py": "LAYERS = 2\n",
        "config/ds.json": "{}\n",
        "run me.sh": "#!/bin/sh\n",
        "__pycache__/train.pyc": "x",
        ".git/HEAD": "ref\n",
        "node_modules/a/b.js": "x",
    }.items():
        put(root / path, text)
    (root / "run me.sh").chmod(0o755)
    (root / "latest.py").symlink_to("model/net.py")
    return root


def put(path: Path, text: str) -> Path:
    """A file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def paths(root: Path) -> list[str]:
    """What is meant."""
    return [item.path for item in code.read(root).items]


# -- patterns --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "out"),
    [
        ("*.pt", "a/b/c.pt", True),
        ("*.pt", "a/b.pt/c", True),
        ("a/*\n!a/keep", "a/keep", False),
        ("a\n!a/keep", "a/keep", True),
        ("/data", "data", True),
        ("/data", "a/data", False),
        ("data/", "a/data/", True),
        ("data/", "a/data", False),
        ("a/*.txt", "a/b.txt", True),
        ("a/*.txt", "a/b/c.txt", False),
        ("a/**/z", "a/z", True),
        ("a/**/z", "a/b/c/z", True),
        ("**/logs", "logs", True),
        ("logs/**", "logs/a/b", True),
        ("logs/**", "logs/", False),
        ("out?", "out1", True),
        ("out?", "out/", False),
        ("[!a-c].py", "d.py", True),
        ("[!a-c].py", "b.py", False),
        ("[]x].py", "].py", True),
        ("[.py", "[.py", False),
        ("[z-a].py", "m.py", False),
        (r"\#1", "#1", True),
        (r"\!1", "!1", True),
        ("# note", "# note", False),
        ("a  ", "a", True),
        ("a\\ ", "a ", True),
        ("a.c", "abc", False),
        ("*.log\n!keep.log", "keep.log", False),
        ("!keep.log\n*.log", "keep.log", True),
        ("a\r", "a", True),
    ],
)
def test_patterns_mean_what_they_mean_to_git(tmp_path: Path, text: str, path: str, out: bool) -> None:
    known, bare = ignore.rules(text), path.rstrip("/")
    above = [str(part) for part in PurePosixPath(bare).parents][:-1]
    ours = any(ignore.decides(known, part, True) for part in above)
    assert (ours or ignore.decides(known, bare, path.endswith("/")) is not None) == out
    assert git_ignores(tmp_path, text, path) == out, "git itself says otherwise"


def git_ignores(root: Path, text: str, path: str) -> bool:
    """What git makes of a pattern; only what tests may ask."""
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    (root / ".gitignore").write_text(text, newline="")
    if path.endswith("/"):
        (root / path).mkdir(parents=True)
    else:
        put(root / path, "")
    return subprocess.run(["git", "check-ignore", "-q", path.rstrip("/")], cwd=root).returncode == 0


# -- reading ---------------------------------------------------------------------------------


def test_what_no_run_needs_stays_out(folder: Path) -> None:
    put(folder / "env 3.11/pyvenv.cfg", "home = /usr")
    put(folder / "env 3.11/lib/torch.py", "x")
    tree = code.read(folder)
    assert [item.path for item in tree.items] == [
        "config/ds.json",
        "latest.py",
        "model/again.py",
        "model/net.py",
        "run me.sh",
        "train.py",
    ]
    assert [(one.path, one.why) for one in tree.skipped] == [("env 3.11", "its pyvenv.cfg: a virtual environment")]
    run = next(item for item in tree.items if item.path == "run me.sh")
    assert run.executable and run.size == 10


def test_gitignore_counts_in_a_checkout_alone_and_from_its_root_down(folder: Path) -> None:
    outer = folder.parent
    put(outer / ".gitignore", "/my code/config\n*.secret\n")
    put(folder / "model/.gitignore", "again.py\n!kept.secret\n")
    put(folder / "model/kept.secret", "s")
    put(folder / "lost.secret", "s")
    assert "config/ds.json" in paths(folder), "the folder is a checkout; what lies above it says nothing"
    shutil.rmtree(folder / ".git")
    assert "model/again.py" in paths(folder), "no checkout"
    put(outer / ".git/HEAD", "ref\n")
    assert paths(folder) == [
        "latest.py",
        "model/.gitignore",
        "model/kept.secret",
        "model/net.py",
        "run me.sh",
        "train.py",
    ]


def test_our_own_file_has_the_last_word(folder: Path) -> None:
    put(folder / ".gitignore", "config/\n")
    put(folder / ".clusterftignore", "!config/\n/model/again.py\n!node_modules/\n")
    assert {"config/ds.json", "node_modules/a/b.js"} <= set(paths(folder))
    assert "model/again.py" not in paths(folder)


def test_a_script_that_is_left_out_is_named_with_the_pattern(folder: Path) -> None:
    put(folder / ".clusterftignore", "# none of it\nmodel/\n")
    tree = code.read(folder)
    tree.require(PurePosixPath("train.py"))
    with pytest.raises(UsageError) as caught:
        tree.require(PurePosixPath("model/net.py"))
    assert "model is left out by model/ in" in caught.value.what and ".clusterftignore:2" in caught.value.what
    assert "!model" in caught.value.remedy


def test_equal_folders_have_one_digest_and_any_change_another(folder: Path, tmp_path: Path) -> None:
    first = code.read(folder)
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy, symlinks=True, copy_function=shutil.copy)
    os.utime(copy / "train.py", (1, 1))
    assert code.read(copy).digest == first.digest
    seen = {first.digest}
    for change in (
        lambda: (copy / "train.py").write_text("print('hullo')\n"),
        lambda: (copy / "train.py").chmod(0o755),
        lambda: (copy / "train.py").rename(copy / "main.py"),
        lambda: [(copy / "latest.py").unlink(), (copy / "latest.py").symlink_to("main.py")],
    ):
        change()
        seen.add(code.read(copy).digest)
    assert len(seen) == 5


def test_everything_that_cannot_be_shipped_is_told_at_once(folder: Path) -> None:
    (folder / "data").symlink_to("/mnt/data")
    (folder / "up").symlink_to("../..")
    (folder / "hop").symlink_to("model/back/../..")
    (folder / "model" / "back").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    (folder / "new\nline.py").write_text("")
    (folder / "back\\slash.py").write_text("")
    (folder / os.fsdecode(b"latin-\xe9.py")).write_text("")
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(str(folder / "plug"))
        with pytest.raises(UsageError) as caught:
            code.read(folder)
    for words in ("the link data leads out of the folder, to /mnt/data", r"back\\slash.py", "hop leads out"):
        assert words in caught.value.what
    assert "and 3 more" in caught.value.what and ".clusterftignore" in caught.value.remedy
    put(folder / ".clusterftignore", "data\nup\nhop\nloop\nplug\nnew*\nback*\nlatin*\n")
    assert "train.py" in paths(folder)


def test_names_that_people_use_are_plain_text(folder: Path) -> None:
    for name in ("café.py", "a  b .py", "-rf", "x: FAILED", "$(touch oops)", "'\"`.py", "日本.py", "#x", "*"):
        put(folder / name, name)
    assert len(paths(folder)) == 15


def test_a_folder_that_is_more_than_code_names_what_is_large(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(code, "MOST_BYTES", 3 << 20)
    for name in ("data/a.bin", "data/b.bin", "weights.pt"):
        put(folder / name, "x" * (2 << 20))
    with pytest.raises(UsageError) as caught:
        code.read(folder)
    assert "6.0 MiB" in caught.value.what and "data/ 4.0 MiB, weights.pt 2.0 MiB" in caught.value.what
    monkeypatch.setattr(code, "MOST_FILES", 5)
    with pytest.raises(UsageError, match="more than 5 files"):
        code.read(folder)


def test_a_file_that_changes_while_it_is_read_is_refused(folder: Path, monkeypatch: Any) -> None:
    digest = code.hashlib.file_digest

    def slow(file: Any, name: str) -> Any:
        found = digest(file, name)
        if file.name.endswith("train.py"):
            with open(file.name, "a") as more:
                more.write("# and on\n")
        return found

    monkeypatch.setattr(code.hashlib, "file_digest", slow)
    with pytest.raises(UsageError, match="changed while it was read") as caught:
        code.read(folder)
    assert caught.value.where.endswith("train.py")


def test_nothing_to_ship_is_refused(tmp_path: Path) -> None:
    for root, words in ((tmp_path, "nothing in it"), (tmp_path / "none", "no such folder")):
        with pytest.raises(UsageError, match=words):
            code.read(root)


# -- sending ---------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[PurePosixPath]:
    """A shared dir with a space in its path."""
    place = tmp_path / "shared dir"
    place.mkdir()
    yield PurePosixPath(place)
    subprocess.run(["chmod", "-R", "u+w", str(place)], check=True)


def send(folder: Path, shared: PurePosixPath) -> depot.Sent:
    """Over this machine's own shell."""
    return code.send(LocalRemote(), code.read(folder), shared)


def there(sent: depot.Sent) -> dict[str, str]:
    """What lies there: text by path."""
    root = Path(sent.path)
    return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()}


def left_behind(shared: PurePosixPath) -> list[str]:
    """Folders of attempts."""
    return [path.name for path in Path(depot.top(shared)).iterdir() if path.name.startswith(".")]


def test_a_tree_arrives_whole_and_cannot_be_written(folder: Path, shared: PurePosixPath) -> None:
    for name in ("café.py", "a  b .py", "-rf", "x: FAILED", "$(touch oops)", "'\"`.py", "#x", "*", " lead"):
        put(folder / "odd" / name, name)
    sent = send(folder, shared)
    tree = code.read(folder)
    assert sent.path == places.code(shared, tree.digest)
    assert there(sent) == {i.path: (folder / i.path).read_text() for i in tree.items}
    assert os.readlink(Path(sent.path, "latest.py")) == "model/net.py"
    modes = {p.stat().st_mode & 0o777 for p in Path(sent.path).rglob("*") if p.is_file() and not p.is_symlink()}
    assert modes == {0o444, 0o555} and os.access(Path(sent.path, "run me.sh"), os.X_OK)
    assert {p.stat().st_mode & 0o777 for p in (Path(sent.path), Path(sent.path, "model"))} == {0o555}
    body = json.loads(Path(f"{sent.path}.json").read_text())
    assert body["schema"] == 1 and len(body["items"]) == len(tree.items)
    assert Path(sent.path, "model/net.py").samefile(Path(sent.path, "model/again.py")), "one content is one file"
    assert left_behind(shared) == []


def test_only_what_changed_travels(folder: Path, shared: PurePosixPath) -> None:
    first = send(folder, shared)
    assert (first.files, first.bytes) == (
        4,
        sum(len(t) for t in ("print('hello')\n", "LAYERS = 2\n", "{}\n")) + 10,
    )
    again = send(folder, shared)
    assert (again.path, again.files, again.bytes) == (first.path, 0, 0)
    put(folder / "train.py", "print('goodbye')\n")
    changed = send(folder, shared)
    assert (changed.files, changed.bytes) == (1, 17) and changed.path != first.path
    (folder / "train.py").chmod(0o755)
    assert send(folder, shared).files == 1, "who may execute it is another file"
    assert there(first)["train.py"] == "print('hello')\n", "an earlier run keeps its program"


def test_a_tree_that_was_changed_there_is_refused_by_name(folder: Path, shared: PurePosixPath) -> None:
    sent = send(folder, shared)
    for name, spoil in (("train.py", "print('evil')\n"), ("config/ds.json", None)):
        path = Path(sent.path, name)
        path.parent.chmod(0o755)
        path.unlink()
        if spoil is not None:
            path.write_text(spoil)
    with pytest.raises(CodeChanged) as caught:
        send(folder, shared)
    assert caught.value.what.endswith(": config/ds.json, train.py")
    subprocess.run(["sh", "-c", caught.value.remedy.partition("anew: ")[2].replace("shared dir", "'shared dir'")])
    assert send(folder, shared).files == 0, "the blobs are still good"


def test_a_blob_that_was_changed_there_is_sent_again(folder: Path, shared: PurePosixPath) -> None:
    send(folder, shared)
    train = next(item for item in code.read(folder).items if item.path == "train.py")
    blob = Path(depot.top(shared), "blobs", train.blob.name)
    blob.chmod(0o644)
    blob.write_text("print('evil')\n")
    put(folder / "new.py", "x\n")
    sent = send(folder, shared)
    assert there(sent)["train.py"] == "print('hello')\n" and sent.files == 2
    assert left_behind(shared) == []


def test_two_controllers_at_once_come_to_the_same(folder: Path, shared: PurePosixPath) -> None:
    results: list[depot.Sent | Exception] = []
    start = threading.Barrier(6)

    def one() -> None:
        start.wait()
        try:
            results.append(send(folder, shared))
        except ClusterftError as error:
            results.append(error)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {getattr(one, "path", one) for one in results} == {places.code(shared, code.read(folder).digest)}
    assert left_behind(shared) == []
    assert there(send(folder, shared))["train.py"] == "print('hello')\n"


@dataclass
class Cut:
    """A connection that breaks after so many bytes."""

    after: int
    remote: LocalRemote

    def stream(self, argv: tuple[str, ...]) -> Any:
        stream = self.remote.stream(argv)
        if argv[2] == depot.LOOK:
            return stream
        whole, left = stream.sendall, self.after

        def sendall(data: Any) -> None:
            nonlocal left
            whole(bytes(data)[:left])
            left -= len(data)
            if left <= 0:
                stream.shutdown(socket.SHUT_WR)
                stream.recv(1 << 16)
                raise Unreachable("ssh.timeout", "the connection broke")

        stream.sendall = sendall
        return stream


@pytest.mark.parametrize("after", [100, 512, 1024, 3072, 6144, 8192])
def test_a_connection_that_breaks_leaves_nothing_half(folder: Path, shared: PurePosixPath, after: int) -> None:
    tree = code.read(folder)
    with pytest.raises(Unreachable):
        code.send(Cut(after, LocalRemote()), tree, shared)  # type: ignore[arg-type]
    assert not Path(places.code(shared, tree.digest)).exists()
    wait_for_nothing(shared)
    assert there(send(folder, shared))["train.py"] == "print('hello')\n"


def wait_for_nothing(shared: PurePosixPath) -> None:
    """The script clears away when it sees the end."""
    for _ in range(100):
        if not left_behind(shared):
            return
        threading.Event().wait(0.05)
    assert left_behind(shared) == []


def test_a_file_that_changes_before_it_is_sent_is_refused(folder: Path, shared: PurePosixPath) -> None:
    tree = code.read(folder)
    put(folder / "train.py", "print('hullo')\n")
    with pytest.raises(UsageError, match="changed while it was read"):
        code.send(LocalRemote(), tree, shared)
    assert not Path(places.code(shared, tree.digest)).exists()
    wait_for_nothing(shared)


def test_a_file_system_without_links_gets_copies(
    folder: Path, shared: PurePosixPath, tmp_path: Path, monkeypatch: Any
) -> None:
    ln = put(tmp_path / "bin" / "ln", '#!/bin/sh\ncase $1 in -s) exec /bin/ln "$@" ;; esac\nexit 1\n')
    ln.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ln.parent}:{os.environ['PATH']}")
    sent = send(folder, shared)
    assert not Path(sent.path, "model/net.py").samefile(Path(sent.path, "model/again.py"))
    assert Path(sent.path, "model/net.py").stat().st_mode & 0o777 == 0o444
    assert Path(sent.path, "run me.sh").stat().st_mode & 0o777 == 0o555
    assert send(folder, shared).files == 0


def test_what_yesterday_left_behind_goes_and_what_is_at_work_stays(folder: Path, shared: PurePosixPath) -> None:
    sent = send(folder, shared)
    digest = sent.path.name
    top = Path(depot.top(shared))
    for name, age in ((f".{digest}.dead.tree", 2 * 86_400), (f".{digest}.alive", 60)):
        put(top / name / "new" / "x", "x")
        when = (top / "blobs").stat().st_mtime - age
        os.utime(top / name, (when, when))
    put(folder / "train.py", "other\n")
    send(folder, shared)
    assert left_behind(shared) == [f".{digest}.alive"]


def test_a_shared_dir_that_cannot_be_written_says_so_in_the_nodes_words(folder: Path, tmp_path: Path) -> None:
    file = put(tmp_path / "a file", "")
    with pytest.raises(CannotWrite) as caught:
        send(folder, PurePosixPath(file))
    assert "Not a directory" in caught.value.what and "mounted" in caught.value.remedy


def test_folders_are_as_open_to_others_as_the_shared_dir(folder: Path, shared: PurePosixPath) -> None:
    Path(shared).chmod(0o2775)
    send(folder, shared)
    assert Path(depot.top(shared), "blobs").stat().st_mode & 0o777 == 0o775
