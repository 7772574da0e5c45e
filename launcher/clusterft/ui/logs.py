"""Lines of a run's logs: which are wanted, and how each one looks. Pure; no terminal library, since it is a flood.

Owns the choice (node, rank, attempt, pattern, time) and both forms, for a person and as a JSON object a line.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from clusterft.events import Event, Gone, HeardAgain, Said, Silent
from clusterft_trainer import progress, stream

SCHEMA = 1
# Of a middle brightness: they can be read on a light ground and on a dark one.
_COLOURS = (33, 28, 166, 133, 31, 136, 64, 98)
_QUIET, _BAD = 244, 160
_NAMES = {int(number): number.name for number in signal.Signals}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines somebody asked for; what is None is not asked about."""

    node: str | None = None
    rank: int | None = None
    attempt: int | None = None
    pattern: re.Pattern[str] | None = None
    since: float | None = None  # unix time


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the output; rank None is the node's supervisor."""

    node: str
    rank: int | None
    attempt: int | None
    text: str
    at: float


class Log:
    """Turns what the parts say into the entries that are wanted."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._attempts: dict[str, int] = {}
        self._begun: set[int] = set()

    def lacks(self) -> str:
        """Which attempts there were instead, where the one that is wanted has not begun."""
        wanted = self._wanted.attempt
        if wanted is None or wanted in self._begun:
            return ""
        if not self._begun:
            return "none has begun"
        first, last = min(self._begun), max(self._begun)
        return f"it has attempts {first} to {last}" if last > first else f"it has attempt {first} alone"

    def entry(self, event: Event) -> Entry | None:
        """The entry for an event, if it is one and wanted."""
        if not isinstance(event, Said):
            return None
        line = event.line
        if isinstance(line, stream.Attempt):
            self._attempts[event.node] = line.attempt
            self._begun.add(line.attempt)
        told = _told(line)
        if told is None:
            return None
        rank, text, at = told
        entry = Entry(event.node, rank, self._attempts.get(event.node), text, at)
        return entry if self._fits(entry) else None

    def _fits(self, entry: Entry) -> bool:
        wanted = self._wanted
        return (
            (wanted.node is None or entry.node == wanted.node)
            and (wanted.rank is None or entry.rank == wanted.rank)
            and (wanted.attempt is None or entry.attempt == wanted.attempt)
            and (wanted.since is None or entry.at >= wanted.since)
            and (wanted.pattern is None or wanted.pattern.search(entry.text) is not None)
        )


def _told(line: stream.Line) -> tuple[int | None, str, float] | None:
    """Who says what and when: a rank, its launcher (-1), or their supervisor (None)."""
    if isinstance(line, stream.Log):
        return line.rank, line.text, line.at
    if isinstance(line, stream.Progress):
        return line.rank, _progress(line.record), line.record.at
    if isinstance(line, stream.Attempt):
        place = (
            f"machine rank {line.machine_rank} of {line.machines}, ranks from {line.first_rank} of {line.world}"
        )
        return None, f"attempt {line.attempt} starts: {place}", line.at
    if isinstance(line, stream.RankDied):
        return None, f"rank {line.rank} ended: {_code(line.code)} (pid {line.pid})", line.at
    if isinstance(line, stream.AttemptEnded):
        why = f": {line.why}" if line.why else ""
        return None, f"attempt {line.attempt} ended: {line.end}, {_code(line.code)}{why}", line.at
    return _of_the_gang(line)


def _of_the_gang(line: stream.Line) -> tuple[None, str, float] | None:
    if isinstance(line, stream.Decided) and line.cause:
        after = "another attempt follows" if line.again else f"no other attempt: {line.why}"
        return None, f"{line.failure}: {line.cause}; {after}", line.at
    if isinstance(line, stream.Hang):
        return None, f"no step for {line.seconds:.0f} s; stacks of all ranks: {line.stacks}", line.at
    if isinstance(line, stream.Waiting) and (line.nodes or line.lost):
        given_up = f"given up: {', '.join(line.lost)}" if line.lost else ""
        away = f"out of reach: {', '.join(line.nodes)}; waited for, {line.until - line.at:.0f} s more"
        return None, "; ".join(filter(None, (given_up, away if line.nodes else ""))), line.at
    return None


def _code(code: int) -> str:
    return _NAMES.get(-code, f"signal {-code}") if code < 0 else f"exit code {code}"


def _progress(record: progress.Record) -> str:
    """A progress record as the line that a person would have written."""
    if isinstance(record, progress.Step):
        return (
            f"step {record.step}/{record.steps}  epoch {record.epoch + 1}  loss {record.loss:.4f}  "
            f"rate {record.rate:.1e}  {record.images_per_second:.1f} img/s"
        )
    if isinstance(record, progress.HeldOut):
        return f"held-out loss {record.loss:.4f} at step {record.step}"
    if isinstance(record, progress.Saved):
        return f"{record.what} {record.path} (step {record.step})"
    if isinstance(record, progress.Phase):
        return f"phase: {record.phase}"
    if isinstance(record, progress.Failed):
        return f"failed ({record.failure}): {record.message}"
    return f"done: {record.step} steps" if isinstance(record, progress.Done) else f"notice: {record.text}"


class Form:
    """How an entry looks on a screen: who, then what, the same width for all."""

    def __init__(self, nodes: Iterable[str], *, colours: bool) -> None:
        known = tuple(nodes)
        self._order = {node: place for place, node in enumerate(known)}
        self._width = max((len(node) for node in known), default=0)
        self._colours = colours
        self._prefixes: dict[tuple[str, int | None], str] = {}

    def line(self, entry: Entry) -> str:
        """`n2 rank 3 | text`."""
        key = (entry.node, entry.rank)
        prefix = self._prefixes.get(key)
        if prefix is None:
            prefix = self._prefixes[key] = self._prefix(entry.node, entry.rank)
        if entry.rank is None and self._colours:
            return f"{prefix}\x1b[38;5;{_QUIET}m{entry.text}\x1b[0m"
        return prefix + entry.text

    def _prefix(self, node: str, rank: int | None) -> str:
        who = "" if rank is None else "launcher" if rank < 0 else f"rank {rank}"
        text = f"{node:<{self._width}} {who:<8} | "
        if not self._colours:
            return text
        place = self._order.get(node, 0) + max(0, rank or 0)
        return f"\x1b[38;5;{_COLOURS[place % len(_COLOURS)]}m{text}\x1b[0m"


def to_json(entry: Entry) -> str:
    """One JSON object; a supervisor's line has no rank, the launcher's has -1."""
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "at": entry.at,
        "node": entry.node,
        "rank": entry.rank,
        "attempt": entry.attempt,
        "text": entry.text,
    }
    return json.dumps(body, ensure_ascii=False)


def aside(event: Event) -> str | None:
    """What is said beside the log: that a node cannot be read now, and that it can again."""
    if isinstance(event, Silent):
        return f"! {event.node} is silent: {event.words}"
    if isinstance(event, HeardAgain):
        return f"✓ {event.node} is heard again"
    return f"✗ {event.node}: {event.words}" if isinstance(event, Gone) else None
