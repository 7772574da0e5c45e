"""Diagnosis: the answer of `doctor --run` and `--log`, one object for screen, --json and exit code. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from clusterft.diagnosis.heard import Quote

SCHEMA = 1
Verdict = Literal["failed", "stopped", "running", "ok", "nothing"]


@dataclass(frozen=True, slots=True)
class Follower:
    """What other ranks did after the first cause, alike ones together."""

    what: str
    count: int
    first: float | None  # seconds after the first cause; null where times are not known
    last: float | None


@dataclass(frozen=True, slots=True)
class Setback:
    """An attempt before the newest that failed: who was first, why, and that the run went on."""

    attempt: int  # as it is numbered in logs/attempt-N, from 0 on
    id: str  # as of the whole answer; empty where no line tells why
    summary: str
    node: str
    rank: int | None
    at: float | None
    evidence: tuple[Quote, ...]
    cause: str
    fix: tuple[str, ...]
    after: str  # why the run went on


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Which rank on which node failed first, why, the lines that prove it, and what to do."""

    verdict: Verdict  # failed, stopped (a person asked for it), running, ok, nothing (no sign of a failure)
    id: str = ""  # of the catalogue, or a class: exception, killed, crash, nan, peer-lost, node-lost, ...
    summary: str = ""
    node: str = ""  # empty where no line tells
    rank: int | None = None  # null where it is no rank's, or not known whose
    at: float | None = None  # unix seconds, clock offsets taken off where they are known
    evidence: tuple[Quote, ...] = ()  # the lines that prove it: where (file:line), text
    cause: str = ""
    fix: tuple[str, ...] = ()
    followed: tuple[Follower, ...] = ()  # what came of it: what, count, first and last in seconds after it
    earlier: tuple[Setback, ...] = ()  # the attempts before the newest that failed
    notes: tuple[str, ...] = ()  # how far it can be relied on: clocks, warnings, what has recovered
    unread: tuple[str, ...] = ()  # what could not be read, and why
    run: str = ""  # with --run
    files: int = 0  # that were read
    lines: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The document of `--json`."""
        return {"schema": SCHEMA, **asdict(self)}
