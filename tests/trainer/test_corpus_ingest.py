"""Ingest of folders: what becomes a row, what is wrong, and what a second run reads."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from corpora import SKIPPING, indexed, pairs, picture, put, report
from test_corpus_headers import bomb

from clusterft_trainer.config.data import Problems
from clusterft_trainer.config.sources import FolderSource, KohyaSource, TableSource, TarSource, locations
from clusterft_trainer.corpus.index import Index, Row, write
from clusterft_trainer.corpus.ingest import index_key
from clusterft_trainer.corpus.known import Journal
from clusterft_trainer.corpus.look import Reader
from clusterft_trainer.errors import DataError, RunError

pytestmark = pytest.mark.trainer


def settle(folder: Path) -> None:
    """Make all files old enough to be known by their time."""
    for path in folder.rglob("*"):
        os.utime(path, ns=(10**18 + 1, 10**18 + 1))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened."""
    names: list[str] = []
    real = Reader.opened
    monkeypatch.setattr(Reader, "opened", lambda self, name: (names.append(name), real(self, name))[1])
    return names


@pytest.mark.parametrize("processes", [1, 2])
def test_each_picture_becomes_a_row_in_the_order_of_names(tmp_path: Path, processes: int) -> None:
    root = pairs(tmp_path / "in", 30)
    index = indexed(tmp_path / "out", FolderSource(folder=str(root)), processes=processes)
    names = [index.row(i).name for i in range(len(index))]
    assert names == sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png"))
    for i, name in enumerate(names):
        row, data = index.row(i), (root / name).read_bytes()
        number = int(Path(name).stem)
        assert (row.width, row.height) == (20 + number % 7, 30 + number % 5)
        assert (row.file, row.size, row.offset) == (str(root / name), len(data), -1)
        assert row.hash == xxhash.xxh3_128_digest(data)
        assert row.caption == index.caption(i) == f"tag{number}, cat"
    assert index.sizes().tolist() == [[index.row(i).width, index.row(i).height] for i in range(30)]


def test_the_digest_follows_from_names_captions_and_sizes_alone(tmp_path: Path) -> None:
    root = pairs(tmp_path / "in", 9)
    first = indexed(tmp_path / "out", FolderSource(folder=str(root)))
    elsewhere = shutil.copytree(root, tmp_path / "moved")
    assert indexed(tmp_path / "out2", FolderSource(folder=str(elsewhere))).digest == first.digest
    put(elsewhere / "0000.txt", "another caption")
    assert indexed(tmp_path / "out2", FolderSource(folder=str(elsewhere))).digest != first.digest


def test_captions_lie_in_a_folder_of_their_own_or_have_another_suffix(tmp_path: Path) -> None:
    put(tmp_path / "images/a/1.png", picture())
    put(tmp_path / "captions/a/1.caption", "\ufeff ein Kätzchen \n")
    source = FolderSource(folder=str(tmp_path / "images"), captions=str(tmp_path / "captions"))
    assert indexed(tmp_path / "out", source).caption(0) == "ein Kätzchen"


def test_two_sources_keep_their_order(tmp_path: Path) -> None:
    sources = [FolderSource(folder=str(pairs(tmp_path / name, 4, start=k))) for k, name in ((10, "b"), (20, "a"))]
    index = indexed(tmp_path / "out", *sources)
    assert [index.row(i).source for i in range(8)] == [0] * 4 + [1] * 4
    assert [source["rows"] for source in index.head.sources] == [4, 4]


BAD = {
    "broken": ("bad.webp", picture(kind="WEBP")[:-30], "1 x no whole picture: bad.webp"),
    "empty": ("bad.png", b"", "no whole picture"),
    "bomb": ("bad.png", bomb(50_000, 50_000), "more pixels"),
    "text": ("bad.txt", b"\xff\xfe", "not UTF-8: sub1/bad.png"),
}


@pytest.mark.parametrize("kind", ["broken", "empty", "bomb"])
def test_what_is_no_picture_is_refused_by_name_or_skipped_and_counted(tmp_path: Path, kind: str) -> None:
    name, data, words = BAD[kind]
    root = pairs(tmp_path / "in", 5)
    put(root / name, data)
    put(root / "bad.txt", "a caption")
    with pytest.raises(DataError, match=words) as caught:
        indexed(tmp_path / "out", FolderSource(folder=str(root)))
    assert "report.json" in str(caught.value) and name in str(caught.value)
    index = indexed(tmp_path / "out", FolderSource(folder=str(root)), problems=SKIPPING)
    assert len(index) == 5
    (found,) = report(tmp_path / "out")["found"].values()
    assert (found["count"], found["decision"], found["names"][0]["name"]) == (1, "skip", name)


@pytest.mark.parametrize(
    ("text", "kind"),
    [(None, "no_text"), (b"\xff\xfe\x00caption", "not_utf8"), (b"tag, " * 40_000, "long_text")],
)
def test_a_picture_without_a_usable_text_is_refused_skipped_or_taken(
    tmp_path: Path, text: bytes | None, kind: str
) -> None:
    root = pairs(tmp_path / "in", 3)
    put(root / "bad.png", picture(seed=99))
    if text is not None:
        put(root / "bad.txt", text)
    source = FolderSource(folder=str(root))
    with pytest.raises(DataError, match="bad.png"):
        indexed(tmp_path / "out", source)
    assert len(indexed(tmp_path / "out", source, problems=Problems(no_caption="skip"))) == 3
    index = indexed(tmp_path / "out", source, problems=Problems(no_caption="empty"))
    assert {index.row(i).name: index.caption(i) for i in range(4)}["bad.png"] == ""
    assert report(tmp_path / "out")["found"][kind]["count"] == 1


def test_a_text_of_no_bytes_is_an_empty_caption_and_counted(tmp_path: Path) -> None:
    root = pairs(tmp_path / "in", 3)
    put(root / "0000.txt", b"")
    index = indexed(tmp_path / "out", FolderSource(folder=str(root)))
    assert (len(index), index.caption(0)) == (3, "")
    assert report(tmp_path / "out")["found"]["empty_text"]["names"] == [{"source": 0, "name": "0000.png"}]


def test_two_pictures_of_one_stem_are_told(tmp_path: Path) -> None:
    root = pairs(tmp_path / "in", 2)
    put(root / "0000.jpg", picture(kind="JPEG"))
    source = FolderSource(folder=str(root))
    with pytest.raises(DataError, match=r"same stem.*0000\.png"):
        indexed(tmp_path / "out", source)
    index = indexed(tmp_path / "out", source, problems=SKIPPING)
    assert [index.row(i).name for i in range(len(index))] == ["0000.jpg", "sub1/0001.png"]
    settle(root)
    (root / "0000.jpg").unlink()
    assert len(indexed(tmp_path / "out", source)) == 2


def test_other_rules_for_the_same_pictures_make_an_index_of_their_own(tmp_path: Path) -> None:
    pairs(tmp_path / "in", 3)
    source = FolderSource(folder=str(tmp_path / "in"))
    first = indexed(tmp_path / "out", source)
    second = indexed(tmp_path / "out", source, problems=Problems(duplicate="skip"))
    assert second.folder.parent != first.folder.parent and second.digest == first.digest


def test_equal_bytes_are_kept_skipped_or_refused(tmp_path: Path) -> None:
    root = pairs(tmp_path / "in", 3)
    put(root / "zzz.png", (root / "0000.png").read_bytes())
    put(root / "zzz.txt", "the same")
    source = FolderSource(folder=str(root))
    assert len(indexed(tmp_path / "out", source)) == 4
    assert report(tmp_path / "out")["found"]["duplicate"]["count"] == 1
    index = indexed(tmp_path / "out", source, problems=Problems(duplicate="skip"))
    assert "zzz.png" not in [index.row(i).name for i in range(3)]
    with pytest.raises(DataError, match=r"same bytes.*zzz\.png"):
        indexed(tmp_path / "out", source, problems=Problems(duplicate="refuse"))


def test_names_with_newlines_are_names_and_names_without_an_encoding_are_told(tmp_path: Path) -> None:
    root = pairs(tmp_path / "in", 1)
    put(root / "two\nlines\t.png", picture(seed=5))
    put(root / "two\nlines\t.txt", "odd")
    put(root / os.fsdecode(b"latin-\xe9.png"), picture(seed=6))
    with pytest.raises(DataError, match="not UTF-8: latin"):
        indexed(tmp_path / "out", FolderSource(folder=str(root)))
    index = indexed(tmp_path / "out", FolderSource(folder=str(root)), problems=SKIPPING)
    assert [index.row(i).name for i in range(len(index))] == ["0000.png", "two\nlines\t.png"]
    text = next((tmp_path / "out").glob("*/report.txt")).read_text()
    assert "two\nlines" not in text


def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    root = pairs(tmp_path / "in", 2)
    put(tmp_path / "secret/x.png", picture(seed=7))
    put(tmp_path / "secret/x.txt", "a secret")
    (root / "far.png").symlink_to(tmp_path / "secret/x.png")
    (root / "near.png").symlink_to(root / "0000.png")
    (root / "leak.txt").symlink_to(tmp_path / "secret/x.txt")
    (root / "all").symlink_to(tmp_path / "secret")
    (root / "loop").symlink_to(root)
    for stem in ("far", "near"):
        put(root / f"{stem}.txt", "a link")
    put(root / "leak.png", picture(seed=8))
    index = indexed(
        tmp_path / "out", FolderSource(folder=str(root)), problems=Problems(broken="skip", no_caption="skip")
    )
    assert [index.row(i).name for i in range(len(index))] == ["0000.png", "near.png", "sub1/0001.png"]
    found = report(tmp_path / "out")["found"]
    assert found["outside"]["names"][0]["name"] == "far.png"
    assert found["no_text"]["names"][0]["name"] == "leak.png"


def test_no_pictures_and_no_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="no picture in"):
        indexed(tmp_path / "out", FolderSource(folder=str(tmp_path / "in")))
    with pytest.raises(DataError, match=r"data.sources\[0\]: .*cannot be listed"):
        indexed(tmp_path / "out", FolderSource(folder=str(tmp_path / "gone")))


def test_what_is_missing_on_one_node_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTERFT_NODE", "gpu7")
    with pytest.raises(DataError, match=r"data.sources\[0\]: .*gone.json is not there on gpu7\."):
        indexed(tmp_path / "out", KohyaSource(kohya=str(tmp_path / "gone.json")))
    with pytest.raises(DataError, match=r"cannot be listed on gpu7 \(No such file"):
        indexed(tmp_path / "out", FolderSource(folder=str(tmp_path / "gone")))


def test_problems_are_refused_with_the_setting_that_leaves_them_out(tmp_path: Path) -> None:
    root = pairs(tmp_path / "in", 3)
    (root / "bad.png").write_bytes(b"none")
    (root / "bad.txt").write_text("a")
    (root / "0000.txt").unlink()
    with pytest.raises(DataError, match=r"1 x no caption: 0000.png \(data.sources\[0\]\)") as caught:
        indexed(tmp_path / "out", FolderSource(folder=str(root)))
    assert "`problems: {broken: skip, no_caption: skip}` under train.data" in caught.value.remedy


def test_a_second_run_opens_only_what_changed(tmp_path: Path, opened: list[str]) -> None:
    root = pairs(tmp_path / "in", 12)
    source = FolderSource(folder=str(root))
    settle(root)
    first = indexed(tmp_path / "out", source)
    opened.clear()
    again = indexed(tmp_path / "out", source)
    assert (again.digest, again.folder) == (first.digest, first.folder)  # nothing is written either
    assert opened == []
    put(root / "0003.txt", "edited")
    put(root / "0006.png", picture(11, 12, seed=1))
    put(root / "sub2/0005.png", picture(13, 14, seed=2))
    (root / "sub1/0001.png").unlink()
    pairs(root, 1, start=99)
    index = indexed(tmp_path / "out", source)
    assert sorted(opened) == sorted(
        ["0003.txt", "0006.png", "0006.txt", "sub2/0005.png", "sub2/0005.txt", "0099.png", "0099.txt"]
    )
    rows = {index.row(i).name: index.row(i) for i in range(len(index))}
    assert rows["0003.png"].caption == "edited"
    assert (rows["0006.png"].width, rows["sub2/0005.png"].height) == (11, 14)
    assert "sub1/0001.png" not in rows and "0099.png" in rows
    fresh = indexed(tmp_path / "fresh", source)
    assert [fresh.row(i) for i in range(len(fresh))] == [index.row(i) for i in range(len(index))]


def test_after_a_refusal_only_what_was_mended_is_read(tmp_path: Path, opened: list[str]) -> None:
    root = pairs(tmp_path / "in", 9)
    put(root / "bad.png", b"nothing")
    put(root / "bad.txt", "bad")
    settle(root)
    with pytest.raises(DataError):
        indexed(tmp_path / "out", FolderSource(folder=str(root)))
    opened.clear()
    # other decisions are another index, but the pictures are the same
    assert len(indexed(tmp_path / "out", FolderSource(folder=str(root)), problems=SKIPPING)) == 9
    assert opened == []
    put(root / "bad.png", picture(seed=77))
    assert len(indexed(tmp_path / "out", FolderSource(folder=str(root)))) == 10
    assert sorted(opened) == ["bad.png", "bad.txt"]


def test_an_ingest_that_is_interrupted_goes_on_where_it_was(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clusterft_trainer.corpus.chunk.SIZE", 4)
    root = pairs(tmp_path / "in", 22)
    settle(root)

    def stop(progress: object) -> None:
        if progress.done == 12:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        indexed(tmp_path / "out", FolderSource(folder=str(root)), say=stop)
    (folder,) = (tmp_path / "out").iterdir()
    with pytest.raises(DataError, match="no index"):
        Index.open(folder)
    # the machine went down while it wrote: the journal's end is torn
    (journal,) = folder.glob("journal-*")
    journal.write_bytes(journal.read_bytes()[:-9])
    opened.clear()
    index = indexed(tmp_path / "out", FolderSource(folder=str(root)))
    assert len(index) == 22
    assert len(opened) == 2 * (22 - 8)
    assert not journal.exists()
    fresh = indexed(tmp_path / "fresh", FolderSource(folder=str(root)))
    assert index.digest == fresh.digest


_KILLED = """
import os, signal, sys
from pathlib import Path
from clusterft_trainer.config.data import Problems
from clusterft_trainer.config.sources import FolderSource
from clusterft_trainer.corpus import chunk
from clusterft_trainer.corpus.ingest import index_key, ingest

chunk.SIZE = 5
sources = [FolderSource(folder=sys.argv[1])]


def die(progress):
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    if progress.done >= 20:
        print(children, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


ingest(sources, Problems(), Path(sys.argv[2]) / index_key(sources, Problems()), processes=2, say=die)
"""


def test_a_killed_ingest_leaves_no_process_and_its_work_is_not_done_again(
    tmp_path: Path, opened: list[str]
) -> None:
    root = pairs(tmp_path / "in", 60)
    settle(root)
    command = [sys.executable, "-c", _KILLED, str(root), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == -9, done.stderr
    workers = [int(number) for number in done.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}/cmdline").exists() and _alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    index = indexed(tmp_path / "out", FolderSource(folder=str(root)))
    assert len(opened) == 2 * (60 - 20)
    assert index.digest == indexed(tmp_path / "fresh", FolderSource(folder=str(root))).digest


def _alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_full_disk_is_told_as_one_and_what_was_written_counts(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clusterft_trainer.corpus.chunk.SIZE", 4)
    root = pairs(tmp_path / "in", 12)
    settle(root)
    source = FolderSource(folder=str(root))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in ("known.Journal.append", "index.Writer._write"):
        with monkeypatch.context() as patch:
            real = Journal.append
            told = [0]

            def append(self: Journal, batch: object, real=real, told=told) -> object:
                told[0] += 1
                return real(self, batch) if told[0] < 3 else fail()

            patch.setattr(f"clusterft_trainer.corpus.{place}", append if "append" in place else fail)
            with pytest.raises((RunError, OSError)) as caught:
                indexed(tmp_path / "out", source)
        assert "No space left" in str(caught.value)
    assert len(opened) == 2 * (12 + 4)  # eight were written before the disk was full, the others after it was not
    (folder,) = (tmp_path / "out").iterdir()
    assert not [path for path in folder.iterdir() if path.name.startswith(".new-")]
    opened.clear()
    assert len(indexed(tmp_path / "out", source)) == 12
    assert opened == []


def test_journals_are_deleted_where_locks_want_a_descriptor_that_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on NFS: flock(2), EBADF.
    real = fcntl.flock

    def nfs(file: Any, what: int) -> None:
        if what & fcntl.LOCK_EX and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(file, what)

    monkeypatch.setattr(fcntl, "flock", nfs)
    folder = pairs(tmp_path / "in", 3)
    found = indexed(tmp_path / "out", FolderSource(folder=str(folder)))
    assert len(found) == 3 and not list((tmp_path / "out").glob("*/journal-*"))


@pytest.mark.parametrize(
    "source",
    [
        KohyaSource(kohya="{}/meta.json"),
        TableSource(table="{}/a.csv"),
        TarSource(tars="{}/a.tar"),
        FolderSource(folder="{}/none"),
    ],
    ids=["kohya", "table", "tar", "folder"],
)
def test_a_source_that_is_not_there_is_named(source: Any, tmp_path: Path) -> None:
    there = {name: place.format(tmp_path) for name, place in locations(source).items()}
    with pytest.raises(DataError) as raised:
        indexed(tmp_path / "out", source.model_copy(update=there))
    assert str(tmp_path) in raised.value.message and "data.sources" in raised.value.remedy


def test_two_ingests_at_once_leave_one_whole_index(tmp_path: Path) -> None:
    root = pairs(tmp_path / "in", 9)
    source = FolderSource(folder=str(root))
    inner: list[Index] = []

    def another(progress: object) -> None:
        if not inner:
            inner.append(indexed(tmp_path / "out", source))

    outer = indexed(tmp_path / "out", source, say=another)
    assert outer.digest == inner[0].digest == Index.open(outer.folder.parent).digest
    assert not list(outer.folder.parent.glob("journal-*"))


def test_a_rotten_journal_or_index_costs_reading_and_no_more(tmp_path: Path) -> None:
    root = pairs(tmp_path / "in", 6)
    settle(root)
    first = indexed(tmp_path / "out", FolderSource(folder=str(root)))
    data = bytearray((first.folder / "index.arrow").read_bytes())
    data[:64] = bytes(64)
    (first.folder / "index.arrow").write_bytes(data)
    (first.folder.parent / "journal-rotten").write_bytes(b"no journal at all" * 9)
    assert indexed(tmp_path / "out", FolderSource(folder=str(root))).digest == first.digest


def test_a_reader_sees_the_old_index_until_the_new_one_is_whole(tmp_path: Path) -> None:
    root = pairs(tmp_path / "in", 3)
    old = indexed(tmp_path / "out", FolderSource(folder=str(root)))
    rows = [old.row(i) for i in range(3)]
    pairs(root, 2, start=50)
    new = indexed(tmp_path / "out", FolderSource(folder=str(root)))
    assert [old.row(i) for i in range(3)] == rows
    assert (len(old), len(new), len(Index.open(new.folder.parent))) == (3, 5, 5)
    for k in range(3):
        pairs(root, 1, start=60 + k)
        indexed(tmp_path / "out", FolderSource(folder=str(root)))
    assert len([p for p in new.folder.parent.iterdir() if p.is_dir()]) == 2


def test_an_index_that_lost_a_part_is_refused(tmp_path: Path) -> None:
    index = indexed(tmp_path / "out", FolderSource(folder=str(pairs(tmp_path / "in", 3))))
    path = index.folder / "sizes.int32"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="sizes.int32 has 20 bytes"):
        Index.open(index.folder.parent)


def test_the_key_is_that_of_the_settings_but_not_of_repeats() -> None:
    one, two = FolderSource(folder="/a"), FolderSource(folder="/a", repeats=3)
    assert index_key([one], Problems()) == index_key([two], Problems())
    assert index_key([one], Problems()) != index_key([FolderSource(folder="/b")], Problems())
    assert index_key([one], Problems()) != index_key([one], Problems(), npz=False)
    skipping = index_key([one], SKIPPING)
    assert skipping != index_key([one], Problems())
    assert skipping.partition("-")[0] == index_key([one], Problems()).partition("-")[0]


def test_rows_that_are_written_by_hand_come_back_as_they_were(tmp_path: Path) -> None:
    made = [
        Row(0, "b", "/x/b", -1, 5, b"h" * 16, 3, 4, "ü", 1.5, ""),
        Row(0, "a", "", -1, 0, b"", 640, 480, "", None, "/x/a.npz"),
        Row(1, "t.tar/a", "/x/t.tar", 512, 7, b"i" * 16, 1, 2, "two\nlines", None, ""),
    ]
    index = write(tmp_path / "out", reversed(made))
    assert [index.row(i) for i in range(3)] == [made[1], made[0], made[2]]
    assert index.column("hash").to_pylist() == [None, b"h" * 16, b"i" * 16]


def test_rows_are_counted_over_batches_and_columns_are_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clusterft_trainer.corpus.index.BATCH", 7)
    monkeypatch.setattr("clusterft_trainer.corpus.final._BLOCK", 5)
    monkeypatch.setattr("clusterft_trainer.corpus.chunk.SIZE", 4)
    index = indexed(tmp_path / "out", FolderSource(folder=str(pairs(tmp_path / "in", 23))))
    assert index.column("name").to_pylist() == [index.row(i).name for i in range(23)]
    assert index.column("hash").to_pylist() == [index.row(i).hash for i in range(23)]
    assert np.array_equal(index.sizes()[:, 0], index.column("width").to_numpy())
    with pytest.raises(IndexError):
        index.row(23)
