"""What the gang's head makes of a member's end, by the kind of the run. Pure.

Ranks that train need each other: one that ends, ends all. Ranks that prepare data claim their work, and what one
has left undone another takes up: a member that ends, is lost or comes late changes nothing for the others, and one
that ends well by itself has seen that all is done.
"""

from __future__ import annotations

from dataclasses import dataclass

from clusterft_trainer.supervisor import policy
from clusterft_trainer.supervisor.course import Course
from clusterft_trainer.supervisor.messages import Hello, Report
from clusterft_trainer.supervisor.roster import Roster

TRAIN, SCRIPT, PREP = "train", "script", "prep"


@dataclass(frozen=True, slots=True)
class Kind:
    """One of them, by the name that an assignment gives it."""

    name: str

    @property
    def tells_steps(self) -> bool:
        """Whether it tells of steps; of the others, every line is a sign of life."""
        return self.name == TRAIN

    @property
    def claims(self) -> bool:
        """Whether a member may come, go and come back while the others are at it."""
        return self.name == PREP

    def ends_all(self, report: Report) -> bool:
        """Whether this end of a member's part is the end of the attempt everywhere."""
        if self.claims:
            return any(sign.source == "said" and policy.is_hopeless(sign.failure) for sign in report.signs)
        return report.code != 0 or (self.name == SCRIPT and bool(report.why))

    def is_well(self, report: Report) -> bool:
        """Whether this end is that of ranks that are through; work that is claimed may be left undone as asked."""
        return report.code == 0 and not (self.claims and report.why)

    def is_left(self, course: Course, now: float, seconds: float) -> bool:
        """Whether a launcher ended well so long ago that the others should have, too."""
        return self.name != SCRIPT and course.ended_well is not None and now - course.ended_well > seconds

    def is_complete(self, course: Course, roster: Roster, *, stopped: bool) -> bool:
        """Whether an attempt that is over everywhere has done what the run is for."""
        if self.claims:
            return any(self.is_well(one) for one in course.reports(roster).values())
        return course.done(roster) if self.name == TRAIN else course.well(roster) and not stopped

    def may_join(self, course: Course, hello: Hello) -> bool:
        """Whether a member that comes late, or again, takes up work beside those that are at it."""
        idle = not hello.running and hello.report is None
        return self.claims and idle and course.ended_well is None

    def in_reach(self, roster: Roster) -> bool:
        """Whether all whose silence would mean something can be heard."""
        return all(roster.seats[rank].here for rank in (roster.unfinished() if self.claims else roster.present))
