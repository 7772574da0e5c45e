"""The attempt in progress, as the head knows it: who has reported, what has happened, whether it moves. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from clusterft_trainer.assignment import Survival
from clusterft_trainer.supervisor.cause import Cause
from clusterft_trainer.supervisor.messages import Report
from clusterft_trainer.supervisor.roster import Roster


@dataclass(slots=True)
class Course:
    """One attempt; times are those of the gang's clock."""

    moved: float  # the last step, or line of a script
    stepping: bool = False  # what is awaited next is a step
    order: list[int] = field(default_factory=list)  # machine ranks by the arrival of their reports
    causes: list[Cause] = field(default_factory=list)  # what happened to members as a whole
    ended_well: float | None = None  # since when a launcher has ended well while others run
    why: str = ""  # why it is being ended

    def move(self, now: float, *, stepping: bool) -> None:
        """Something was told of a step or of what is between steps, or a line was written."""
        self.moved, self.stepping = now, stepping

    def limit(self, survival: Survival) -> float:
        """How long nothing may move."""
        return survival.hang_after if self.stepping else survival.first_step_after

    def note(self, what: Cause) -> None:
        """Something happened to a member; said twice, it happened once."""
        if not any(one.node == what.node and one.failure == what.failure for one in self.causes):
            self.causes.append(what)

    def take(self, rank: int, now: float, *, well: bool) -> None:
        """A member's part of it is over."""
        self.order.append(rank)
        if well and self.ended_well is None:
            self.ended_well = now

    def reports(self, roster: Roster) -> dict[str, Report]:
        """By node, in the order of their arrival."""
        found = ((rank, roster.seats[rank].report) for rank in self.order)
        return {roster.node(rank): report for rank, report in found if report}

    def done(self, roster: Roster) -> bool:
        """Whether rank 0 has said that all is complete."""
        return any(report.done for report in self.reports(roster).values())

    def well(self, roster: Roster) -> bool:
        """Whether all launchers ended with 0, and nobody made them end."""
        reports = self.reports(roster)
        by_themselves = not any(one.code or one.why for one in reports.values())
        return by_themselves and not self.causes and len(reports) == len(roster.present)
