"""Proves that a run which reads its cache trains alike on any number of ranks, and one without is told so."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import ranks

from clusterft_trainer import progress

pytestmark = [pytest.mark.trainer, pytest.mark.long]


def settings(world: int) -> dict[str, Any]:
    """Mirrored at random, with text states cached too."""
    sources = [{"builtin": "shapes", "images": 12, "repeats": 2}]
    data = {"sources": sources, "resolution": 64, "cache": {"flip": True, "text": True}}
    held = {"every_steps": 2, "share": 0.2, "levels": 1}
    return ranks.settings(
        engine={"kind": "ddp"}, batch={"per_slot": 4 // world}, data=data, held_out=held, steps=6
    )


def losses(folder: Path, world: int) -> tuple[dict[int, float], dict[int, float]]:
    """Of a run in this folder, and the held-out ones."""
    with ranks.gang(folder / f"gang-{world}") as gang:
        ranks.start_grid(gang, folder, settings(world), 1, world)
        assert gang.wait() == [0], gang.text()[-3000:]
        return gang.losses(), {r.step: r.loss for r in gang.records() if isinstance(r, progress.HeldOut)}


def test_a_run_from_its_cache_is_the_same_on_any_number_of_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clusterft_trainer.prep import command

    monkeypatch.setenv("CLUSTERFT_DEVICE", "cpu")
    with ranks.gang(tmp_path / "without") as gang:
        ranks.start_grid(gang, tmp_path, settings(1), 1, 1)
        assert gang.wait() == [1]
        (failed,) = [r for r in gang.records() if isinstance(r, progress.Failed)]
        assert failed.message.startswith("12 of 12 pictures have no latents") and "prep" in failed.remedy
    config = tmp_path / "prep.json"
    config.write_text(json.dumps(settings(1)))
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.main(parser.parse_args([str(config), "--shared", str(tmp_path)]))
    two = losses(tmp_path, 2)
    (tmp_path / "run").rename(tmp_path / "run-of-two")
    one = losses(tmp_path, 1)
    assert sorted(one[0]) == [1, 2, 3, 4, 5, 6] and sorted(one[1]) == [2, 4, 6]
    assert two[0] == pytest.approx(one[0], rel=1e-4) and two[1] == pytest.approx(one[1], rel=1e-4)
