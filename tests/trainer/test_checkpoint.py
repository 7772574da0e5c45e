"""Proves that only a whole checkpoint of this very run is continued from, and that none is made with a gap.

Needs no torch: two ranks are two threads, and what they say to each other goes through a barrier.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from clusterft_trainer import checkpoint, dist, metrics, progress
from clusterft_trainer.buckets import Position
from clusterft_trainer.checkpoint import Found, Identity, Keeper, State
from clusterft_trainer.dist import Place
from clusterft_trainer.errors import RunError
from clusterft_trainer.progress import Step

IDENTITY = Identity(2, 8, 1, "data", "zero-2", "fp32", "unet adamw", "builtin:tiny")
TUNING = {"learn.unet.rate": 1e-3, "learn.clip": None}
FILES = {name: name.encode() * 5 for name in ("a.bin", "b.bin", "c.bin", "d.bin", "deep/e.bin")}


class Meeting:
    """The collectives of `dist`, between threads."""

    def __init__(self, world: int) -> None:
        self._barrier = threading.Barrier(world, timeout=20)
        self._rank = threading.local()
        self._items: list[Any] = [None] * world

    def gather(self, item: Any) -> list[Any]:
        self._items[self._rank.now] = item
        self._barrier.wait()
        items = list(self._items)
        self._barrier.wait()
        return items

    def on_lead(self, place: Place, action: Callable[[], Any]) -> Any:
        return self.gather(action() if place.leads else None)[0]

    def run(self, work: Callable[[Place], Any]) -> list[Any]:
        """The work of every rank, at the same time."""
        world = len(self._items)

        def one(rank: int) -> Any:
            self._rank.now = rank
            return work(Place(rank, world, rank, world, "cpu"))

        with ThreadPoolExecutor(world) as pool:
            return list(pool.map(one, range(world)))


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Meeting:
    """Two ranks that meet."""
    meeting = Meeting(2)
    monkeypatch.setattr(dist, "gather", meeting.gather)
    monkeypatch.setattr(dist, "on_lead", meeting.on_lead)
    monkeypatch.setattr(dist, "barrier", lambda: meeting.gather(None))
    return meeting


def keeper(folder: Path, place: Place, keep: int = 2, **tuning: object) -> Keeper:
    """One rank's keeper of the checkpoints in a folder."""
    return Keeper(folder, keep, IDENTITY, TUNING | tuning, place)


class Engine:
    """Saves and loads as an accelerator does; only rank 0 of two saves."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def save_state(self, folder: str) -> None:
        for name, body in FILES.items() if self._place.leads else ():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(body)

    def load_state(self, folder: str) -> None:
        assert {n: Path(folder, n).read_bytes() for n in FILES} == FILES


def write(folder: Path, step: int) -> Path:
    """A checkpoint as the trainer leaves it."""
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "weights.bin").write_bytes(b"12345")
    manifest = {
        "schema": 1,
        "step": step,
        "epoch": 1,
        "batch": 3,
        "identity": dataclasses.asdict(IDENTITY),
        "files": {"weights.bin": {"size": 5, "sha256": hashlib.sha256(b"12345").hexdigest()}},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def test_complete_ones_are_found_newest_first(tmp_path: Path) -> None:
    write(tmp_path, 20), write(tmp_path, 100), write(tmp_path, 3)
    (tmp_path / ".new-step-00000200").mkdir()
    found = checkpoint.complete(tmp_path)
    assert [f.state.step for f in found] == [100, 20, 3]
    assert found[0].state.position == Position(1, 3)
    assert checkpoint.complete(tmp_path / "absent") == []


@pytest.mark.parametrize("damage", ["no manifest", "cut manifest", "no file", "short file", "schema"])
def test_a_damaged_one_does_not_exist(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 1)
    newest = write(tmp_path, 2)
    manifest = newest / "manifest.json"
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "cut manifest":
        manifest.write_text(manifest.read_text()[:40])
    elif damage == "no file":
        (newest / "weights.bin").unlink()
    elif damage == "short file":
        (newest / "weights.bin").write_bytes(b"123")
    else:
        manifest.write_text(manifest.read_text().replace('"schema": 1', '"schema": 2'))
    assert [f.state.step for f in checkpoint.complete(tmp_path)] == [1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"world": 4, "global_batch": 16}, "written by 2 ranks, this run has 4"),
        ({"data": "other"}, r"data \(data before, other now\)"),
        ({"seed": 2}, "seed"),
        ({"engine": "ddp"}, "engine"),
        ({"world": 4, "seed": 9}, "world .* seed"),
    ],
)
def test_another_run_is_refused_with_the_reason(tmp_path: Path, change: dict[str, object], told: str) -> None:
    write(tmp_path, 5)
    (found,) = checkpoint.complete(tmp_path)
    checkpoint.refuse_changes(found, IDENTITY)
    with pytest.raises(RunError, match=told):
        checkpoint.refuse_changes(found, dataclasses.replace(IDENTITY, **change))  # type: ignore[arg-type]


def test_a_file_that_one_rank_does_not_see_yet_is_in_the_manifest(
    tmp_path: Path, two: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = {0: {"b.bin"}, 1: {"a.bin", "deep/e.bin"}}
    look = checkpoint._names
    monkeypatch.setattr(
        checkpoint, "_names", lambda draft: [n for n in look(draft) if n not in blind[two._rank.now]]
    )
    two.run(lambda place: keeper(tmp_path, place).write(Engine(place), State(4, Position(0, 4))))  # type: ignore[arg-type]
    (found,) = checkpoint.complete(tmp_path)
    assert found.files == {name: hashlib.sha256(body).hexdigest() for name, body in FILES.items()}


def test_each_file_falls_to_one_rank_that_sees_it() -> None:
    seen = [["a", "b", "c", "d"], ["b", "c", "e"], []]
    parts = [checkpoint.share(seen, rank) for rank in range(3)]
    assert sorted(n for part in parts for n in part) == ["a", "b", "c", "d", "e"]
    assert all(set(part) <= set(names) for part, names in zip(parts, seen, strict=True))
    everywhere = [checkpoint.share([["a", "b", "c", "d"]] * 2, rank) for rank in range(2)]
    assert [len(part) for part in everywhere] == [2, 2]


def newest(two: Meeting, folder: Path) -> Found | None:
    """What both ranks take; they must take the same."""
    first, second = two.run(lambda place: keeper(folder, place).newest())
    assert first == second
    return first  # type: ignore[no-any-return]


def flip(path: Path) -> None:
    """Change one byte: the size stays."""
    path.write_bytes(b"X" + path.read_bytes()[1:])


@pytest.mark.parametrize("name", list(FILES)[:2])  # one for each rank to find
def test_a_corrupt_one_is_passed_over_and_told(
    tmp_path: Path, two: Meeting, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for step in (1, 2):
        two.run(lambda place, s=step: keeper(tmp_path, place).write(Engine(place), State(s, Position(0, s))))  # type: ignore[misc]
    assert (found := newest(two, tmp_path)) is not None and found.state.step == 2
    flip(tmp_path / "step-00000002" / name)
    capsys.readouterr()
    assert (found := newest(two, tmp_path)) is not None and found.state.step == 1
    (record,) = [progress.decode(line) for line in capsys.readouterr().out.splitlines()]
    assert isinstance(record, progress.Notice)
    assert "step-00000002" in record.text and name in record.text and "checksum" in record.text
    flip(tmp_path / "step-00000001" / name)
    with pytest.raises(RunError, match="All checkpoints .* are corrupt"):
        newest(two, tmp_path)


def test_a_corrupt_one_does_not_count_for_one_that_is_kept(tmp_path: Path, two: Meeting) -> None:
    for step in (1, 9, 2):  # 9 was passed over, so the run went on from 1
        two.run(lambda place, s=step: keeper(tmp_path, place, 1).write(Engine(place), State(s, Position(0, s))))  # type: ignore[misc]
    assert [f.state.step for f in checkpoint.complete(tmp_path)] == [9, 2]


def test_what_changed_since_is_told_when_a_run_goes_on(tmp_path: Path, two: Meeting) -> None:
    two.run(lambda place: keeper(tmp_path, place).write(Engine(place), State(1, Position(0, 1))))  # type: ignore[arg-type]
    (found,) = checkpoint.complete(tmp_path)
    place = Place(0, 2, 0, 2, "cpu")
    assert keeper(tmp_path, place).restore(Engine(place), found) == []  # type: ignore[arg-type]
    changed = keeper(tmp_path, place, **{"learn.clip": 1.0}).restore(Engine(place), found)  # type: ignore[arg-type]
    assert changed == ["learn.clip is 1.0 now, None before"]


@pytest.mark.parametrize("text", ["x" * 9_000, "\U0001f4be" * 3_000, "ä" * 400], ids=["long", "wide", "odd"])
def test_a_long_reason_keeps_both_ends_in_a_short_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    metrics.failed("bug", f"begin {text} end", f"begin {text} end")
    metrics.notice(f"begin {text} end")
    for line in capsys.readouterr().out.splitlines():
        assert len(line) < 5_000
        record = progress.decode(line)
        assert isinstance(record, progress.Failed | progress.Notice)
        told = record.message if isinstance(record, progress.Failed) else record.text
        assert told.startswith("begin ") and told.endswith(" end") and " ... " in told
    metrics.notice(short := "short " * 300)
    assert progress.decode(capsys.readouterr().out).text == short  # type: ignore[union-attr]


def test_the_account_forgets_steps_behind_the_checkpoint(tmp_path: Path) -> None:
    lines = [json.dumps({"step": s, "loss": None if s == 2 else float(s)}) for s in (1, 2, 3, 4)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([*lines, '{"step": 5, "lo']) + "\n")
    journal = metrics.Journal(tmp_path, resumed_from=3)
    assert journal.losses[0] == 1.0 and journal.losses[1] != journal.losses[1]
    journal.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_metrics_of_a_step_are_written_as_json(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    journal = metrics.Journal(tmp_path, resumed_from=None)
    journal.step(Step(1, 2, 0, float("inf"), 0.1, None, 3.0, 0.25, 9.0))
    journal.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] is None and json.loads(line)["data_wait"] == 0.25
    assert list((tmp_path / "tensorboard").glob("events.*"))
