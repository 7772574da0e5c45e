"""What the gang's mind wants done. Pure values; `head` carries them out, in their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clusterft_trainer import stream
from clusterft_trainer.supervisor.messages import Message


@dataclass(frozen=True, slots=True)
class Send:
    """Tell a member something."""

    rank: int
    message: Message


@dataclass(frozen=True, slots=True)
class Say:
    """A line for the head's stream."""

    line: stream.Plain


@dataclass(frozen=True, slots=True)
class Keep:
    """The ledger has changed: on the disk with it, before anybody is told what follows."""


@dataclass(frozen=True, slots=True)
class Part:
    """All who can be told know that it is over."""


Action = Send | Say | Keep | Part


@dataclass(frozen=True, slots=True)
class World:
    """What the gang asks of the world: a free port other than the last one, and the time of day."""

    pick: Callable[[int | None], int | None]
    wall: Callable[[], float]
