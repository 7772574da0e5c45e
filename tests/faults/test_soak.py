"""An hour of random faults, with nobody watching for half of it: at the end every sample has been computed once.

CLUSTERFT_SOAK_MINUTES sets another length, CLUSTERFT_SOAK_SEED another order of the faults.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from faults.controller import Controller, until
from faults.jobs import IMAGES, PAUSE
from faults.rig import BEHIND, NODES, NOTES, Rig

pytestmark = [pytest.mark.lab_full, pytest.mark.trainer, pytest.mark.long]

MINUTES = float(os.environ.get("CLUSTERFT_SOAK_MINUTES", "60"))
SEED = os.environ.get("CLUSTERFT_SOAK_SEED", "1")
_RECOVERY = 420.0  # seconds from a fault to the next complete checkpoint, on two busy cores


@dataclass
class Soak:
    """One run, and what has befallen it so far."""

    rig: Rig
    run: str
    dice: random.Random
    watching: Controller | None
    absent: float = 0.0  # seconds without a controller
    since: float = 0.0  # when the last one was killed
    happened: list[str] = field(default_factory=list)

    def checkpoint(self) -> int:
        """The newest complete one."""
        return max(self.rig.checkpoints(self.run), default=0)

    def befall(self) -> None:
        """One fault, and the proof that training goes on after it."""
        name, began = self.dice.choice(sorted(_FAULTS)), time.monotonic()
        _FAULTS[name](self)
        # Only now: an engine that shuts down has the run write a checkpoint first.
        at = self.rig.step(self.run)
        until(lambda: self.checkpoint() > at or self.over(), _RECOVERY, f"a checkpoint after: {name}")
        self.happened.append(name)
        print(f"{name}: a checkpoint {time.monotonic() - began:.0f} s later (step {self.checkpoint()})")

    def over(self) -> bool:
        """Whether the run has ended, which only a run without faults left may."""
        return self.rig.sh("n1", f"[ -e {BEHIND}/{self.run}/outcome.json ] && echo yes || :") == "yes"

    def come_and_go(self) -> None:
        """The controller dies, or another one attaches."""
        if self.watching is None:
            self.absent += time.monotonic() - self.since
            self.watching = self.rig.begin("attach", self.run, "--json")
        else:
            assert self.watching.process.poll() is None, self.watching.words()
            self.watching.kill()
            self.watching, self.since = None, time.monotonic()


def _engine(soak: Soak) -> None:
    node = soak.rig.node(soak.dice.choice(NODES))
    node.stop_engine()
    time.sleep(soak.dice.uniform(0, 10))
    node.start_engine()


def _link(soak: Soak) -> None:
    node = soak.rig.node(soak.dice.choice(NODES))
    node.cut_link()
    time.sleep(soak.dice.uniform(2, 40))
    node.restore_link()


def _shared(soak: Soak) -> None:
    with soak.rig.frozen():
        time.sleep(soak.dice.uniform(5, 60))


def _slow(soak: Soak) -> None:
    node = soak.rig.node(soak.dice.choice(NODES))
    node.slow(0.3)
    time.sleep(soak.dice.uniform(5, 20))
    node.full_speed()


def _container(soak: Soak) -> None:
    node = soak.dice.choice(NODES)
    # It may be on its way back from the fault before.
    until(lambda: len(soak.rig.containers(node, soak.run)) == 1, 60, f"the container on {node}")
    soak.rig.kill_container(node, soak.run)


_FAULTS: dict[str, Callable[[Soak], object]] = {
    "rank killed": lambda soak: soak.rig.kill_rank(soak.run, soak.dice.randrange(len(NODES))),
    "container killed": _container,
    "engine restarted": _engine,
    "node rebooted": lambda soak: soak.rig.node(soak.dice.choice(NODES)).reboot(),
    "link dropped": _link,
    "shared dir hung": _shared,
    "node slowed": _slow,
}


def test_soak(rig: Rig, tell: Callable[[str], None]) -> None:
    """Random faults for an hour, the controller absent for half of it: every sample exactly once per epoch."""
    steps = math.ceil(IMAGES / len(NODES)) + 1  # of an epoch, with its short batches
    epochs = max(3, int(MINUTES * 60 * 0.5 / (PAUSE * steps)))  # half the time goes into recovering
    # Without the spare: it would step in for a node whose link is cut, and faults would hit a node without a part.
    watching, run = rig.train(restarts=10_000, train={"epochs": epochs}, hosts=str(rig.without_spare()))
    rig.saved(run, watching)
    soak = Soak(rig, run, random.Random(SEED), watching)
    began = time.monotonic()
    turn = max(30.0, MINUTES * 60 / 8)
    while time.monotonic() - began < MINUTES * 60 and not soak.over():
        soak.befall()
        if time.monotonic() - began > turn:
            turn += max(30.0, MINUTES * 60 / 8)
            soak.come_and_go()
        time.sleep(soak.dice.uniform(0, 15))
    minutes = (time.monotonic() - began) / 60
    if soak.watching is None:
        soak.come_and_go()
    assert soak.watching is not None
    for node in NODES:
        rig.sh(node, f"touch {NOTES}/hurry")
    assert soak.watching.wait(60 * MINUTES + 600) == 0, soak.watching.words()
    assert rig.over(run)["end"] == "ok"
    rig.assert_each_once(run, epochs)
    rig.assert_clean()
    counts = ", ".join(f"{name} {count}x" for name, count in sorted(Counter(soak.happened).items()))
    attempts = rig.outcome(run)["attempts"]
    away = soak.absent / 60
    tell(f"{minutes:.0f} min, {away:.0f} of them unwatched; {counts}; {attempts} attempts, {epochs} epochs")
