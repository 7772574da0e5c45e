"""All that is known of a run, gathered from the lines of its nodes. Pure: lines in, an Account out.

Owns what a page can be made of. Bounded in everything that a long or a broken run can make much of.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from clusterft_trainer import progress, stream
from clusterft_trainer.report.course import Course
from clusterft_trainer.report.thinning import Trace

MOST = 400  # of anything that is listed one by one
_T = TypeVar("_T")


@dataclass(slots=True)
class CardUse:
    """One accelerator over time."""

    use: Trace = field(default_factory=Trace)
    memory: Trace = field(default_factory=Trace)
    temperature: Trace = field(default_factory=Trace)
    power: Trace = field(default_factory=Trace)
    memory_total: int = 0


@dataclass(slots=True)
class NodeUse:
    """One node over time, and how its part ended."""

    name: str
    cpu: Trace = field(default_factory=Trace)
    memory: Trace = field(default_factory=Trace)
    sent: Trace = field(default_factory=Trace)
    received: Trace = field(default_factory=Trace)
    memory_total: int = 0
    cards: dict[int, CardUse] = field(default_factory=dict)
    starts: int = 0  # of its supervisor
    log_lines: int = 0
    ended: stream.Ended | None = None
    course: Course = field(default_factory=Course)


@dataclass(slots=True)
class Attempt:
    """One start of the gang, over all nodes."""

    number: int
    nodes: set[str] = field(default_factory=set)
    world: int = 0
    began: float | None = None
    last_heard: float | None = None
    ended: float | None = None
    end: str = ""  # the worst of its nodes
    phases: list[tuple[str, float]] = field(default_factory=list)
    first_step: int | None = None
    last_step: int | None = None
    checkpoints: list[tuple[int, float]] = field(default_factory=list)
    decided: stream.Decided | None = None
    hangs: list[stream.Hang] = field(default_factory=list)
    deaths: list[tuple[str, stream.RankDied]] = field(default_factory=list)
    failures: list[tuple[str, int, progress.Failed]] = field(default_factory=list)

    @property
    def until(self) -> float | None:
        """When it was over, as far as is known."""
        return self.ended if self.ended is not None else self.last_heard


@dataclass(slots=True)
class Said:
    """One notice, however often and by how many it was said."""

    text: str
    at: float
    nodes: set[str] = field(default_factory=set)
    times: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint that lies in the run directory."""

    step: int
    roles: tuple[str, ...]
    held_out: float | None
    size: int | None
    written: float | None
    global_batch: int | None
    problem: str  # why it is not whole
    config: object = None  # all settings, as they were


@dataclass(frozen=True, slots=True)
class Delivered:
    """A file of the export."""

    path: str
    size: int


@dataclass(slots=True)
class Account:
    """What the run directory tells."""

    folder: Path
    record: object = None  # run.json
    outcome: object = None  # outcome.json
    job_text: str = ""
    metrics: Course = field(default_factory=Course)  # of metrics.jsonl
    nodes: dict[str, NodeUse] = field(default_factory=dict)
    attempts: dict[int, Attempt] = field(default_factory=dict)
    held_out: dict[int, float] = field(default_factory=dict)
    saved: list[progress.Saved] = field(default_factory=list)
    notices: dict[str, Said] = field(default_factory=dict)
    found: list[stream.Found] = field(default_factory=list)
    waits: list[stream.Waiting] = field(default_factory=list)
    done: progress.Done | None = None
    first_at: float = math.inf
    last_at: float = -math.inf
    tails: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    checkpoints: list[Kept] = field(default_factory=list)
    exports: list[Delivered] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)  # names in samples/
    unread: list[str] = field(default_factory=list)  # what could not be read, in words

    def attempt(self, number: int) -> Attempt:
        """The attempt of that number."""
        return self.attempts.setdefault(number, Attempt(number))

    def node(self, name: str) -> NodeUse:
        """The node of that name."""
        return self.nodes.setdefault(name, NodeUse(name))


class Listener:
    """Takes in the lines of one node, in their order."""

    def __init__(self, account: Account, node: str) -> None:
        self._account = account
        self._node = account.node(node)
        self._attempt: Attempt | None = None
        self._take: dict[type[Any], Callable[[Any], None]] = {
            stream.Started: self._started,
            stream.Attempt: self._begun,
            stream.AttemptEnded: self._attempt_ended,
            stream.RankDied: self._died,
            stream.Found: self._found,
            stream.Waiting: account.waits.append,
            stream.Hang: self._hang,
            stream.Decided: self._decided,
            stream.Usage: self._usage,
            stream.Ended: self._ended,
        }

    def hear(self, line: stream.Line) -> None:
        """One line that is no log line."""
        if isinstance(line, stream.Progress):
            self._when(line.record.at)
            self._progress(line.rank, line.record)
            return
        if take := self._take.get(type(line)):
            self._when(line.at)
            take(line)

    def _when(self, at: float) -> None:
        account = self._account
        account.first_at = min(account.first_at, at)
        account.last_at = max(account.last_at, at)
        if self._attempt is not None:
            self._attempt.last_heard = max(self._attempt.last_heard or at, at)

    def _started(self, _: stream.Started) -> None:
        self._node.starts += 1

    def _begun(self, line: stream.Attempt) -> None:
        attempt = self._attempt = self._account.attempt(line.attempt)
        attempt.nodes.add(self._node.name)
        attempt.world = max(attempt.world, line.world)
        attempt.began = line.at if attempt.began is None else min(attempt.began, line.at)
        attempt.last_heard = max(attempt.last_heard or line.at, line.at)

    def _attempt_ended(self, line: stream.AttemptEnded) -> None:
        attempt = self._account.attempt(line.attempt)
        attempt.ended = max(attempt.ended or line.at, line.at)
        order = ("", "ok", "stopped", "failed")
        attempt.end = max(attempt.end, line.end, key=lambda end: order.index(end) if end in order else 0)
        self._attempt = None

    def _died(self, line: stream.RankDied) -> None:
        if self._attempt is not None:
            _append(self._attempt.deaths, (self._node.name, line))

    def _found(self, line: stream.Found) -> None:
        if line.status != "ok":
            _append(self._account.found, line)

    def _hang(self, line: stream.Hang) -> None:
        _append(self._account.attempt(line.attempt).hangs, line)

    def _decided(self, line: stream.Decided) -> None:
        self._account.attempt(line.attempt).decided = line

    def _usage(self, line: stream.Usage) -> None:
        node = self._node
        node.cpu.add(line.at, line.cpu)
        node.memory.add(line.at, line.memory)
        node.sent.add(line.at, line.sent)
        node.received.add(line.at, line.received)
        node.memory_total = line.memory_total
        for card in line.cards:
            known = node.cards.setdefault(card.index, CardUse())
            known.memory_total = card.memory_total or known.memory_total
            for name in ("use", "memory", "temperature", "power"):
                value = getattr(card, name)
                if value is not None:
                    getattr(known, name).add(line.at, value)

    def _ended(self, line: stream.Ended) -> None:
        self._node.ended = line

    def _progress(self, rank: int, record: progress.Record) -> None:
        if isinstance(record, progress.Step):
            self._step(record)
        elif isinstance(record, progress.Notice):
            self._notice(record)
        elif isinstance(record, progress.HeldOut):
            self._account.held_out[record.step] = record.loss
        elif isinstance(record, progress.Saved):
            self._saved(record)
        elif isinstance(record, progress.Done):
            self._account.done = record
        elif self._attempt is not None:
            self._of_attempt(self._attempt, rank, record)

    def _of_attempt(self, attempt: Attempt, rank: int, record: progress.Record) -> None:
        if isinstance(record, progress.Phase):
            _append(attempt.phases, (record.phase, record.at))
        elif isinstance(record, progress.Failed):
            _append(attempt.failures, (self._node.name, rank, record))

    def _step(self, record: progress.Step) -> None:
        self._node.course.add(record)
        if self._attempt is not None:
            if self._attempt.first_step is None:
                self._attempt.first_step = record.step
            self._attempt.last_step = record.step

    def _saved(self, record: progress.Saved) -> None:
        if record.what in ("checkpoint", "export"):
            _append(self._account.saved, record, 20 * MOST)
        if record.what == "checkpoint" and self._attempt is not None:
            _append(self._attempt.checkpoints, (record.step, record.at), 20 * MOST)

    def _notice(self, record: progress.Notice) -> None:
        notices = self._account.notices
        if record.text not in notices and len(notices) >= MOST:
            return
        said = notices.setdefault(record.text, Said(record.text, record.at))
        said.at = min(said.at, record.at)
        said.nodes.add(self._node.name)
        said.times += 1


def _append(known: list[_T], one: _T, most: int = MOST) -> None:
    if len(known) < most:
        known.append(one)
