"""From the command to the first optimizer step on three full nodes, preflight included, against the same by hand.

By hand means: the containers, files and commands of `clusterft train --dry-run --json`, laid out beforehand and
started together by `ssh NODE docker run ... accelerate launch ...`. Both sides alternate. `deepspeed --hostfile`
by hand is measured beside them for the record. Needs a Docker engine and the trainer's libraries.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _by_hand
from _by_hand import Rig
from _figures import Figure, main, ratio

from faults.rig import rigged

QUICK_STEPS: dict[str, Any] = {"epochs": None, "steps": 3, "checkpoints": {"every_steps": 50}}
CHANGES: dict[str, Any] = {"env": {"WITNESS_PAUSE": "0"}, "train": QUICK_STEPS}


def ours(rig: Rig) -> float:
    """Seconds from the command to the first step of rank 0."""
    began = time.time()
    controller, run = rig.train(**CHANGES)
    seconds = _by_hand.first_step(rig, run) - began
    if controller.wait() != 0:
        raise SystemExit(controller.words())
    rig.clear()
    return seconds


def by_hand(rig: Rig, launcher: str) -> float:
    """The same with nothing of ours above the launcher."""
    started = _by_hand.start(rig, _by_hand.dry_run(rig, launcher=launcher, **CHANGES))
    try:
        seconds = _by_hand.first_step(rig, started.plan["run"]) - started.began
        started.wait()
    finally:
        started.remove()
    rig.clear()
    return seconds


def measure(quick: bool) -> tuple[list[Figure], dict[str, object]]:
    """Alternate both."""
    rounds = 1 if quick else 3
    mine, hand, deepspeed = [], [], []
    with tempfile.TemporaryDirectory(prefix="clusterft-launch-") as directory:
        with rigged(Path(directory, "desk"), count=3) as rig:
            ours(rig)  # makes the model and the pictures, and warms the page cache for all
            for _ in range(rounds):
                mine.append(ours(rig))
                hand.append(by_hand(rig, "accelerate"))
                deepspeed.append(by_hand(rig, "deepspeed"))
    beside = Figure("deepspeed.by_hand", round(statistics.median(deepspeed), 4), "s")
    return [*ratio("first_step", mine, hand, target=1.25), beside], {"rounds": rounds, "nodes": 3}


if __name__ == "__main__":
    sys.exit(main("launch", measure))
