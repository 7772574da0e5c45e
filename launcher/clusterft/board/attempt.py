"""One attempt of a run, as far as it is known: who took part, how far it came, and all evidence of how it ended.

Filled by the Board alone. What one attempt's ranks said is never evidence about another attempt.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

from clusterft_trainer import progress, stream

_TAIL = 30  # last lines kept of each rank


def _tails() -> dict[tuple[str, int], deque[str]]:
    return defaultdict(lambda: deque(maxlen=_TAIL))


@dataclass(slots=True)
class Attempt:
    """From the launchers' start to the last of their ends. Times are the controller's clock's."""

    number: int = 0
    members: dict[str, stream.Attempt] = field(default_factory=dict)  # by node
    began: float | None = None
    phases: dict[str, str] = field(default_factory=dict)  # node -> the stage that its ranks have reached
    phase: str | None = None  # the same of rank 0
    first_step: progress.Step | None = None
    step: progress.Step | None = None
    failures: list[tuple[str, int, progress.Failed]] = field(default_factory=list)
    deaths: list[tuple[str, stream.RankDied]] = field(default_factory=list)
    ends: dict[str, stream.AttemptEnded] = field(default_factory=dict)
    hang: stream.Hang | None = None
    decided: stream.Decided | None = None
    tails: dict[tuple[str, int], deque[str]] = field(default_factory=_tails)

    @property
    def head(self) -> str | None:
        """The node of rank 0."""
        return next((node for node, line in self.members.items() if line.machine_rank == 0), None)

    @property
    def ended(self) -> float | None:
        """When the last of its nodes was through with it; None while one is not."""
        if not self.members or self.members.keys() - self.ends.keys():
            return self.decided.at if self.decided else None
        return max(end.at for end in self.ends.values())

    @property
    def resumed_from(self) -> int | None:
        """The step it went on from; None before its first one, and where it began at the beginning."""
        return self.first_step.step - 1 if self.first_step and self.first_step.step > 1 else None

    def forget(self) -> None:
        """Its last lines are of no more use: a later attempt is over too."""
        self.tails.clear()
