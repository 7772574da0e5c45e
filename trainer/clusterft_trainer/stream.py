"""What a node's supervisor says while it works: one JSON object a line. Torch-free.

The launcher reads these lines wherever they lie: a file on the node, or a container's log. Owns the record types
and both directions of the encoding.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar, Literal

from clusterft_trainer import progress

SCHEMA = 1
LAUNCHER = -1  # the rank under which the launcher's own output is logged
End = Literal["ok", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Started:
    """The supervisor has the node and has started the launcher."""

    kind: ClassVar[str] = "started"
    pid: int
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
class Ended:
    """The node's part is over; its processes have been ended."""

    kind: ClassVar[str] = "ended"
    end: End
    code: int  # of the launcher; negative is a signal
    at: float
    problem: str = ""  # what of the logs could not be kept or mirrored, in the system's words


@dataclass(frozen=True, slots=True)
class Vanished:
    """Said by a follower, not by the supervisor: it is no more, and left no last word."""

    kind: ClassVar[str] = "vanished"
    at: float


Line = Started | Log | Progress | RankDied | Ended | Vanished


def encode(line: Line) -> str:
    """One line without its newline."""
    if isinstance(line, Progress):
        body: dict[str, object] = {"rank": line.rank, "record": progress.to_dict(line.record)}
    else:
        body = {name: getattr(line, name) for name in line.__slots__}
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
        plain: dict[str, type[Started | Log | RankDied | Ended | Vanished]] = {
            t.kind: t for t in (Started, Log, RankDied, Ended, Vanished)
        }
        return plain[kind](**body)
    except (KeyError, TypeError):
        return None
