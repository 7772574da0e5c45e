"""Whether there is another attempt: history in, decision out. Pure.

Owns which failures a restart cannot mend, and how often is often enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clusterft_trainer.assignment import Survival

INTERRUPTED = "interrupted"  # not a failure: a machine or engine was shut down, and is expected back
INTERRUPTIONS = 20
_HOPELESS = {
    "config": "the settings do not change by themselves",
    "data": "the data do not change by themselves",
    "nan": "the same steps would end in the same way",
    "disk-full": "another attempt would find the disk as full",
    "storage": "another attempt would find the disk as it is",
    "ecc": "a card with memory errors has to be reset or replaced first",
    "resume": "another attempt would find the same checkpoint",
}
_REPEATABLE = frozenset({"oom", "host-oom", "exception", "bug"})  # another attempt may well come to the same step
# Nothing that the run does brings these about, so that they came twice says nothing of a third time.
_FROM_OUTSIDE = frozenset({"container", "killed", "node-lost"})


@dataclass(frozen=True, slots=True)
class Past:
    """An attempt that is over, and was not the last word."""

    attempt: int
    failure: str  # the class of the first cause, or `interrupted`
    cause: str  # in words
    node: str = ""
    rank: int | None = None
    step: int | None = None  # the last step that was heard of; None before the first
    steps: bool = True  # whether this kind of run tells of steps at all

    def to_dict(self) -> dict[str, Any]:
        """As the head keeps it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to go on, and what speaks for it."""

    again: bool
    why: str
    used: int  # restarts, this one included


def decide(history: Sequence[Past], survival: Survival) -> Decision:
    """After the last attempt of the history."""
    last = history[-1]
    failures = [one for one in history if one.failure != INTERRUPTED]
    count = len(failures)
    if last.failure == INTERRUPTED:
        if len(history) - count > INTERRUPTIONS:
            return Decision(False, f"it was interrupted {INTERRUPTIONS} times before", count)
        return Decision(True, "an interruption does not count as a restart", count)
    reason = _HOPELESS.get(last.failure) or (_twice(failures[-2], last) if count > 1 else "")
    if reason:
        return Decision(False, reason, count - 1)
    if count > survival.restarts:
        allowed = survival.restarts
        why = f"all {allowed} restarts are used" if allowed else "the job allows no restart (restarts: 0)"
        return Decision(False, why, allowed)
    return Decision(True, f"restart {count} of {survival.restarts}", count)


def is_hopeless(failure: str) -> bool:
    """Whether no other attempt, and no other node, could mend it."""
    return failure in _HOPELESS


def used(history: Sequence[Past], survival: Survival) -> int:
    """Restarts so far."""
    return min(sum(one.failure != INTERRUPTED for one in history), survival.restarts)


def _twice(before: Past, last: Past) -> str:
    """What two ends in a row have in common that a third would have too."""
    if not last.steps:
        same = (before.failure, before.cause, before.rank) == (last.failure, last.cause, last.rank)
        return "the same error ended the attempt before" if same and last.failure in _REPEATABLE else ""
    early = last.step is None and before.step is None and last.failure not in _FROM_OUTSIDE
    if early and before.failure == last.failure and before.node == last.node:
        return "two attempts in a row ended in the same way before their first step"
    if last.failure in _REPEATABLE and before.failure == last.failure and before.step == last.step:
        return f"the attempt before ended in the same way at step {last.step}"
    return ""
