"""What became of the ranks that were tried before a run: how far each came, and why it came no further. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clusterft.facts.deep import Said

# What a rank does by itself, in this order; then it meets the others.
ALONE = ("libraries", "model", "pictures", "processes")
MEETING = ("store", "group", "first")
_LATE = ("no answer in time", "torch did not come up: no answer in time")
_UNMET = (
    "timed out",
    "timeout",
    "connection refused",
    "no route to host",
    "unreachable",
    "closed by peer",
    "reset",
)
STOPPED = "doctor ended it, as another rank had ended"
_KEPT = 2500  # characters of what a rank said at its end


@dataclass(frozen=True, slots=True)
class Try:
    """One node's rank."""

    node: str
    stage: str = "start"  # the last that it has begun; "done"
    error: str = ""  # an exception in its own words, or how its process ended
    remedy: str = ""  # the trainer's own, where it knew one
    words: str = ""  # the end of its stderr
    late: bool = False  # it was ended at its deadline
    stopped: bool = False  # doctor ended it, as another rank had ended
    signal: int = 0  # that ended it, and was not doctor's
    model: str = ""  # by which its model is known; empty: none, or the builtin one

    @property
    def done(self) -> bool:
        """Whether it came to its first all-reduce, and through it."""
        return self.stage == "done"

    @property
    def alone(self) -> bool:
        """Whether it failed at what no other node has part in."""
        return not self.done and self.stage in ("start", *ALONE)

    @property
    def lost(self) -> bool:
        """Whether it only waited for others, or lost one."""
        told = self.error.lower()
        ours = self.late or self.stopped
        return not self.done and not self.alone and (ours or any(one in told for one in _UNMET))


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """All of it."""

    tries: Mapping[str, Try] = field(default_factory=dict)
    unopened: Mapping[str, str] = field(default_factory=dict)  # node -> why torch did not come up there
    addresses: Mapping[str, str] = field(default_factory=dict)
    pythons: Mapping[str, str] = field(default_factory=dict)  # node -> its interpreter
    missing: Mapping[str, str] = field(default_factory=dict)  # node -> why it took no part
    refused: str = ""  # why nothing was tried at all
    unfit: str = ""  # why these nodes cannot run this job at all
    remedy: str = ""  # of that


def tried(said: Said) -> Try:
    """One rank's words -> what became of it."""
    error: Mapping[str, Any] = said.error or {}
    model = next((str(one["model"]) for one in said.said if "model" in one), "")
    code = said.code or 0
    ours = said.late or said.stopped
    ended = STOPPED if said.stopped else f"ended by signal {-code}" if code < 0 else ""
    return Try(
        node=said.node,
        stage=said.stage,
        error=str(error.get("error", "")).strip() or ended,
        remedy=str(error.get("remedy", "")),
        words=said.words[-_KEPT:],
        late=said.late,
        stopped=said.stopped,
        signal=-code if code < 0 and not ours else 0,
        model=model,
    )


def late(words: str) -> bool:
    """Whether a program that did not come up was only slow."""
    return words in _LATE
