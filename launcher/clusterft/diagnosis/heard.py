"""What was heard of a run that failed: the records between listening and judging. Pure data."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from clusterft.diagnosis.signatures import Match

TAIL = 12  # last lines of each voice


@dataclass(frozen=True, slots=True)
class Source:
    """A file or stream, and whose words it holds as far as its name tells."""

    name: str
    node: str = ""
    rank: int | None = None
    local: int | None = None
    attempt: int | None = None  # None: it belongs to none, or to all
    year: int = 1970  # of times that have none
    booted: float | None = None  # unix seconds when the kernel started, for times that count from then


@dataclass(frozen=True, slots=True)
class Quote:
    """One line, and where it stands."""

    where: str  # file:line
    text: str


@dataclass(slots=True)
class Block:
    """A traceback with all that is chained to it, or a bare line that names an error."""

    errors: list[Quote] = field(default_factory=list)  # the first is where it began
    frames: list[Quote] = field(default_factory=list)  # of the first traceback: File "...", line N
    bare: bool = False
    at: float | None = None
    order: int = 0
    last: int = 0  # of its voice's lines, the one with which it ended
    matches: list[tuple[Match, Quote, int]] = field(default_factory=list)  # in its messages: of which error


@dataclass(slots=True)
class Sighting:
    """A signature in a line."""

    match: Match
    quote: Quote
    node: str
    rank: int | None
    at: float | None
    order: int
    line: int  # of its voice


@dataclass(slots=True)
class Voice:
    """Whoever speaks in one source: a rank, a launcher, or several that cannot be told apart."""

    source: Source
    node: str
    rank: int | None
    local: int | None
    lines: int = 0
    first_at: float | None = None
    last_at: float | None = None
    tail: deque[Quote] = field(default_factory=lambda: deque(maxlen=TAIL))
    blocks: deque[Block] = field(default_factory=lambda: deque(maxlen=40))
    sightings: dict[tuple[str, str], Sighting] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class End:
    """A process that ended, as its launcher, supervisor or engine told it; a negative code is a signal."""

    code: int
    quote: Quote
    source: Source
    node: str
    rank: int | None = None
    local: int | None = None
    pid: int | None = None
    at: float | None = None
    order: int = 0
    first: bool = False  # its launcher saw it fail first
    container: bool = False
    short_of_memory: bool | None = None  # what the engine says of a container: OOMKilled


@dataclass(frozen=True, slots=True)
class Told:
    """What the trainer or the gang itself gave as the reason."""

    failure: str  # class
    text: str
    remedy: str
    quote: Quote
    node: str
    rank: int | None
    at: float | None
    order: int
    gang: bool = False  # the head's own finding: it has heard all of them
    attempt: int | None = None
    again: bool = False  # the gang did not end the run for it


@dataclass(frozen=True, slots=True)
class Seat:
    """As which machine rank a launcher was started, and of how many, as far as its lines tell."""

    rank: int
    machines: int | None = None
    option: str = "--node_rank"  # by which it was told
    quotes: tuple[Quote, ...] = ()
    waited: bool = False  # it met the others' store, and waited there in vain


@dataclass(frozen=True, slots=True)
class Course:
    """When one attempt began and how it came to its end, as far as its supervisors have told."""

    began: Mapping[str, float] = field(default_factory=dict)  # node -> unix seconds by its own clock
    ends: Mapping[str, str] = field(default_factory=dict)  # node -> how its part ended
    again: bool = False  # the gang decided to try once more
    why: str = ""
    resumed: bool = False  # it was the run's last one, and somebody resumed the run


class Recovered(NamedTuple):
    """Something that was wrong for a while, and no more."""

    what: str
    node: str


@dataclass(slots=True)
class Heard:
    """All of it."""

    voices: list[Voice] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    kernel: list[Sighting] = field(default_factory=list)
    recovered: list[Recovered] = field(default_factory=list)
    places: dict[str, list[int]] = field(
        default_factory=dict
    )  # node -> its global ranks, where a launcher said so
    seats: dict[str, Seat] = field(default_factory=dict)  # node, or source that names none -> its launcher's
    world: int | None = None
    attempt: int | None = None  # the one that this is of, where attempts are told apart
    courses: dict[int, Course] = field(default_factory=dict)  # attempt -> what is known of its end
    earlier: tuple[Heard, ...] = ()  # of the attempts before it those that failed
    end: str = ""  # what the run itself says that it came to
    ended: dict[str, str] = field(default_factory=dict)  # node -> how its part ended
    done: bool = False  # whether rank 0 said that all is trained and exported
    nodes: tuple[str, ...] = ()  # those that should have spoken
    offsets: Mapping[str, float] = field(default_factory=dict)  # seconds that a node's clock is ahead
    compared: bool = False  # whether these are known
    unread: tuple[str, ...] = ()
    lines: int = 0
    files: int = 0

    def true(self, node: str, at: float | None) -> float | None:
        """A node's time on the clock that all are compared by."""
        return None if at is None else at - self.offsets.get(node, 0.0)
