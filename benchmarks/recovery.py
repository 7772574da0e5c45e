"""From SIGKILL of a rank to the gang's first new step, against the trainer's own bare start to its first step.

Bare means: three ranks in containers on the same nodes, each `python -m clusterft_trainer` by itself, without any
launcher or supervisor, on a run that has nothing to resume; from the start of the last process. Both sides
alternate. The same by hand under `accelerate launch` is measured beside them for the record.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import _by_hand
from _by_hand import Rig
from _figures import Figure, main, ratio
from launch import CHANGES, by_hand

from faults.rig import NODES, rigged

LONG = {"env": {"WITNESS_PAUSE": "0.2"}, "train": {"epochs": 6}}


def ours(rig: Rig) -> float:
    """Seconds from the signal to the first step after it."""
    controller, run = rig.train(**LONG)
    rig.saved(run, controller)
    killed = time.time()
    rig.kill_rank(run, 1)
    seconds = _by_hand.first_step(rig, run, attempt=1) - killed
    if controller.wait() != 0:
        raise SystemExit(controller.words())
    rig.clear()
    return seconds


def bare(rig: Rig) -> float:
    """Seconds from the start of the last rank to the first step."""
    started = _by_hand.start(rig, _by_hand.dry_run(rig, **CHANGES), bare=True)
    try:
        seconds = _by_hand.first_step(rig, started.plan["run"]) - _by_hand.began(rig, list(NODES))
        started.wait()
    finally:
        started.remove()
    rig.clear()
    return seconds


def measure(quick: bool) -> tuple[list[Figure], dict[str, object]]:
    """Alternate both."""
    rounds = 1 if quick else 3
    mine, alone, launched = [], [], []
    with tempfile.TemporaryDirectory(prefix="clusterft-recovery-") as directory:
        with rigged(Path(directory, "desk"), count=3) as rig:
            bare(rig)  # makes the model and the pictures, and warms the page cache for all
            for _ in range(rounds):
                mine.append(ours(rig))
                alone.append(bare(rig))
                launched.append(by_hand(rig, "accelerate"))
    beside = Figure("accelerate.by_hand", round(statistics.median(launched), 4), "s")
    return [*ratio("new_step", mine, alone, target=1.5), beside], {"rounds": rounds, "nodes": 3}


if __name__ == "__main__":
    sys.exit(main("recovery", measure))
