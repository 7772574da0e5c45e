"""Proves that only a whole checkpoint of this very run is continued from. Needs no torch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from clusterft_trainer import checkpoint, metrics
from clusterft_trainer.buckets import Position
from clusterft_trainer.checkpoint import Identity
from clusterft_trainer.errors import RunError
from clusterft_trainer.progress import Step

IDENTITY = Identity(2, 8, 1, "data", "zero-2", "fp32", "learn", "builtin:tiny")


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
        "files": {"weights.bin": {"size": 5, "sha256": "-"}},
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
