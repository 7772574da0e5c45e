"""Proves that the losses of a run do not depend on nodes, processes or the engine that spreads the weights.

In float32, at an equal global batch, with a micro-batch of whatever size is left for a rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks

from clusterft_trainer import progress

pytestmark = pytest.mark.trainer

ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"kind": "ddp"},
    "zero-1": {"kind": "zero", "stage": 1},
    "zero-2": {"kind": "zero", "stage": 2},
    "zero-3": {"kind": "zero", "stage": 3},
    "fsdp": {"kind": "fsdp"},
}
LEARN = {"unet": {"rate": 1e-3}, "text_encoder_2": {"rate": 1e-4}, "ema": {"decay": 0.9}, "schedule": "cosine"}


def settings(engine: str, world: int) -> dict[str, Any]:
    """Four samples a step on any world; samples and held-out loss, since those are collective too."""
    return ranks.settings(
        engine=ENGINES[engine],
        batch={"per_slot": max(1, 2 // world), "accumulate": 4 // (world * max(1, 2 // world))},
        learn=LEARN,
        objective={"min_snr": 5},
        held_out={"every_steps": 2, "share": 0.2, "levels": 2},
        samples={"every_steps": 4, "prompts": ["a red circle on white", "a cat", "a dog"], "denoise_steps": 2},
        steps=4,
        checkpoints={"every_steps": 50},
    )


def run(folder: Path, engine: str, nodes: int, slots: int) -> tuple[dict[int, float], dict[int, float]]:
    """Losses and held-out losses by step."""
    with ranks.gang(folder) as gang:
        ranks.start_grid(gang, folder, settings(engine, nodes * slots), nodes, slots)
        assert gang.wait() == [0] * nodes, "\n".join(gang.text(r)[-3000:] for r in range(nodes * slots))
        held = {r.step: r.loss for r in gang.records() if isinstance(r, progress.HeldOut)}
        return gang.losses(), held


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, float], dict[int, float]]:
    """One process, no engine."""
    return run(tmp_path_factory.mktemp("alone"), "ddp", 1, 1)


def case(engine: str, nodes: int, slots: int, *, long: bool = True) -> Any:
    """A parameter set under a short name."""
    marks = [pytest.mark.long] if long else []
    return pytest.param(engine, nodes, slots, id=f"{engine} {nodes}x{slots}", marks=marks)


@pytest.mark.parametrize(
    ("engine", "nodes", "slots"),
    [
        case("ddp", 1, 2, long=False),
        case("ddp", 2, 2),
        case("zero-1", 1, 1),
        case("zero-1", 1, 2),
        case("zero-1", 2, 2),
        case("zero-2", 1, 1),
        case("zero-2", 1, 2),
        case("zero-2", 2, 2, long=False),
        case("zero-3", 1, 1),
        case("zero-3", 1, 2, long=False),
        case("zero-3", 2, 2),
        case("fsdp", 1, 2, long=False),
        case("fsdp", 2, 2),
    ],
)
def test_the_losses_are_those_of_one_process(
    tmp_path: Path, alone: tuple[dict[int, float], dict[int, float]], engine: str, nodes: int, slots: int
) -> None:
    losses, held = run(tmp_path, engine, nodes, slots)
    assert len(alone[0]) == 4 and losses == pytest.approx(alone[0], rel=1e-4)
    assert sorted(held) == [2, 4] and held == pytest.approx(alone[1], rel=1e-4)
    assert (tmp_path / "run" / "samples" / "step-00000004.png").stat().st_size > 0
