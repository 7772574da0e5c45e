"""Proves that trees become tars that any program reads, come back equal, and that a hostile tar writes nothing."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterft_trainer.errors import ConfigError, DataError, RunError
from clusterft_trainer.latents import landing, layout, packing, tarball


def tree(root: Path, files: dict[str, bytes]) -> Path:
    """A folder with these files."""
    for name, body in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(body)
    return root


def listed(root: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


LONG = "/".join(["a folder with a long name " * 3] * 4) + "/picture.webp"
FILES = {
    "1.webp": b"one",
    "1.txt": b"",
    "1_0640x0480_sdxl.npz": b"n" * 5000,
    "1_te_outputs.npz": b"t",
    "b/2.png": b"x" * 512,
    "b/2.txt": b"y" * 513,
    "b/line\nbreak.txt": b"z",
    "b/ünïcode.jpg": b"u",
    LONG: b"deep",
    f"b/{'n' * 180}.txt": b"long name",
    "big.bin": bytes(range(256)) * 9000,  # copied within the kernel
}


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", FILES)
    report = packing.pack(root, tmp_path / "tars", files=4)
    assert report.files == len(FILES) and report.tars >= 3
    tars = sorted((tmp_path / "tars").glob("*.tar"))
    again = packing.unpack(tars, tmp_path / "out")
    assert listed(tmp_path / "out") == FILES
    assert again.files == len(FILES) and again.bytes == sum(map(len, FILES.values()))


def test_other_programs_read_our_tars(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", FILES)
    packing.pack(root, tmp_path / "tars")
    (path,) = (tmp_path / "tars").glob("*.tar")
    with tarfile.open(path) as found:
        assert {m.name: found.extractfile(m).read() for m in found} == FILES  # type: ignore[union-attr]
    (tmp_path / "gnu").mkdir()
    subprocess.run(["tar", "-xf", path, "-C", tmp_path / "gnu"], check=True)
    assert listed(tmp_path / "gnu") == FILES


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_we_read_the_tars_of_other_programs(tmp_path: Path, form: int) -> None:
    files = {n: b for n, b in FILES.items() if form != tarfile.USTAR_FORMAT or len(n) < 90}
    root = tree(tmp_path / "in", files)
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as made:
        made.add(root, ".")
    packing.unpack([tmp_path / "a.tar"], tmp_path / "out")
    assert listed(tmp_path / "out") == files


def test_files_of_one_stem_lie_in_one_tar(tmp_path: Path) -> None:
    files = {f"{i:03d}{end}": b"x" for i in range(50) for end in (".webp", ".txt", "_0064x0064_sdxl.npz")}
    root = tree(tmp_path / "in", files)
    packing.pack(root, tmp_path / "tars", files=10)
    seen: dict[str, str] = {}
    for path in (tmp_path / "tars").glob("*.tar"):
        with tarfile.open(path) as found:
            names = found.getnames()
        assert len(names) == 9 or path.name == "000016.tar"
        for name in names:
            assert seen.setdefault(name[:3], path.name) == path.name
    assert len(seen) == 50


def test_a_thousand_tars_are_filled_by_the_last_digits(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "in", {n: b"x" for n in ("7042.webp", "7042.txt", "42.webp", "sub/1000.npz", "999.npz")}
    )
    report = packing.pack(root, tmp_path / "tars", by_id=True)
    assert report.tars == 3
    found = {p.name: sorted(tarfile.open(p).getnames()) for p in (tmp_path / "tars").glob("*.tar")}
    assert found == {
        "0042.tar": ["42.webp", "7042.txt", "7042.webp"],
        "0000.tar": ["sub/1000.npz"],
        "0999.tar": ["999.npz"],
    }
    tree(root, {"name.webp": b"x"})
    with pytest.raises(DataError, match=r"name\.webp"):
        packing.pack(root, tmp_path / "other", by_id=True)


def test_the_list_beside_a_tar_tells_where_each_file_lies(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", FILES)
    packing.pack(root, tmp_path / "tars")
    (path,) = (tmp_path / "tars").glob("*.tar")
    told = json.loads(path.with_suffix(".json").read_text())
    body = path.read_bytes()
    assert told["filesize"] == len(body) and set(told["files"]) == set(FILES)
    for name, place in told["files"].items():
        assert body[place["offset"] : place["offset"] + place["size"]] == FILES[name]


def test_the_same_files_give_the_same_tars_whoever_packs_them(tmp_path: Path) -> None:
    one, two = tree(tmp_path / "a", FILES), tree(tmp_path / "b", dict(reversed(FILES.items())))
    for path in two.rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))
            path.chmod(0o600)
    packing.pack(one, tmp_path / "x", files=4)
    packing.pack(two, tmp_path / "y", files=4, processes=2)
    assert listed(tmp_path / "x") == listed(tmp_path / "y")


def test_a_rerun_writes_only_what_is_missing_or_has_changed(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", FILES)
    out = tmp_path / "tars"
    assert packing.pack(root, out, files=4).there == 0
    before = {p.name: p.stat().st_ino for p in out.glob("*.tar")}
    assert packing.pack(root, out, files=4).there == len(before)
    first, second, third = sorted(before)[:3]
    (out / first).unlink()
    with (out / second).open("r+b") as file:
        file.truncate(700)
    (out / ".draft-left-by-a-killed-run").write_bytes(b"x")
    report = packing.pack(root, out, files=4)
    after = {p.name: p.stat().st_ino for p in out.glob("*.tar")}
    assert report.there == len(before) - 2 and not list(out.glob(".*"))
    assert after[third] == before[third]
    packing.unpack(sorted(out.glob("*.tar")), tmp_path / "out")
    assert listed(tmp_path / "out") == FILES
    (root / "1.webp").write_bytes(b"two")  # of the same length
    assert packing.pack(root, out, files=4).there == len(before) - 1


def test_tars_of_another_tree_are_not_mixed_with_this_one(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", FILES)
    packing.pack(root, tmp_path / "tars", files=4)
    with pytest.raises(DataError, match="no part of this tree"):
        packing.pack(root, tmp_path / "tars", files=100)


def test_links_and_special_files_are_counted_and_left_out(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", {"a.txt": b"x", "b.npz.bad": b"", ".draft-1-a": b""})
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/s.txt").write_bytes(b"s")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "link.txt").symlink_to(tmp_path / "secret/s.txt")
    os.mkfifo(root / "pipe")
    report = packing.pack(root, tmp_path / "tars")
    assert (report.files, report.links, report.others, report.aside) == (1, 2, 1, 2)


def test_a_stem_with_too_many_files_and_a_folder_in_itself_are_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", {"1.a": b"", "1.b": b"", "1.c": b""})
    with pytest.raises(DataError, match="stem"):
        packing.pack(root, tmp_path / "tars", files=2)
    with pytest.raises(ConfigError, match="packed itself"):
        packing.pack(root, root / "tars")
    with pytest.raises(DataError, match="no folder"):
        packing.pack(root / "gone", tmp_path / "tars")


def test_an_empty_folder_gives_no_tar(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert packing.pack(tmp_path / "in", tmp_path / "tars").tars == 0


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", body: bytes = b"x") -> bytes:
    """A tar with one member, of any kind."""
    room = io.BytesIO()
    with tarfile.open(fileobj=room, mode="w", format=tarfile.GNU_FORMAT) as made:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        info.size = len(body) if kind in (tarfile.REGTYPE, b"7") else 0
        made.addfile(info, io.BytesIO(body))
    return room.getvalue()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (member("/etc/x"), "leads out"),
        (member("../x"), "leads out"),
        (member("a/../../x"), "leads out"),
        (member("a/b/.."), "leads out"),
        (member("./"), "leads out"),
        (member("x" * 300), "too long"),
        (member("x/" * 150 + "x"), "too long"),
        (member("a", tarfile.SYMTYPE, "/etc"), "symbolic link"),
        (member("a", tarfile.LNKTYPE, "/etc/passwd"), "hard link"),
        (member("a", tarfile.CHRTYPE), "device"),
        (member("a", tarfile.BLKTYPE), "device"),
        (member("a", tarfile.FIFOTYPE), "pipe"),
        (member("a", b"S"), "neither"),
        (member("a", b"V"), "neither"),
        (b"", "empty"),
        (member("a")[:700], "tail"),
        (member("a", body=b"x" * 5000)[:1500], "tail"),
        (b"junk" * 500, "no header"),
        (member("a").replace(b"a\0\0", b"b\0\0", 1), "damaged"),
        (member("a")[:1024] + member("a"), "twice"),
        (member("a")[:1024] + member("./a"), "twice"),
    ],
)
def test_a_hostile_or_damaged_tar_is_refused_before_anything_is_written(
    tmp_path: Path, body: bytes, why: str
) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(
        member("good")[:1024] + body if body and why not in ("tail", "no header", "damaged") else body
    )
    with pytest.raises(DataError, match=why) as caught:
        packing.unpack([path], tmp_path / "out")
    assert "a.tar" in caught.value.message
    assert listed(tmp_path / "out") == {}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "out"]


@settings(max_examples=200)
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=30))
def test_no_bytes_make_unpacking_fail_without_a_name(
    tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes
) -> None:
    body = bytearray(member("a") + member("b" * 150))
    body[at : at + len(junk)] = junk
    path = tmp_path_factory.mktemp("t") / "a.tar"
    path.write_bytes(body)
    handle = os.open(path, os.O_RDONLY)
    try:
        for one in tarball.members(path, handle):
            assert not one.name.startswith("/") and ".." not in one.name.split("/")
            assert 0 <= one.offset and one.offset + one.size <= len(body)
    except DataError as error:
        assert "a.tar" in error.message
    finally:
        os.close(handle)


def test_nothing_is_written_through_a_link_in_the_target(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").symlink_to(tmp_path / "outside")
    (tmp_path / "out/b").symlink_to(tmp_path / "outside/file")
    (tmp_path / "1.tar").write_bytes(member("a/x"))
    (tmp_path / "2.tar").write_bytes(member("b"))
    for name in ("1.tar", "2.tar"):
        with pytest.raises(DataError):
            packing.unpack([tmp_path / name], tmp_path / "out")
    packing.unpack([tmp_path / "2.tar"], tmp_path / "out", overwrite=True)
    assert not list((tmp_path / "outside").iterdir())
    assert (tmp_path / "out/b").read_bytes() == b"x" and not (tmp_path / "out/b").is_symlink()


def test_a_file_that_is_there_stays_unless_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(member("sub/f", body=b"new"))
    tree(tmp_path / "out", {"sub/f": b"old"})
    with pytest.raises(DataError, match="another file"):
        packing.unpack([tmp_path / "a.tar"], tmp_path / "out")
    assert (tmp_path / "out/sub/f").read_bytes() == b"old"
    assert packing.unpack([tmp_path / "a.tar"], tmp_path / "out", overwrite=True).there == 0
    assert packing.unpack([tmp_path / "a.tar"], tmp_path / "out").there == 1
    assert listed(tmp_path / "out") == {"sub/f": b"new"}


def test_many_deep_folders_do_not_use_up_the_open_files(tmp_path: Path) -> None:
    with landing.Landing(tmp_path / "out") as made:
        for number in range(30):
            made.put("/".join([f"{number}"] * 90), 1, lambda: [b"x"])
        assert len(os.listdir("/proc/self/fd")) < 800
    assert len(listed(tmp_path / "out")) == 30 == made.written


def test_what_was_not_finished_leaves_no_drafts(tmp_path: Path) -> None:
    def broken() -> list[bytes]:
        raise DataError("stop", "")

    with pytest.raises(DataError, match="stop"), landing.Landing(tmp_path / "out") as made:
        made.put("a", 1, lambda: [b"x"])
        made.put("b", 1, broken)
    assert listed(tmp_path / "out") == {}


def full(*_: object, **__: object) -> None:
    """What a disk without room does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["writev", "fsync", "sendfile"])
def test_a_full_disk_is_told_as_one_and_leaves_no_half_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    root = tree(tmp_path / "in", FILES)
    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(RunError, match="No space left") as caught:
            packing.pack(root, tmp_path / "tars")
    assert caught.value.failure == "disk-full"
    assert listed(tmp_path / "tars") == {}
    assert packing.pack(root, tmp_path / "tars").there == 0


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_full_disk_leaves_no_half_file_of_a_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    root = tree(tmp_path / "in", FILES)
    packing.pack(root, tmp_path / "tars")
    tars = list((tmp_path / "tars").glob("*.tar"))
    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(RunError, match="No space left"):
            packing.unpack(tars, tmp_path / "out")
    assert listed(tmp_path / "out") == {}
    packing.unpack(tars, tmp_path / "out")
    assert listed(tmp_path / "out") == FILES


def test_a_file_that_changes_while_it_is_packed_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path / "in", FILES)
    real = layout.survey

    def changed(folder: Path) -> layout.Tree:
        found = real(folder)
        (root / "1.webp").write_bytes(b"longer than before")
        return found

    monkeypatch.setattr(layout, "survey", changed)
    with pytest.raises(DataError, match=r"1\.webp changed"):
        packing.pack(root, tmp_path / "tars")
    assert listed(tmp_path / "tars") == {}


_PACK = "import sys; from pathlib import Path as P; from clusterft_trainer.latents import packing as p; "
_KILLED = _PACK + "p.pack(P(sys.argv[1]), P(sys.argv[2]), files=10)"


def test_a_killed_run_is_continued_and_gives_the_same_tars(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", {f"{n:05d}.npz": bytes([n % 256]) * 5000 for n in range(3000)})
    out = tmp_path / "tars"
    killed = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(root), str(out)], env=os.environ | {"PYTHONPATH": ":".join(sys.path)}
    )
    while killed.poll() is None and len(list(out.glob("*.tar"))) < 20:
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    before = len(list(out.glob("*.tar")))
    assert 20 <= before
    report = packing.pack(root, out, files=10)
    assert report.tars == 300 and (report.there >= 1 or before == 300)
    assert not list(out.glob(".*"))
    packing.pack(root, tmp_path / "whole", files=10)
    assert listed(out) == listed(tmp_path / "whole")


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=120))
def test_any_name_survives_a_header(name: str) -> None:
    raw = tarball.header(f"d/{name}", 3)
    with tarfile.open(fileobj=io.BytesIO(raw + b"abc" + bytes(509) + tarball.END)) as found:
        assert found.getnames() == [f"d/{name}"]


def test_the_commands_tell_what_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path / "in", FILES)
    packer, unpacker = argparse.ArgumentParser(), argparse.ArgumentParser()
    packing.add_pack_arguments(packer)
    packing.add_unpack_arguments(unpacker)
    told = packer.parse_args([str(root), "--out", str(tmp_path / "t"), "--processes", "1", "--json"])
    assert packing.run_pack(told) == 0
    assert json.loads(capsys.readouterr().out)["files"] == len(FILES)
    assert packing.run_unpack(unpacker.parse_args([str(tmp_path / "t"), "--out", str(tmp_path / "o")])) == 0
    assert f"{len(FILES)} files" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"no \.tar"):
        packing.run_unpack(unpacker.parse_args([str(root), "--out", str(tmp_path / "o")]))
