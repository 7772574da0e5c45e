"""What a node's supervisor says while it works: one JSON object a line. Torch-free.

The launcher reads these lines wherever they lie: a file on the node or in its container, or a copy in the shared
dir. Owns the record types and both directions of the encoding.

A part is `Started` (once more each time its supervisor is brought back), then for each attempt `Attempt`, the
lines of its ranks, `AttemptEnded`; at last `Ended`. The head's supervisor also says what concerns the whole gang:
`Found`, `Waiting`, `Hang`, `Decided`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from clusterft_trainer import progress

SCHEMA = 2
LAUNCHER = -1  # the rank under which the launcher's own output is logged
End = Literal["ok", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Started:
    """The supervisor has the node; `incarnation` counts how often it was brought back."""

    kind: ClassVar[str] = "started"
    pid: int
    at: float
    incarnation: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """The launcher of one attempt has been started here."""

    kind: ClassVar[str] = "attempt"
    attempt: int
    machines: int
    machine_rank: int
    first_rank: int
    world: int
    address: str
    port: int
    at: float


@dataclass(frozen=True, slots=True)
class Log:
    """One line that a rank (or the launcher, rank -1) wrote."""

    kind: ClassVar[str] = "log"
    rank: int
    text: str
    at: float


@dataclass(frozen=True, slots=True)
class Progress:
    """One progress record of a rank."""

    kind: ClassVar[str] = "progress"
    rank: int
    record: progress.Record


@dataclass(frozen=True, slots=True)
class RankDied:
    """The launcher reported a rank's death; a negative code is a signal."""

    kind: ClassVar[str] = "rank-died"
    rank: int
    code: int
    pid: int
    at: float


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """An attempt is over on this node; its processes have been ended."""

    kind: ClassVar[str] = "attempt-ended"
    attempt: int
    end: End
    code: int  # of the launcher; negative is a signal
    at: float
    why: str = ""  # where the ranks did not end by themselves: who asked for it


@dataclass(frozen=True, slots=True)
class Found:
    """Said by the head: what the members' own look at ports and shared dir came to. Ids are the catalogue's."""

    kind: ClassVar[str] = "found"
    id: str
    status: str  # ok, warn, fail
    nodes: tuple[str, ...]
    summary: str
    evidence: str = ""
    cause: str = ""
    fix: tuple[str, ...] = ()
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """Said by the head: some members are out of reach, and until when they are waited for."""

    kind: ClassVar[str] = "waiting"
    nodes: tuple[str, ...]  # none: nobody is waited for any more
    until: float
    at: float
    lost: tuple[str, ...] = ()  # nodes that were waited for, and are given up now


@dataclass(frozen=True, slots=True)
class Hang:
    """Said by the head: no step for too long; where the stacks of all ranks lie."""

    kind: ClassVar[str] = "hang"
    attempt: int
    seconds: float
    stacks: str
    at: float


@dataclass(frozen=True, slots=True)
class Decided:
    """Said by the head when an attempt is over: whether there is another one, and why."""

    kind: ClassVar[str] = "decided"
    attempt: int
    again: bool
    failure: str  # the class of the first cause; empty for an end without one
    cause: str  # in words
    node: str
    rank: int | None
    why: str  # what speaks for or against another attempt
    used: int  # restarts so far, this one included
    restarts: int  # how many there may be
    at: float


@dataclass(frozen=True, slots=True)
class Card:
    """One accelerator at one moment; None where the driver does not tell."""

    index: int
    use: float | None  # 0 to 1
    memory: int | None  # bytes
    memory_total: int | None
    temperature: float | None  # degrees Celsius
    power: float | None  # watts


@dataclass(frozen=True, slots=True)
class Usage:
    """How busy a node is, since the last such line."""

    kind: ClassVar[str] = "usage"
    at: float
    cpu: float  # 0 to 1, of all cores
    memory: int  # bytes in use on the node
    memory_total: int
    sent: float  # bytes a second, all interfaces but loopback
    received: float
    cards: tuple[Card, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """The node's part is over for good."""

    kind: ClassVar[str] = "ended"
    end: End
    code: int  # of the last launcher; negative is a signal
    at: float
    problem: str = ""  # what of the logs could not be kept or mirrored, in the system's words
    why: str = ""


@dataclass(frozen=True, slots=True)
class Vanished:
    """Said by a follower, not by the supervisor: it is no more, and left no last word."""

    kind: ClassVar[str] = "vanished"
    at: float


Plain = (
    Started | Attempt | Log | RankDied | AttemptEnded | Found | Waiting | Hang | Decided | Usage | Ended | Vanished
)
Line = Plain | Progress
_PLAIN: dict[str, type[Plain]] = {
    t.kind: t
    for t in (
        Started,
        Attempt,
        Log,
        RankDied,
        AttemptEnded,
        Found,
        Waiting,
        Hang,
        Decided,
        Usage,
        Ended,
        Vanished,
    )
}


def encode(line: Line) -> str:
    """One line without its newline."""
    if isinstance(line, Progress):
        body: dict[str, object] = {"rank": line.rank, "record": progress.to_dict(line.record)}
    else:
        body = {name: getattr(line, name) for name in line.__slots__}
        if isinstance(line, Usage):
            body["cards"] = [{name: getattr(card, name) for name in card.__slots__} for card in line.cards]
    return json.dumps({"schema": SCHEMA, "kind": line.kind, **body}, ensure_ascii=False)


def decode(text: str) -> Line | None:
    """The record in a line; None for a blank, foreign or newer one, or one cut short."""
    try:
        body = json.loads(text)
    except ValueError:
        return None
    if not isinstance(body, dict) or body.pop("schema", None) != SCHEMA:
        return None
    kind = body.pop("kind", None)
    try:
        if kind == Progress.kind:
            record = progress.from_dict(body["record"])
            return None if record is None else Progress(body["rank"], record)
        return _plain(_PLAIN[kind], body)
    except (KeyError, TypeError):
        return None


def _plain(kind: type[Plain], body: dict[str, Any]) -> Plain:
    """JSON knows lists alone where the records have tuples; fields of a later writer are ignored."""
    known: dict[str, Any] = {f.name: body[f.name] for f in fields(kind) if f.name in body}
    if kind is Usage:
        known["cards"] = [Card(**card) for card in known.get("cards", ())]
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    return kind(**known)
