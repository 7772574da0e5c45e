"""Proves that a run which was interrupted is, after resuming, the run that was not.

On the same topology bit for bit, in every loss and in the exported weights; on another one to 1e-4. And that no
sample is seen twice or missed in an epoch: ranks note what they compute, and the notes are counted.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ranks
import test_topology
from ranks import Gang

from clusterft_trainer import checkpoint, progress

pytestmark = pytest.mark.trainer

STEPS, IMAGES = 14, 30


def settings(engine: str, world: int, **changes: Any) -> dict[str, Any]:
    """Three buckets, short batches, more than one epoch, a checkpoint now and then."""
    return (
        ranks.settings(
            engine=test_topology.ENGINES[engine],
            batch={"per_slot": 4 // world},
            data={
                "sources": [{"builtin": "shapes", "images": IMAGES}],
                "resolution": 64,
                "captions": {"dropout": 0.2},
            },
            learn={
                "unet": {"rate": 1e-3},
                "text_encoder_1": {"rate": 1e-4},
                "ema": {"decay": 0.9},
                "warmup_steps": 3,
            },
            objective={"min_snr": 5, "noise_offset": 0.1},
            checkpoints={"every_steps": 3, "keep": 2, "rolling": "2 steps"},
            steps=STEPS,
        )
        | changes
    )


def start(gang: Gang, folder: Path, body: dict[str, Any], world: int, **environment: str) -> None:
    """Start through the witness; notes of all attempts lie together."""
    (folder / "notes").mkdir(exist_ok=True)
    ranks.start_grid(gang, folder, body, 1, world, WITNESS=str(folder / "notes"), **environment)


def export(folder: Path) -> dict[str, Any]:
    """The finished model."""
    from safetensors.torch import load_file

    return load_file(folder / "run" / "export" / "tiny.safetensors")


def counted(folder: Path) -> dict[int, Counter[int]]:
    """How often each sample was computed, by epoch; what was lost and trained again counts once."""
    found: dict[int, Counter[int]] = {}
    for path in (folder / "notes").glob("rank*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        by_step: dict[int, dict[str, Any]] = {}
        for line in lines:
            by_step = {s: v for s, v in by_step.items() if s < line["step"]}  # trained again: the later one counts
            by_step[line["step"]] = line
        assert sorted(by_step) == list(range(1, STEPS + 1)), path
        for line in by_step.values():
            found.setdefault(line["epoch"], Counter()).update(line["seen"])
    return found


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], tuple[dict[int, float], Path]]:
    """Undisturbed runs, made when first asked for."""
    return {}


@dataclass(frozen=True)
class Move:
    """From one topology to another."""

    engine: str
    world: int
    other: str
    other_world: int


def undisturbed(
    wholes: dict[tuple[str, int], tuple[dict[int, float], Path]],
    factory: pytest.TempPathFactory, engine: str, world: int,
) -> tuple[dict[int, float], Path]:  # fmt: skip
    if (engine, world) not in wholes:
        folder = factory.mktemp(f"{engine}-{world}")
        with ranks.gang(folder) as gang:
            start(gang, folder, settings(engine, world), world)
            assert gang.wait() == [0], gang.text()[-3000:]
            wholes[engine, world] = gang.losses(), folder
    return wholes[engine, world]


def interrupt(gang: Gang, folder: Path, engine: str, world: int, how: str, at: int) -> None:
    """Begin a run and end it in the middle."""
    fail = {"WITNESS_FAIL": f"{world - 1}:{at + 1}"} if how == "exception" else {}
    start(gang, folder, settings(engine, world), world, **fail)
    if how != "exception":
        gang.wait_for_step(at)
        while not checkpoint.complete(folder / "run" / "checkpoints"):
            gang.wait_for_step(max(gang.losses()))
        os.kill(gang.pid(world - 1), signal.SIGTERM if how == "sigterm" else signal.SIGKILL)
    codes = gang.wait()
    assert (codes == [0]) == (how == "sigterm"), (codes, gang.text()[-3000:])
    if how == "exception":
        failed = {rank: [r for r in gang.records(rank) if isinstance(r, progress.Failed)] for rank in range(world)}
        (told,) = failed.pop(world - 1)
        assert told.failure == "data" and "x.png" in told.message
        assert not any(failed.values()), "the rank that met it tells it, and no other: its log is where to look"
    if how != "sigkill":
        newest = checkpoint.complete(folder / "run" / "checkpoints")[0]
        assert newest.manifest.roles[-1] == {"sigterm": "stop", "exception": "failure"}[how]
        assert newest.manifest.step == max(gang.losses()), "nothing that was trained is lost"


def case(engine: str, world: int, how: str, *, long: bool = True) -> Any:
    marks = [pytest.mark.long] if long else []
    return pytest.param(engine, world, how, id=f"{engine} x{world} {how}", marks=marks)


@pytest.mark.parametrize(
    ("engine", "world", "how"),
    [
        case("zero-2", 2, "sigterm", long=False),
        case("zero-2", 2, "sigkill", long=False),
        case("zero-2", 2, "exception", long=False),
        case("ddp", 1, "sigterm"),
        case("ddp", 2, "sigkill"),
        case("ddp", 2, "exception"),
        case("zero-1", 2, "sigkill"),
        case("zero-3", 2, "sigterm"),
        case("zero-3", 2, "sigkill"),
        case("fsdp", 2, "sigkill"),
        case("fsdp", 2, "sigterm"),
        case("fsdp", 2, "exception"),
    ],
)
def test_an_interrupted_run_ends_bit_for_bit_as_the_undisturbed_one(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    wholes: dict[tuple[str, int], tuple[dict[int, float], Path]],
    engine: str,
    world: int,
    how: str,
) -> None:
    import torch

    reference, reference_folder = undisturbed(wholes, tmp_path_factory, engine, world)
    at = random.Random(f"{engine}{how}").randint(2, STEPS - 6)
    with ranks.gang(tmp_path / "first") as gang:
        interrupt(gang, tmp_path, engine, world, how, at)
        before = gang.losses()
    with ranks.gang(tmp_path / "second") as gang:
        start(gang, tmp_path, settings(engine, world), world)
        assert gang.wait() == [0], gang.text()[-3000:]
        after = gang.losses()
        assert any(
            "Training continues from step" in r.text for r in gang.records() if isinstance(r, progress.Notice)
        )
    assert 1 < min(after) <= max(before) + 1 and max(after) == STEPS
    assert before | after == reference, "bit for bit"
    ours, theirs = export(tmp_path), export(reference_folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and ours.keys() == theirs.keys()
    epochs = counted(tmp_path)
    assert epochs == counted(reference_folder)
    assert epochs[0] == Counter(range(IMAGES)), "each once"


@pytest.mark.parametrize(
    "move",
    [
        pytest.param(Move("zero-2", 2, "ddp", 1), id="zero-2 x2 to ddp x1"),
        pytest.param(Move("ddp", 1, "zero-3", 2), id="ddp x1 to zero-3 x2", marks=pytest.mark.long),
        pytest.param(Move("fsdp", 2, "zero-1", 2), id="fsdp x2 to zero-1 x2", marks=pytest.mark.long),
        pytest.param(Move("zero-3", 2, "fsdp", 4), id="zero-3 x2 to fsdp x4", marks=pytest.mark.long),
        pytest.param(Move("ddp", 2, "fsdp", 2), id="ddp x2 to fsdp x2", marks=pytest.mark.long),
        pytest.param(Move("zero-1", 2, "zero-2", 4), id="zero-1 x2 to zero-2 x4", marks=pytest.mark.long),
    ],
)
def test_another_engine_and_world_continue_the_same_run(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    wholes: dict[tuple[str, int], tuple[dict[int, float], Path]],
    move: Move,
) -> None:
    reference, _ = undisturbed(wholes, tmp_path_factory, move.engine, move.world)
    at = random.Random(f"{move.engine}{move.other}").randint(2, STEPS - 6)
    with ranks.gang(tmp_path / "first") as gang:
        interrupt(gang, tmp_path, move.engine, move.world, "sigterm", at)
        before = gang.losses()
    with ranks.gang(tmp_path / "second") as gang:
        start(gang, tmp_path, settings(move.other, move.other_world), move.other_world)
        assert gang.wait() == [0], gang.text()[-3000:]
        after = gang.losses()
        told = [r.text for r in gang.records() if isinstance(r, progress.Notice)]
    assert min(after) == max(before) + 1, "nothing is trained again"
    assert (before | after) == pytest.approx(reference, rel=1e-4)
    assert any(f"Written by {move.world} ranks with {move.engine}" in text for text in told)
    assert any("engine.kind is" in text for text in told) or move.engine[:4] == move.other[:4]


def test_another_global_batch_sees_the_rest_of_the_epoch_once(tmp_path: Path) -> None:
    one = settings("ddp", 1, batch={"per_slot": 3}, steps=None, epochs=2, checkpoints={"every_steps": 50})
    with ranks.gang(tmp_path / "first") as gang:
        start(gang, tmp_path, one, 1)
        gang.wait_for_step(4)
        os.kill(gang.pid(0), signal.SIGTERM)
        assert gang.wait() == [0], gang.text()[-3000:]
    with ranks.gang(tmp_path / "second") as gang:
        start(gang, tmp_path, one | {"batch": {"per_slot": 2}, "engine": {"kind": "zero", "stage": 2}}, 2)
        assert gang.wait() == [0], gang.text()[-3000:]
    seen: dict[int, Counter[int]] = {}
    for path in (tmp_path / "notes").glob("rank*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            seen.setdefault(line["epoch"], Counter()).update(line["seen"])
    assert seen == {0: Counter(range(IMAGES)), 1: Counter(range(IMAGES))}
