"""The members as the head sees them: who is in reach, who takes part, who is lost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from clusterft_trainer.assignment import Member
from clusterft_trainer.supervisor.messages import Met, Report, Tried

_NOTED = 3.0  # seconds out of reach that are worth a word; a container comes back sooner


@dataclass(slots=True)
class Seat:
    """One machine rank, and who holds it."""

    member: Member
    since: float  # out of reach since then, while not here
    here: bool = False
    incarnation: int = -1  # none heard of yet
    boot: str = ""
    busy: bool = False  # ranks of some attempt still run there
    leaving: bool = False  # its machine shuts down
    lost: bool = False  # was out of reach for too long
    report: Report | None = None  # of the attempt in progress
    met: Met | None = None
    tried: Tried | None = None
    dumped: bool = False
    parted: bool = False  # it knows that all is over
    returns: int = 0  # how often it has joined the attempt in progress late, or again

    def greet(self, incarnation: int, boot: str, *, busy: bool) -> None:
        """It has a connection again."""
        self.here, self.lost, self.leaving, self.parted = True, False, False, False
        self.incarnation, self.boot, self.busy = incarnation, boot, busy


@dataclass(slots=True)
class Roster:
    """All seats, and which of them take part in the attempt in progress."""

    seats: dict[int, Seat]
    present: tuple[int, ...] = ()
    replaced: set[str] = field(default_factory=set)  # nodes whose place another has
    said: tuple[str, ...] = ()  # who is waited for, as last told

    def here(self) -> list[int]:
        """Machine ranks in reach."""
        return [rank for rank, seat in self.seats.items() if seat.here]

    def able(self) -> list[int]:
        """Machine ranks that could take part in an attempt now."""
        return [rank for rank, seat in self.seats.items() if seat.here and not seat.busy and not seat.leaving]

    def missing(self) -> list[int]:
        """Machine ranks that are waited for."""
        able = self.able()
        return [rank for rank, seat in self.seats.items() if rank not in able and not seat.lost]

    def overdue(self, now: float, patience: float) -> list[int]:
        """Machine ranks that have just been out of reach for too long."""
        return [
            rank
            for rank, seat in self.seats.items()
            if not seat.here and not seat.lost and now - seat.since > patience
        ]

    def absent(self, now: float) -> tuple[str, ...]:
        """Nodes that are out of reach and not given up, but for a moment's absence."""
        return tuple(
            seat.member.node
            for seat in self.seats.values()
            if not seat.here and not seat.lost and now - seat.since > _NOTED
        )

    def lost(self) -> tuple[str, ...]:
        """Nodes that are given up."""
        return tuple(seat.member.node for seat in self.seats.values() if seat.lost)

    def strangers(self) -> tuple[str, ...]:
        """Of those, the nodes that have never come since the run was started, to any life of this head."""
        seats = self.seats.values()
        return tuple(seat.member.node for seat in seats if seat.lost and seat.incarnation < 0 and not seat.boot)

    def until(self, patience: float) -> float:
        """When the first of those in waiting is given up, on the clock of `since`."""
        waited = [seat.since for seat in self.seats.values() if not seat.here and not seat.lost]
        return min(waited, default=0.0) + patience

    def unfinished(self) -> list[int]:
        """Of those that take part: no word of the end yet, and not lost."""
        return [rank for rank in self.present if not self.seats[rank].report and not self.seats[rank].lost]

    def begin(self) -> tuple[int, ...]:
        """Who takes part in the attempt that begins now."""
        self.present = tuple(sorted(self.able()))
        for rank in self.present:
            seat = self.seats[rank]
            seat.report, seat.busy, seat.dumped, seat.returns = None, True, False, 0
        return self.present

    def members(self, *, absent: bool) -> tuple[Member, ...]:
        """Who ranks are counted over: those that take part, or all, where members come and go."""
        return tuple(self.seats[rank].member for rank in (sorted(self.seats) if absent else self.present))

    def join(self, rank: int, most: int) -> bool:
        """Take part in the attempt in progress, late or again; not any more if that has happened too often."""
        seat = self.seats[rank]
        if seat.returns >= most:
            return False
        seat.returns += 1
        seat.report, seat.busy, seat.dumped = None, True, False
        self.present = tuple(sorted({*self.present, rank}))
        return True

    def node(self, rank: int) -> str:
        """Who sits there."""
        return self.seats[rank].member.node


def were(nodes: Sequence[str]) -> str:
    """The verb for some nodes."""
    return "was" if len(nodes) == 1 else "were"
