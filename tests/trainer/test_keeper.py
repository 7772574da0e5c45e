"""Proves that only a whole checkpoint of this very run is continued from, that none is made with a gap, and that
an older one goes only after the newer is on the disk.

Two ranks are two threads, and what they say to each other goes through a barrier.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ranks

torch = pytest.importorskip("torch")

from clusterft_trainer import checkpoint, dist, progress  # noqa: E402
from clusterft_trainer.buckets import Bucket, Epochs, Position, Shape  # noqa: E402
from clusterft_trainer.checkpoint import Found, Identity, Keeper, State, changes, shards  # noqa: E402
from clusterft_trainer.checkpoint.keeper import Saving  # noqa: E402
from clusterft_trainer.checkpoint.manifest import Role  # noqa: E402
from clusterft_trainer.config import TrainConfig  # noqa: E402
from clusterft_trainer.dist import Place  # noqa: E402
from clusterft_trainer.engine.pieces import Piece, slice_of  # noqa: E402
from clusterft_trainer.errors import RunError  # noqa: E402

pytestmark = pytest.mark.trainer

IDENTITY = Identity(seed=1, data="data", trained="weights", objective="epsilon", model="m")
EPOCHS = Epochs([Bucket(64, 64)] * 100, 1, Shape(2, 1, 2))


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
    return meeting


class Halves:
    """An engine whose rank holds one half of two weights and of their optimizer's state."""

    kind, replicated, count = "ddp", True, 3.0
    shapes = {"unet.a": (3, 5), "unet.b": (1,)}

    def __init__(self, place: Place, value: float) -> None:
        self.held: list[Piece] = []
        for number, (name, shape) in enumerate(self.shapes.items()):
            numel = int(torch.tensor(shape).prod())
            first, end = slice_of(numel, place.rank, place.world)
            whole = torch.arange(numel) + 100.0 * number + value
            if first < end:
                states = {"exp_avg": -whole[first:end]}
                self.held.append(Piece(name, shape, first, whole[first:end].clone(), states))

    def pieces(self) -> list[Piece]:
        return self.held

    def scalars(self) -> dict[str, float]:
        return {}

    def rest(self) -> dict[str, dict[str, Any]]:
        return {"unet.a": {"row": torch.ones(3), "d": 0.5}, "unet.b": {"n": 7}}

    def load(self, source: Any) -> None:
        self.source = source
        for piece in self.held:
            piece.weight.copy_(source.read("weight", piece.name, piece.offset, piece.end))


def keeper(folder: Path, place: Place, **checkpoints: object) -> Keeper:
    """One rank's keeper of the checkpoints in a folder."""
    config = TrainConfig.model_validate(ranks.settings(checkpoints={"every_steps": 1, "keep": 2} | checkpoints))
    return Keeper(folder, config, IDENTITY, place)


def save(
    two: Meeting, folder: Path, step: int, roles: tuple[Role, ...] = ("kept",), held_out: float | None = None,
    **checkpoints: object,
) -> None:  # fmt: skip
    """A checkpoint of both ranks, complete."""
    state = State(step, Position(0, step))

    def one(place: Place) -> None:
        keep = keeper(folder, place, **checkpoints)
        keep.save(Halves(place, step), None, Saving(state, EPOCHS, roles, held_out, wait=True))  # type: ignore[arg-type]
        keep.close()

    two.run(one)


def newest(two: Meeting, folder: Path) -> Found | None:
    """What both ranks take; they must take the same."""
    first, second = two.run(lambda place: keeper(folder, place).newest())
    assert first == second
    return first  # type: ignore[no-any-return]


def flip(path: Path) -> None:
    """Change one byte: the size stays."""
    path.write_bytes(path.read_bytes()[:-1] + b"X")


def steps(folder: Path) -> list[int]:
    return [f.state.step for f in checkpoint.complete(folder)]


FILES = [f"rank-0000{r}-of-00002.safetensors" for r in range(2)]


def test_what_two_ranks_saved_is_read_back_whole(tmp_path: Path, two: Meeting) -> None:
    save(two, tmp_path, 4)
    (found,) = checkpoint.complete(tmp_path)
    assert sorted(found.manifest.files) == FILES and found.state == State(4, Position(0, 4))
    assert found.manifest.sample == 16 and found.manifest.global_batch == 4 and found.manifest.count == 3.0
    stored = shards.Shards(found.folder, FILES)
    assert stored.shapes == Halves.shapes
    assert stored.read("weight", "unet.a", 0, 15).tolist() == [4.0 + i for i in range(15)]
    assert stored.read("exp_avg", "unet.a", 5, 9).tolist() == [-9.0, -10.0, -11.0, -12.0]
    assert stored.read("weight", "unet.b", 0, 1).tolist() == [104.0]
    rest = stored.rest()
    assert (
        rest["unet.b"] == {"n": 7} and rest["unet.a"]["d"] == 0.5 and rest["unet.a"]["row"].tolist() == [1.0] * 3
    )
    with pytest.raises(RunError, match="lacks elements 15 to 16 of weight unet.a"):
        stored.read("weight", "unet.a", 0, 16)


def test_another_world_reads_it_and_another_optimizer_begins_anew(tmp_path: Path, two: Meeting) -> None:
    save(two, tmp_path, 4)
    (found,) = checkpoint.complete(tmp_path)
    alone = Place(0, 1, 0, 1, "cpu")
    engine = Halves(alone, 0)
    assert keeper(tmp_path, alone).restore(engine, None, found) == []  # type: ignore[arg-type]
    assert engine.held[0].weight.tolist() == [4.0 + i for i in range(15)]
    assert engine.source.states == ("exp_avg",) and engine.source.count == 3.0
    lion = TrainConfig.model_validate(ranks.settings(learn={"unet": {"rate": 1e-3}, "optimizer": "lion"}))
    notes = Keeper(tmp_path, lion, IDENTITY, alone).restore(engine, None, found)  # type: ignore[arg-type]
    assert notes == ["the state of adamw means nothing to lion, which begins anew"]
    assert engine.source.states == () and engine.source.count == 0.0 and engine.source.rest == {}


def test_a_gang_that_was_replaced_gives_no_checkpoint_its_name(
    tmp_path: Path, two: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTERFT_ATTEMPT", "2")
    folder = tmp_path / "checkpoints"
    (tmp_path / "run.json").write_text(json.dumps({"plan": {"first_attempt": 2}}))
    save(two, folder, 1)
    (tmp_path / "run.json").write_text(json.dumps({"plan": {"first_attempt": 3}}))
    with pytest.raises(RunError, match="planned anew from attempt 3"):
        save(two, folder, 2)
    assert steps(folder) == [1]


@pytest.mark.parametrize("damage", ["no manifest", "cut manifest", "no file", "short file", "schema"])
def test_a_damaged_one_is_passed_over_with_the_reason(
    tmp_path: Path, two: Meeting, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(two, tmp_path, 1), save(two, tmp_path, 2)
    folder = tmp_path / "step-00000002"
    manifest, file = folder / "manifest.json", folder / FILES[0]
    told = {"no manifest": "no manifest", "cut manifest": "cannot be read", "no file": f"{FILES[0]} is missing",
            "short file": f"{FILES[0]} has 3 bytes", "schema": "schema 9"}[damage]  # fmt: skip
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "cut manifest":
        manifest.write_text(manifest.read_text()[:40])
    elif damage == "no file":
        file.unlink()
    elif damage == "short file":
        file.write_bytes(b"123")
    else:
        manifest.write_text(manifest.read_text().replace('"schema": 2', '"schema": 9'))
    capsys.readouterr()
    found = newest(two, tmp_path)
    assert found is not None and found.state.step == 1
    (record,) = [progress.decode(line) for line in capsys.readouterr().out.splitlines()]
    assert isinstance(record, progress.Notice)
    assert "step-00000002" in record.text and told in record.text


@pytest.mark.parametrize("name", FILES)  # one for each rank to find
def test_a_corrupt_one_is_passed_over_and_told(
    tmp_path: Path, two: Meeting, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    save(two, tmp_path, 1), save(two, tmp_path, 2)
    assert (found := newest(two, tmp_path)) is not None and found.state.step == 2
    flip(tmp_path / "step-00000002" / name)
    capsys.readouterr()
    assert (found := newest(two, tmp_path)) is not None and found.state.step == 1
    (record,) = [progress.decode(line) for line in capsys.readouterr().out.splitlines()]
    assert isinstance(record, progress.Notice)
    assert "step-00000002" in record.text and name in record.text and "checksum" in record.text
    flip(tmp_path / "step-00000001" / name)
    with pytest.raises(RunError, match="No checkpoint in .* is whole"):
        newest(two, tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": "other"}, "the pictures"),
        ({"seed": 2}, "seed decides the order"),
        ({"trained": "x"}, "which weights are trained"),
        ({"objective": "v"}, "what the model learns"),
        ({"model": "other"}, "the model itself"),
    ],
)
def test_another_run_is_refused_with_the_reason(
    tmp_path: Path, two: Meeting, change: dict[str, Any], told: str
) -> None:
    save(two, tmp_path, 5)
    (found,) = checkpoint.complete(tmp_path)
    changes.refuse(found, IDENTITY)
    with pytest.raises(RunError, match=told):
        changes.refuse(found, dataclasses.replace(IDENTITY, **change))


def test_each_changed_setting_is_told_with_both_values(tmp_path: Path, two: Meeting) -> None:
    save(two, tmp_path, 5)
    (found,) = checkpoint.complete(tmp_path)
    body = TrainConfig.model_validate(
        ranks.settings(
            checkpoints={"every_steps": 1, "keep": 2},
            learn={"unet": {"rate": 5e-4}, "warmup_steps": 2},
            engine={"kind": "ddp"},
        )
    ).model_dump(mode="json")
    assert changes.told(found, body) == [
        "engine.kind is ddp now, zero before",
        "engine.offload is not set now, none before",
        "engine.stage is not set now, 2 before",
        "learn.unet.rate is 0.0005 now, 0.001 before",
    ]


def test_kept_rolling_and_best_ones_stay_side_by_side(tmp_path: Path, two: Meeting) -> None:
    save(two, tmp_path, 1, ("kept",))
    save(two, tmp_path, 2, ("rolling", "best"), held_out=0.2)
    save(two, tmp_path, 3, ("kept", "rolling"))
    assert steps(tmp_path) == [3, 2, 1], "2 is the best"
    save(two, tmp_path, 4, ("best",), held_out=0.1)
    assert steps(tmp_path) == [4, 3, 1], "2 was the best"
    save(two, tmp_path, 5, ("kept",))
    assert steps(tmp_path) == [5, 4, 3], "two that are kept; 3 is the newest rolling one, too"
    save(two, tmp_path, 6, ("rolling",))
    save(two, tmp_path, 7, ("end",))
    assert steps(tmp_path) == [7, 5, 4, 3]
    assert not list(tmp_path.glob(".new-*"))


def test_a_corrupt_one_does_not_count_for_one_that_is_kept(tmp_path: Path, two: Meeting) -> None:
    for step in (1, 9, 2):  # 9 was passed over, so the run went on from 1
        save(two, tmp_path, step, keep=1)
    assert steps(tmp_path) == [9, 2]


def test_training_goes_on_while_a_checkpoint_is_written_and_the_old_one_stays_until_it_is_there(
    tmp_path: Path, two: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(two, tmp_path, 1, keep=1)
    gate, write = threading.Event(), shards.Stage.write

    def slow(stage: shards.Stage, path: Path) -> dict[str, Any]:
        assert gate.wait(20)
        return write(stage, path)

    monkeypatch.setattr(shards.Stage, "write", slow)
    seen: dict[int, list[bool]] = {}

    def one(place: Place) -> None:
        keep, engine = keeper(tmp_path, place, keep=1), Halves(place, 2)
        keep.save(engine, None, Saving(State(2, Position(0, 2)), EPOCHS, ("kept",)))  # type: ignore[arg-type]
        before = keep.ready
        for piece in engine.held:
            piece.weight.fill_(-1)  # the next step moves the weights
        two.gather(None)
        if place.leads:
            assert steps(tmp_path) == [1]
            gate.set()
        keep.finish()
        keep.close()
        seen[place.rank] = [before, keep.ready]

    two.run(one)
    assert seen == {0: [False, False], 1: [False, False]}
    assert steps(tmp_path) == [2]
    stored = shards.Shards(tmp_path / "step-00000002", FILES)
    assert stored.read("weight", "unet.a", 0, 3).tolist() == [2.0, 3.0, 4.0]


def test_a_rank_that_cannot_write_fails_all_and_the_old_one_stays(
    tmp_path: Path, two: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(two, tmp_path, 1, keep=1)
    write = shards.Stage.write

    def full(stage: shards.Stage, path: Path) -> dict[str, Any]:
        if path.name == FILES[1]:
            raise OSError(28, "No space left on device")
        return write(stage, path)

    monkeypatch.setattr(shards.Stage, "write", full)
    told: list[RunError] = []

    def one(place: Place) -> None:
        keep = keeper(tmp_path, place, keep=1)
        with pytest.raises(RunError) as caught:
            keep.save(
                Halves(place, 2),  # type: ignore[arg-type]
                None,
                Saving(State(2, Position(0, 2)), EPOCHS, ("kept",), wait=True),
            )
        told.append(caught.value)
        keep.close()

    two.run(one)
    assert [e.failure for e in told] == ["disk-full"] * 2 and all(e.everywhere for e in told)
    assert steps(tmp_path) == [1]


def test_a_manifest_says_why_it_was_written(tmp_path: Path, two: Meeting) -> None:
    save(two, tmp_path, 1, ("stop",))
    body = json.loads((tmp_path / "step-00000001" / "manifest.json").read_text())
    assert body["roles"] == ["stop"] and body["schema"] == 2 and body["config"]["seed"] == 7
