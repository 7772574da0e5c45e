"""What the supervisors of one gang say to each other: records, and one line of JSON for each.

Pure. A member talks to the head alone. Everything in here can be said twice without harm: after a connection
broke, `Hello` carries all that may have been lost with it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from clusterft_trainer.assignment import Member
from clusterft_trainer.stream import End

NEVER = -1  # the attempt of a member that has taken part in none


@dataclass(frozen=True, slots=True)
class Sign:
    """Something seen on a node that may be why an attempt ended."""

    source: str  # said (the trainer), signal, log (a script's last error), launcher
    failure: str  # its class
    rank: int | None
    text: str  # in words, without the node's name


@dataclass(frozen=True, slots=True)
class Report:
    """How an attempt ended on one node."""

    attempt: int
    end: End
    code: int  # of the launcher; negative is a signal
    done: bool = False  # rank 0 said that training and export are complete
    step: int | None = None  # the last that was heard of here
    why: str = ""  # where the ranks did not end by themselves: who asked for it
    signs: tuple[Sign, ...] = ()  # in the order in which they were seen


@dataclass(frozen=True, slots=True)
class Link:
    """What came of dialling another member: seconds for 1 KB and for 64 KB there and back, or what went wrong."""

    to: str
    address: str
    port: int
    small: float | None = None
    large: float | None = None
    error: str = ""
    seconds: float = 0.0  # until it was given up


# --- said by members


@dataclass(frozen=True, slots=True)
class Hello:
    """First on every connection: who this is, and where it stands."""

    kind: ClassVar[str] = "hello"
    member: Member
    incarnation: int  # how often this supervisor was brought back
    boot: str  # of the machine: a new one after a reboot
    attempt: int = NEVER  # the newest that it has started
    running: bool = False  # whether that one still runs
    report: Report | None = None  # how that one ended
    stops: int = 0  # how often a stop was asked for here
    left: bool = False  # the incarnation before this one was asked to end by the machine, not by a person


@dataclass(frozen=True, slots=True)
class Moved:
    """A step, or a line of a script's log; at most one a second."""

    kind: ClassVar[str] = "moved"
    attempt: int
    step: int | None
    stepping: bool = True  # False: something longer than a step is under way, such as the export


@dataclass(frozen=True, slots=True)
class Finished:
    """The attempt is over on this node."""

    kind: ClassVar[str] = "finished"
    report: Report


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody asked this node to stop the run; twice means at once."""

    kind: ClassVar[str] = "asked"
    times: int


@dataclass(frozen=True, slots=True)
class Leaving:
    """The machine or its engine shuts down: this supervisor ends, and will be brought back."""

    kind: ClassVar[str] = "leaving"


@dataclass(frozen=True, slots=True)
class Dumped:
    """The stacks of this node's ranks are written."""

    kind: ClassVar[str] = "dumped"
    attempt: int
    ranks: int


@dataclass(frozen=True, slots=True)
class Met:
    """A listener waits here, and the proof lies in the shared dir, or what kept it from there."""

    kind: ClassVar[str] = "met"
    port: int
    share: str  # empty: written; else the check's id, a space and the system's words


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of dialling all others, and of looking for what they wrote."""

    kind: ClassVar[str] = "tried"
    links: tuple[Link, ...]
    unseen: tuple[str, ...]  # nodes whose proof is not there
    share: str  # as in Met


@dataclass(frozen=True, slots=True)
class Bye:
    """Answer to Over: this part needs the head no more."""

    kind: ClassVar[str] = "bye"


# --- said by the head


@dataclass(frozen=True, slots=True)
class Meet:
    """Open a listener, and write this word into the shared dir."""

    kind: ClassVar[str] = "meet"
    word: str


@dataclass(frozen=True, slots=True)
class Try:
    """Dial all of these but yourself, and look for what they wrote."""

    kind: ClassVar[str] = "try"
    peers: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class Go:
    """Start an attempt of these members."""

    kind: ClassVar[str] = "go"
    attempt: int
    members: tuple[Member, ...]
    port: int


@dataclass(frozen=True, slots=True)
class Finish:
    """End the attempt: after some seconds for the ranks' own last words, with force."""

    kind: ClassVar[str] = "finish"
    attempt: int
    words: float
    why: str


@dataclass(frozen=True, slots=True)
class Dump:
    """Write down what every rank is doing."""

    kind: ClassVar[str] = "dump"
    attempt: int


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop was asked for: once, let the ranks save; twice, kill them."""

    kind: ClassVar[str] = "stop"
    times: int


@dataclass(frozen=True, slots=True)
class Over:
    """The run is over; so is this part."""

    kind: ClassVar[str] = "over"
    end: End
    failure: str = ""
    cause: str = ""  # in words
    node: str = ""
    rank: int | None = None
    why: str = ""  # there is no other attempt
    restarts: int = 0  # that were used

    @property
    def words(self) -> str:
        """Why it failed, in one line."""
        return "; ".join(word for word in (self.cause, self.why) if word) if self.end == "failed" else ""


# --- said by both


@dataclass(frozen=True, slots=True)
class Beat:
    """Still there."""

    kind: ClassVar[str] = "beat"


Message = (
    Hello | Moved | Finished | Asked | Leaving | Dumped | Met | Tried | Bye
    | Meet | Try | Go | Finish | Dump | Stop | Over | Beat
)  # fmt: skip
_KINDS: dict[str, type[Any]] = {
    one.kind: one
    for one in (
        *(Hello, Moved, Finished, Asked, Leaving, Dumped, Met, Tried, Bye),
        *(Meet, Try, Go, Finish, Dump, Stop, Over, Beat),
    )
}


def encode(message: Message) -> str:
    """One line without its newline."""
    return json.dumps({"kind": message.kind, **asdict(message)}, separators=(",", ":"))


def decode(text: str) -> Message:
    """The reverse; ValueError for anything else."""
    try:
        body = json.loads(text)
        kind = _KINDS[body.pop("kind")]
        made: Message = _make(kind, body)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no message: {error!r}") from None
    return made


def report_from(body: dict[str, Any]) -> Report:
    """A report as JSON holds it."""
    signs = tuple(_make(Sign, one) for one in body.get("signs", ()))
    made: Report = _make(Report, {**body, "signs": signs})
    return made


def _make(kind: type[Any], body: dict[str, Any]) -> Any:
    """Fields of a later version are ignored, and lists become the tuples that the records have."""
    known = {f.name: body[f.name] for f in fields(kind) if f.name in body}
    for name, value in known.items():
        inner = _INNER.get(name)
        if inner is not None and value is not None:
            known[name] = tuple(inner(one) for one in value) if isinstance(value, list) else inner(value)
        elif isinstance(value, list):
            known[name] = tuple(value)
    return kind(**known)


_INNER = {
    "member": lambda body: _make(Member, body),
    "members": lambda body: _make(Member, body),
    "links": lambda body: _make(Link, body),
    "peers": lambda body: _make(Link, body),
    "report": report_from,
}
