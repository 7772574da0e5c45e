"""A tree to the same place on every node, over real relays: names of all kinds, changes, and what is refused."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from shipping import MIB, Harbour

from clusterft import ship
from clusterft.errors import UsageError
from clusterft.findings import Finding
from lab import FullLab

pytestmark = pytest.mark.lab_full
NODES = ("n1", "n2", "n3")
WHERE = PurePosixPath("/srv/data set")
_TREE = (
    "cd '/srv/data set' && { find . -mindepth 1 -printf '%p %y %m %s %l %Ts\\n' | LC_ALL=C sort; "
    "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; } | base64 -w 0"
)


@pytest.fixture(scope="module")
def harbour() -> Iterator[Harbour]:
    with FullLab.up(count=3) as lab:
        yield Harbour(lab)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Every kind of entry and of name that can travel."""
    root = tmp_path / "tree"
    (root / "models" / "deep").mkdir(parents=True)
    (root / "empty").mkdir(mode=0o750)
    (root / "models" / "large.safetensors").write_bytes(os.urandom(33 * MIB))
    (root / "models" / "middle").write_bytes(os.urandom(MIB))
    for number in range(40):
        (root / "models" / "deep" / f"{number:02}.png").write_bytes(os.urandom(3000))
    for name in (
        b"-rf",
        b"with space ",
        b" leading",
        b"new\nline",
        b"not-utf8-\xff",
        b"$(id)`id`'\"\\",
        b"*",
        "ä".encode(),
    ):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(name)
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "nothing").touch()
    (root / "models" / "link").symlink_to("../run.sh")
    (root / "dangling").symlink_to("not-there")
    return root


def push(harbour: Harbour, source: Path, to: PurePosixPath = WHERE, *, full: bool = False) -> ship.Pushed:
    with harbour.fleet() as fleet:
        return ship.push(harbour.convoy(fleet), source, to, full=full)


def there(harbour: Harbour, node: str) -> list[str]:
    """What lies on a node, with every mode, size, time and hash."""
    return base64.b64decode(harbour.on(node, _TREE)).decode("latin1").splitlines()


def here(tree: Path) -> list[str]:
    """The same for the source."""
    script = _TREE.replace("/srv/data set", str(tree))
    return (
        base64.b64decode(subprocess.run(["sh", "-c", script], capture_output=True).stdout)
        .decode("latin1")
        .splitlines()
    )


def without_times(lines: list[str]) -> list[str]:
    """Directories have the time at which they were last changed, and links the one at which they were made."""
    return [line.rpartition(" ")[0] if " d " in line else line for line in lines]


def test_a_tree_arrives_as_it_is_and_only_changes_follow(harbour: Harbour, tree: Path) -> None:
    first = push(harbour, tree)
    assert {
        node: isinstance(out, tuple) and len(out) > 0 for node, out in first.outcomes.items()
    } == dict.fromkeys(NODES, True), [getattr(out, "evidence", out) for out in first.outcomes.values()]
    before = {node: there(harbour, node) for node in NODES}
    for node in NODES:
        assert without_times(before[node]) == without_times(here(tree))
    assert tree_size(tree) < first.sent < tree_size(tree) + MIB

    again = push(harbour, tree)
    assert again.outcomes == dict.fromkeys(NODES, ()) and again.sent == 0
    assert {node: there(harbour, node) for node in NODES} == before, "nothing was touched"

    # A change of each kind: content of the same size, mode, a new file, and a node that lost one.
    with (tree / "models" / "large.safetensors").open("r+b") as file:
        file.seek(-10, os.SEEK_END)
        file.write(b"0123456789")
    (tree / "run.sh").chmod(0o700)
    (tree / "models" / "new").write_text("new")
    harbour.on("n2", "cd '/srv/data set' && rm -r models/deep && echo mine >models/own")
    third = push(harbour, tree)
    assert 33 * MIB < third.sent < 34 * MIB, third
    for node in NODES:
        found = without_times(there(harbour, node))
        if node == "n2":
            assert "mine" in harbour.on(node, "cat '/srv/data set/models/own'"), "what is only there stays"
            found = [line for line in found if "models/own" not in line]
        assert found == without_times(here(tree)), node
    assert push(harbour, tree, full=True).sent == 0
    assert [harbour.litter(node) for node in NODES] == ["", "", ""]


def tree_size(tree: Path) -> int:
    return sum(path.lstat().st_size for path in tree.rglob("*") if path.is_file() and not path.is_symlink())


def test_samples_miss_what_full_finds(harbour: Harbour, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(4 * MIB))
    where = PurePosixPath("/srv/one/weights")
    assert all(push(harbour, file, where).outcomes.values())
    with file.open("r+b") as out:
        out.seek(100_000)
        out.write(b"x")
    assert push(harbour, file, where).sent == 0, "samples are samples"
    assert push(harbour, file, where, full=True).sent > 0
    assert {harbour.on(node, "sha256sum </srv/one/weights") for node in NODES} == {
        harbour.on("n1", "sha256sum </srv/one/weights")
    }


def test_what_stands_in_the_way_stays_and_the_others_get_it(harbour: Harbour, tmp_path: Path) -> None:
    (tmp_path / "d" / "x").mkdir(parents=True)
    (tmp_path / "d" / "x" / "y").write_text("y")
    harbour.on("n1", "mkdir -p /srv/way && echo precious >/srv/way/x")
    harbour.on("n2", "echo precious >/srv/way")
    found = push(harbour, tmp_path / "d", PurePosixPath("/srv/way")).outcomes
    for node in ("n1", "n2"):
        finding = found[node]
        assert isinstance(finding, Finding) and finding.id == "fs.in-the-way", finding
        assert "precious" in harbour.on(node, "cat /srv/way 2>/dev/null || cat /srv/way/x")
    assert isinstance(found["n3"], tuple) and harbour.on("n3", "cat /srv/way/x/y") == "y"


def test_a_user_who_may_not_write_there(harbour: Harbour, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("f")
    guest = Harbour(harbour.lab, dict.fromkeys(NODES, "guest"), cluster="guests")
    found = push(guest, tmp_path / "f", PurePosixPath("/srv/closed/f")).outcomes
    assert {f.id for f in found.values() if isinstance(f, Finding)} == {"fs.not-writable"} and len(found) == 3
    found = push(guest, tmp_path / "f", PurePosixPath("/home/guest/f")).outcomes
    assert all(isinstance(f, tuple) for f in found.values()), found


@pytest.mark.parametrize("kind", ["fifo", "out", "absolute"])
def test_what_cannot_be_the_same_elsewhere_is_refused_by_name(tmp_path: Path, harbour: Harbour, kind: str) -> None:
    (tmp_path / "t").mkdir()
    bad = tmp_path / "t" / "bad\nname"
    if kind == "fifo":
        os.mkfifo(bad)
    else:
        bad.symlink_to("../outside" if kind == "out" else tmp_path / "t")
    with pytest.raises(UsageError, match=r"bad\\nname"):
        push(harbour, tmp_path / "t")
