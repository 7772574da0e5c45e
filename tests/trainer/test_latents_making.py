"""Proves that a cache comes out the same whoever makes it, dies, comes back or meets a broken picture."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import made_cache
import numpy as np
import pytest
from corpora import put
from made_cache import RECIPE, Stub, indexed, pictures, row, work

from clusterft_trainer.buckets import Bucket
from clusterft_trainer.corpus.index import Index, Row
from clusterft_trainer.errors import DataError, RunError
from clusterft_trainer.latents import healing, making, session, shard, tables, verify, writing
from clusterft_trainer.latents.catalogue import Catalogue, shard_names

pytestmark = pytest.mark.trainer


def _folder(shared: Path) -> Path:
    return shared / "latents" / RECIPE.digest()


def _bytes(shared: Path) -> dict[str, bytes]:
    folder = _folder(shared)
    return {name: (folder / name).read_bytes() for name in shard_names(folder)}


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    return pictures(tmp_path / "pictures", 60)


@pytest.fixture
def found(tmp_path: Path, rows: list[Row]) -> Index:
    return indexed(tmp_path / "index", rows)


def _start(shared: Path, seconds: float) -> subprocess.Popen[bytes]:
    shared.mkdir(exist_ok=True)
    path = Path(made_cache.__file__)
    root = path.parents[2] / "trainer"
    command = [sys.executable, str(path), str(shared), str(shared.parent / "index"), str(seconds)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(root)})


def _logged(shared: Path) -> list[str]:
    return [line for path in shared.glob("*.log") for line in path.read_text().splitlines()]


def test_every_picture_is_encoded_once_and_found_again(tmp_path: Path, found: Index) -> None:
    stub = Stub()
    made = work(tmp_path, found, stub)
    assert made.planned == made.tally.entries == len(set(stub.keys)) == len(stub.keys) == 60
    held = Catalogue.open(_folder(tmp_path), RECIPE.to_json())
    wanted = made_cache.order(tmp_path, found).wanted()
    places = held.locate(wanted.keys)
    assert (places >= 0).all()
    for place, (width, height) in zip(places.tolist(), wanted.sizes.tolist(), strict=True):
        assert held.read(place, check=True).shape == (4, height // 8, width // 8)
    assert not [n for n in os.listdir(_folder(tmp_path)) if n.startswith(tables.DRAFT)]


def test_a_second_run_has_nothing_to_do_and_asks_for_no_encoder(tmp_path: Path, found: Index) -> None:
    work(tmp_path, found, Stub())
    with session.Session(tmp_path / "work", "two") as member:

        def never() -> Any:
            raise AssertionError("asked for")

        made = making.make(member, made_cache.order(tmp_path, found), never, never)
    assert made.planned == 0


def test_equal_pictures_are_encoded_once(tmp_path: Path, rows: list[Row]) -> None:
    folder = tmp_path / "pictures"
    again = [
        row(folder, f"again{k}.bmp", Path(rows[k].file).read_bytes(), (rows[k].width, rows[k].height))
        for k in (0, 1)
    ]
    stub = Stub()
    work(tmp_path, indexed(tmp_path / "index", [*rows, *again]), stub)
    assert len(stub.keys) == 60


def test_only_what_changed_is_encoded_again(tmp_path: Path, rows: list[Row], found: Index) -> None:
    work(tmp_path, found, Stub())
    more = pictures(tmp_path / "more", 63)[60:]
    moved = [
        Row(**{**{f: getattr(r, f) for f in Row.__slots__}, "name": "x" + r.name, "caption": "b"}) for r in rows
    ]
    stub = Stub()
    work(tmp_path, indexed(tmp_path / "index2", [*moved, *more]), stub, owner="two")
    assert len(stub.keys) == 3


def test_several_workers_share_the_work(tmp_path: Path, found: Index) -> None:
    stubs = [Stub(0.002) for _ in range(3)]
    threads = [
        threading.Thread(target=work, args=(tmp_path, found, stub), kwargs={"owner": f"w{n}"})
        for n, stub in enumerate(stubs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [key for stub in stubs for key in stub.keys]
    assert len(every) == len(set(every)) == 60
    work(tmp_path / "alone", found, Stub())
    assert _bytes(tmp_path) == _bytes(tmp_path / "alone")


def test_killed_workers_and_a_rerun_give_the_same_bytes(tmp_path: Path) -> None:
    rows = pictures(tmp_path / "pictures", 400)
    found = indexed(tmp_path / "index", rows)
    work(tmp_path / "calm", found, Stub())
    shared, chance = tmp_path / "wild", random.Random(3)
    killed = 0
    for _ in range(3):
        before = len(_logged(shared))
        worker = _start(shared, 0.02)
        while len(_logged(shared)) == before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.7))
        killed += worker.poll() is None
        worker.kill()
        worker.wait()
    last = [_start(shared, 0.001) for _ in range(2)]
    assert [process.wait(30) for process in last] == [0, 0]
    assert killed == 3
    assert _bytes(shared) == _bytes(tmp_path / "calm")
    times = Counter(_logged(shared))
    assert len(times) == 400
    assert not [n for n in os.listdir(_folder(shared)) if n.startswith(tables.DRAFT)]
    work(shared, found, Stub(), owner="after")
    assert os.listdir(shared / "work" / "workers") == ["after"], "files of the dead stay for ever"
    assert not [n for n in os.listdir(shared / "work") if n.startswith(".")]


def test_a_stopped_worker_ends_soon_and_gives_its_tasks_back(tmp_path: Path) -> None:
    found = indexed(tmp_path / "index", pictures(tmp_path / "pictures", 200))
    shared = tmp_path / "shared"
    worker = _start(shared, 0.05)
    while not _logged(shared):
        time.sleep(0.02)
    began = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(5) == 3
    assert time.monotonic() - began < 2
    began = time.monotonic()
    work(shared, found, Stub(), owner="next", rhythm=session.Rhythm(60, 5))
    assert time.monotonic() - began < 10, "it waited for the one that had said goodbye"


def test_a_broken_picture_is_named_once_and_never_asked_for_again(tmp_path: Path, rows: list[Row]) -> None:
    bad = row(tmp_path / "pictures", "bad.png", b"\x89PNG\r\n\x1a\n nothing", (64, 64))
    cut = row(tmp_path / "pictures", "cut.bmp", Path(rows[0].file).read_bytes()[:-900], (64, 64))
    found = indexed(tmp_path / "index", [*rows, bad, cut])
    made = work(tmp_path, found, Stub())
    assert {(p["name"], p["kind"]) for p in made.problems} == {("bad.png", "broken"), ("cut.bmp", "broken")}
    assert made.tally.problems == 2
    assert len(Catalogue.open(_folder(tmp_path))) == 60
    assert work(tmp_path, found, Stub(), owner="two").planned == 0


def test_a_picture_that_changed_or_went_away_is_asked_for_again(
    tmp_path: Path, rows: list[Row], found: Index
) -> None:
    held = Path(rows[7].file).read_bytes()
    Path(rows[7].file).write_bytes(held[:-1] + b"!")
    Path(rows[9].file).rename(tmp_path / "away")
    made = work(tmp_path, found, Stub())
    assert {(p["name"], p["kind"]) for p in made.problems} == {
        (rows[7].name, "changed"),
        (rows[9].name, "unreadable"),
    }
    Path(rows[7].file).write_bytes(held)
    (tmp_path / "away").rename(rows[9].file)
    stub = Stub()
    again = work(tmp_path, found, stub, owner="two")
    assert again.planned == 2 == len(stub.keys)
    assert again.problems == ()


def test_shards_are_named_after_what_they_hold(tmp_path: Path, rows: list[Row]) -> None:
    # Named after what was planned, another time's shard had the same name and other slots.
    held = Path(rows[5].file).read_bytes()
    found = indexed(tmp_path / "index", rows)
    Path(rows[5].file).write_bytes(held + b"!")
    work(tmp_path, found, Stub())
    for name in shard_names(_folder(tmp_path)):
        one = shard.Shard(_folder(tmp_path) / name)
        assert name == shard.name(one.form.width, one.form.height, one.tables()[2])
    Path(rows[5].file).write_bytes(held)
    work(tmp_path / "again", found, Stub())
    assert set(_bytes(tmp_path / "again")) != set(_bytes(tmp_path))


def test_a_node_that_can_read_no_picture_leaves_them_to_the_others(tmp_path: Path, found: Index) -> None:
    (tmp_path / "pictures").rename(tmp_path / "away")
    with pytest.raises(RunError, match="None of the last .* can be read on this node.*00") as raised:
        work(tmp_path, found, Stub())
    assert raised.value.failure == "unreadable"
    (tmp_path / "away").rename(tmp_path / "pictures")
    made = work(tmp_path, found, Stub(), owner="two")
    assert made.problems == () and len(Catalogue.open(_folder(tmp_path))) == 60


def test_what_was_set_aside_under_an_unfinished_plan_is_made_again(tmp_path: Path, found: Index) -> None:
    class Dying(Stub):
        def encode(self, bucket: Bucket, inputs: Any, keys: Any) -> list[np.ndarray]:
            if shard_names(_folder(tmp_path)):
                raise ZeroDivisionError
            return super().encode(bucket, inputs, keys)

    with pytest.raises(ZeroDivisionError):
        work(tmp_path, found, Dying())
    gone = shard_names(_folder(tmp_path))
    assert 0 < len(gone) < 4
    (_folder(tmp_path) / gone[0]).unlink()
    made = work(tmp_path, found, Stub(), owner="two")
    assert made.tally.entries > 0 and made.problems == ()
    assert len(Catalogue.open(_folder(tmp_path))) == 60


def test_a_list_of_problems_that_was_not_finished_is_passed_over(tmp_path: Path, found: Index) -> None:
    lists = _folder(tmp_path) / writing.PROBLEMS
    lists.mkdir(parents=True)
    (lists / f"{tables.DRAFT}x-a.jsonl").write_text('{"key": "00')
    work(tmp_path, found, Stub())
    assert writing.problems(_folder(tmp_path)) == []


def test_a_full_disk_is_named_leaves_nothing_half_and_a_rerun_goes_on(
    tmp_path: Path, found: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrote, whole = [], tables.write_draft

    def full(draft: Path, parts: Any, metadata: Any) -> None:
        if draft.name.endswith(".safetensors"):
            wrote.append(draft)
            if len(wrote) == 2:
                draft.write_bytes(b"half of it")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(draft, parts, metadata)

    monkeypatch.setattr(tables, "write_draft", full)
    with pytest.raises(RunError, match="No space left") as raised:
        work(tmp_path, found, Stub())
    assert raised.value.failure == "disk-full"
    assert len(shard_names(_folder(tmp_path))) == 1
    assert not [n for n in os.listdir(_folder(tmp_path)) if n.startswith(tables.DRAFT)]
    monkeypatch.undo()
    stub = Stub()
    work(tmp_path, found, stub, owner="two")
    work(tmp_path / "calm", found, Stub())
    assert _bytes(tmp_path) == _bytes(tmp_path / "calm")
    assert 0 < len(stub.keys) < 60


def test_numbers_that_are_not_finite_end_the_work_by_name(tmp_path: Path, found: Index) -> None:
    class Overflowing(Stub):
        def encode(self, bucket: Bucket, inputs: Any, keys: Any) -> list[np.ndarray]:
            return [array / 0 for array in super().encode(bucket, inputs, keys)]

    with np.errstate(all="ignore"), pytest.raises(RunError, match="not finite"):
        work(tmp_path, found, Overflowing())
    assert shard_names(_folder(tmp_path)) == []


def test_a_failure_of_the_encoder_releases_the_tasks(tmp_path: Path, found: Index) -> None:
    class Failing(Stub):
        def encode(self, bucket: Bucket, inputs: Any, keys: Any) -> list[np.ndarray]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work(tmp_path, found, Failing())
    began = time.monotonic()
    work(tmp_path, found, Stub(), owner="two", rhythm=session.Rhythm(60, 5))
    assert time.monotonic() - began < 10


def test_a_failure_of_what_one_does_for_all_is_everybodys(tmp_path: Path, found: Index) -> None:
    calls: list[int] = []

    def act(number: int) -> None:
        calls.append(number)
        time.sleep(0.3)
        raise making_error

    making_error = RunError("disk-full", "No room.", "Make some.")
    told: list[str] = []

    def member(owner: str) -> None:
        with session.Session(tmp_path / "work", owner) as one:
            try:
                one.once("ingest", act)
            except RunError as error:
                told.append(f"{error.failure} {error.message}")

    threads = [threading.Thread(target=member, args=(f"w{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == ["disk-full No room."] * 3
    assert calls == [1]


def test_problem_lists_and_done_marks_are_plain_json(tmp_path: Path, rows: list[Row]) -> None:
    bad = row(tmp_path / "pictures", "line\nbreak.png", b"nothing", (64, 64))
    work(tmp_path, indexed(tmp_path / "index", [*rows, bad]), Stub())
    paths = [*(_folder(tmp_path) / "problems").iterdir()]
    assert [json.loads(line)["name"] for p in paths for line in p.read_text().splitlines()] == ["line\nbreak.png"]


@pytest.mark.parametrize("known", [True, False])
def test_a_shard_that_lost_its_tail_is_moved_aside_and_made_again(
    tmp_path: Path, found: Index, known: bool
) -> None:
    work(tmp_path, found, Stub())
    before = _bytes(tmp_path)
    torn = _folder(tmp_path) / sorted(before)[1]
    os.truncate(torn, torn.stat().st_size - 5)
    if not known:
        (_folder(tmp_path) / "catalogue.table").unlink()
    stub = Stub()
    made = work(tmp_path, found, stub, owner="two")
    assert made.damaged == 1 and 0 < len(stub.keys) < 60
    assert torn.with_name(torn.name + verify.ASIDE).exists()
    (line,) = (_folder(tmp_path) / verify.JOURNAL).read_text().splitlines()
    assert json.loads(line)["file"] == torn.name and "lost its tail" in json.loads(line)["why"]
    assert _bytes(tmp_path) == before
    assert work(tmp_path, found, Stub(), owner="three").damaged == 0


def test_an_entry_that_was_read_damaged_is_made_again_by_the_next_prep(tmp_path: Path, found: Index) -> None:
    work(tmp_path, found, Stub())
    path = _folder(tmp_path) / shard_names(_folder(tmp_path))[1]
    whole = {key: found for key, found in _entries(_folder(tmp_path))}
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    held = Catalogue.open(_folder(tmp_path), RECIPE.to_json())
    places = held.locate(made_cache.order(tmp_path, found).wanted().keys)
    assert not healing.doubted(held, places).any()
    bad = [p for p in places.tolist() if held.file(p) == (path, shard.Shard(path).count - 1)]
    with pytest.raises(DataError, match=r"checksum of entry .* is another one.* Run clusterft prep"):
        held.read(bad[0], check=True)
    doubted = healing.doubted(held, places)
    assert doubted.sum() == shard.Shard(path).count, "what is in such a shard counts as missing"
    stub = Stub()
    assert work(tmp_path, found, stub, owner="two").damaged == 1
    assert len(stub.keys) == 1 and not path.exists()
    assert {key: found for key, found in _entries(_folder(tmp_path))} == whole
    assert healing.suspects(_folder(tmp_path)) == set()


def test_a_suspect_that_is_whole_stays(tmp_path: Path, found: Index) -> None:
    work(tmp_path, found, Stub())
    name = shard_names(_folder(tmp_path))[0]
    put(_folder(tmp_path) / "suspects" / name, "")
    put(_folder(tmp_path) / "suspects" / "gone.safetensors", "")
    before = _bytes(tmp_path)
    assert work(tmp_path, found, Stub(), owner="two").damaged == 0
    assert _bytes(tmp_path) == before and healing.suspects(_folder(tmp_path)) == set()


def test_storage_that_does_not_answer_moves_nothing(
    tmp_path: Path, found: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(tmp_path, found, Stub())
    before = _bytes(tmp_path)

    class Gone:
        def __init__(self, path: Path) -> None:
            raise OSError(116, "Stale file handle")

    monkeypatch.setattr(healing, "Handle", Gone)
    with pytest.raises(RunError, match="Stale file handle"):
        work(tmp_path, found, Stub(), owner="two")
    assert _bytes(tmp_path) == before


def _entries(folder: Path) -> list[tuple[bytes, bytes]]:
    return [pair for name in shard_names(folder) for pair in _pairs(folder / name)]


def _entries_of(name: str, data: bytes, scratch: Path) -> list[tuple[bytes, bytes]]:
    path = scratch / name
    path.write_bytes(data)
    return _pairs(path)


def _pairs(path: Path) -> list[tuple[bytes, bytes]]:
    one, handle = shard.Shard(path), shard.Handle(path)
    keys = one.tables()[2]
    return [(keys[slot].tobytes(), one.raw(handle, slot, check=True)) for slot in range(one.count)]


def test_a_disk_that_hangs_keeps_nobody_from_stopping(tmp_path: Path, found: Index) -> None:
    class Stuck:
        def begin(self, *_: Any) -> Any:
            return self

        def arrived(self, seconds: float) -> bool:
            time.sleep(seconds)
            return False

        def ahead(self, *_: Any) -> int:
            return 2

        def close(self) -> None:
            pass

    stop = session.Stop()
    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    with session.Session(tmp_path / "work", "one", stop) as member, pytest.raises(session.Stopped):
        making.make(member, made_cache.order(tmp_path, found), Stuck, Stub)  # type: ignore[arg-type]
    assert time.monotonic() - began < 3


def test_mirrored_latents_follow_where_they_are_wanted(tmp_path: Path, found: Index) -> None:
    recipe = made_cache.changed(RECIPE, flip=True, dtype="bfloat16")
    work(tmp_path, found, Stub(recipe=recipe))
    held = Catalogue.open(tmp_path / "latents" / recipe.digest(), recipe.to_json())
    place = int(held.locate(made_cache.order(tmp_path, found, recipe).wanted().keys)[0])
    both = held.read(place, check=True)
    assert both.dtype == np.float32 and both.ndim == 4
    np.testing.assert_array_equal(both[0], both[1][..., ::-1])
