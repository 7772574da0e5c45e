"""The running total of a run's events: the one thing that screens and verdicts are made from.

Nodes are heard at their own pace, so each line counts for the attempt that its node was in when it said it. Steps
that a later attempt trains again replace the earlier ones: nothing stands twice.
"""

from __future__ import annotations

import math
import re
from collections import deque
from dataclasses import dataclass, field, replace

from clusterft.board.attempt import Attempt
from clusterft.events import (
    Event,
    Gone,
    HeardAgain,
    Replaced,
    Replanned,
    Said,
    Silent,
    StageDone,
    Stopping,
)
from clusterft_trainer import progress, stream

_LOSSES = 4096  # losses kept for the sparkline; thinned by half when full
_USAGES = 120  # usage lines kept of each node
_WORTH = 8  # lines kept of those that speak of trouble
_NOTICES = 50
# What is worth a glance in a flood of lines; a name of a class that ends so, or a word that loggers print.
# Libraries' advice to their developers, and what elastic says of every end, is none.
_NOISE = re.compile(r"(Future|Deprecation)Warning|ChildFailedError|^raise ")
_TROUBLE = re.compile(r"\b(ERROR|CRITICAL|FATAL|WARN(ING)?)\b|\w(Error|Exception|Warning)\b(?!s)|[Oo]ut of memory")


@dataclass(frozen=True, slots=True)
class Remarkable:
    """A line of a log that speaks of trouble, and how many ranks have said it."""

    node: str
    rank: int
    text: str
    times: int = 1


@dataclass(slots=True)
class Board:
    """Filled by `see`; everything else only reads."""

    run: str
    nodes: tuple[str, ...]
    offsets: dict[str, float] = field(default_factory=dict)  # seconds that a node's clock is ahead
    run_dir: str = ""
    restarts: int | None = None  # how many there may be, as far as the job says
    prep: bool = False  # it prepares data: no steps, no checkpoints
    stages: list[StageDone] = field(default_factory=list)
    attempts: dict[int, Attempt] = field(default_factory=dict)  # all that were begun, by number
    attempt: Attempt = field(default_factory=Attempt)  # the newest of them
    reached: progress.Step | None = None  # the newest step of all attempts
    held_out: progress.HeldOut | None = None  # the newest
    least: progress.HeldOut | None = None  # the lowest
    saved: dict[str, progress.Saved] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    noticed: float = 0.0  # when the newest of them was told
    worth: deque[Remarkable] = field(default_factory=lambda: deque(maxlen=_WORTH))
    latest: tuple[str, int, str] | None = None  # the newest line of any rank: all that a script may ever tell
    done: progress.Done | None = None
    found: dict[str, stream.Found] = field(default_factory=dict)  # by id; only what is not ok
    waiting: stream.Waiting | None = None
    decided: stream.Decided | None = None  # the newest
    usage: dict[str, stream.Usage] = field(default_factory=dict)  # the newest of each node
    usages: dict[str, deque[stream.Usage]] = field(default_factory=dict)
    ended: dict[str, stream.Ended] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)  # a node that was lost -> the one in its place
    stopping: str | None = None
    clock: float = 0.0  # the newest time that was told, on the controller's clock
    _of: dict[str, Attempt] = field(default_factory=dict)  # the attempt that each node is in
    _history: list[tuple[int, float]] = field(default_factory=list)  # step and loss
    _loss_every: int = 1

    @property
    def losses(self) -> list[float]:
        """Of the steps so far, each once; a long run is thinned."""
        return [loss for _, loss in self._history]

    @property
    def step(self) -> progress.Step | None:
        """The newest step of the newest attempt."""
        return self.attempt.step

    @property
    def first_step(self) -> progress.Step | None:
        """The first step of the newest attempt; a resumed run does not begin at 1."""
        return self.attempt.first_step

    @property
    def phase(self) -> str | None:
        """The stage that rank 0 is in."""
        return self.attempt.phase

    @property
    def used(self) -> int:
        """Restarts so far."""
        return self.decided.used if self.decided else 0

    @property
    def allowed(self) -> int | None:
        """How many restarts there may be; None where nobody has said."""
        return self.decided.restarts if self.decided else self.restarts

    @property
    def head(self) -> str:
        """The node of rank 0."""
        return self.attempt.head or self.nodes[0]

    @property
    def asked(self) -> bool:
        """Whether somebody at this controller wanted the end."""
        return self.stopping is not None and self.stopping.startswith("asked")

    @property
    def over(self) -> bool:
        """Whether every node's part is over, or lost."""
        return all(node in self.ended or node in self.gone for node in self.nodes)

    @property
    def checkpoint_age(self) -> float | None:
        """Seconds between the newest checkpoint and the newest step, both by the clock of rank 0's node."""
        saved = self.saved.get("checkpoint")
        return None if saved is None or self.step is None else max(0.0, self.step.at - saved.at)

    @property
    def problems(self) -> dict[str, str]:
        """Nodes whose logs could not all be kept or mirrored, and why."""
        return {node: ended.problem for node, ended in self.ended.items() if ended.problem}

    def see(self, event: Event) -> None:
        """Take one event in."""
        if isinstance(event, Said):
            self.silent.pop(event.node, None)
            self._hear(event.node, event.line)
        elif isinstance(event, StageDone):
            self.stages.append(event)
        elif isinstance(event, Silent):
            self.silent[event.node] = event.words
        elif isinstance(event, HeardAgain):
            self.silent.pop(event.node, None)
        elif isinstance(event, Gone):
            self.gone[event.node] = event.words
        elif isinstance(event, Stopping):
            self.stopping = self.stopping or event.reason
        else:
            self._regroup(event)

    def _regroup(self, event: Replaced | Replanned) -> None:
        """The gang has other nodes from now on; what was known of the ends of its parts no longer holds."""
        if isinstance(event, Replaced):
            self.replaced[event.node] = event.by
            left = tuple(event.by if node == event.node else node for node in self.nodes)
            parted = {event.node, event.by}
        else:
            left, parted = event.nodes, {*self.nodes, *event.nodes}
        self.nodes = left
        for known in (self.ended, self.gone, self.silent):
            for node in parted:
                known.pop(node, None)

    def _hear(self, node: str, line: stream.Line) -> None:
        ahead = self.offsets.get(node, 0.0)
        at = line.record.at if isinstance(line, stream.Progress) else line.at
        self.clock = max(self.clock, at - ahead)
        attempt = self._of.get(node, self.attempt)
        if isinstance(line, stream.Log):
            attempt.tails[node, line.rank].append(line.text)
            self._remark(attempt, node, line)
        elif isinstance(line, stream.Progress):
            self._progress(attempt, node, line.rank, line.record)
        elif isinstance(line, stream.Attempt):
            self._begin(node, replace(line, at=line.at - ahead))
        elif isinstance(line, stream.RankDied):
            attempt.deaths.append((node, replace(line, at=line.at - ahead)))
        elif isinstance(line, stream.AttemptEnded):
            self.attempts.get(line.attempt, attempt).ends[node] = replace(line, at=line.at - ahead)
        else:
            self._hear_supervisor(attempt, node, line, ahead)

    def _hear_supervisor(self, attempt: Attempt, node: str, line: stream.Line, ahead: float) -> None:
        """What concerns a node as a whole."""
        if isinstance(line, stream.Started):
            # Of a run that was resumed, its earlier life has said its last word before.
            self.ended.pop(node, None)
            self.gone.pop(node, None)
        elif isinstance(line, stream.Ended):
            self.ended[node] = replace(line, at=line.at - ahead)
        elif isinstance(line, stream.Usage):
            self.usage[node] = line
            self.usages.setdefault(node, deque(maxlen=_USAGES)).append(line)
        else:
            self._hear_head(attempt, line, ahead)

    def _hear_head(self, attempt: Attempt, line: stream.Line, ahead: float) -> None:
        """What concerns the whole gang."""
        if isinstance(line, stream.Waiting):
            self.waiting = replace(line, until=line.until - ahead, at=line.at - ahead) if line.nodes else None
        elif isinstance(line, stream.Found):
            if line.status == "ok":
                self.found.pop(line.id, None)
            else:
                self.found[line.id] = line
        elif isinstance(line, stream.Hang):
            self.attempts.get(line.attempt, attempt).hang = replace(line, at=line.at - ahead)
        elif isinstance(line, stream.Decided):
            self.decided = replace(line, at=line.at - ahead)
            self.attempts.get(line.attempt, attempt).decided = self.decided

    def _begin(self, node: str, line: stream.Attempt) -> None:
        """A node is in an attempt now; the first node that says so makes it the newest."""
        known = self.attempts.get(line.attempt)
        if known is None:
            # What was said before any attempt began is evidence of the first one.
            fresh = not self.attempts
            known = self.attempt if fresh else Attempt()
            known.number, known.began = line.attempt, line.at
            self.attempts[line.attempt] = known
            if fresh or line.attempt > self.attempt.number:
                self._turn_to(known)
        known.members[node] = line
        known.began = min(line.at, known.began or line.at)
        self._of[node] = known

    def _turn_to(self, attempt: Attempt) -> None:
        for older in self.attempts.values():
            if older is not attempt and older is not self.attempt:
                older.forget()
        self.attempt = attempt
        self.worth.clear()

    def _remark(self, attempt: Attempt, node: str, line: stream.Log) -> None:
        """What is worth a glance of the newest attempt alone: of those before, the causes are known."""
        text = line.text.strip()
        if not text or attempt is not self.attempt:
            return
        self.latest = (node, line.rank, text)
        if not _TROUBLE.search(text) or _NOISE.search(text):
            return
        for place, known in enumerate(self.worth):
            if known.text == text:
                self.worth[place] = replace(known, times=known.times + 1)
                return
        self.worth.append(Remarkable(node, line.rank, text))

    def _progress(self, attempt: Attempt, node: str, rank: int, record: progress.Record) -> None:
        if isinstance(record, progress.Step):
            self._step(attempt, record)
        elif isinstance(record, progress.Phase):
            attempt.phases[node] = record.phase
            if rank == 0:
                attempt.phase = record.phase
        elif isinstance(record, progress.Failed):
            failed = replace(record, at=record.at - self.offsets.get(node, 0.0))
            attempt.failures.append((node, rank, failed))
        else:
            if self.prep and isinstance(record, progress.Notice):
                self.latest = (node, rank, record.text)
            self._result(record)

    def _result(self, record: progress.HeldOut | progress.Saved | progress.Notice | progress.Done) -> None:
        """What holds for the run as a whole, whichever attempt it came from."""
        if isinstance(record, progress.HeldOut):
            self.held_out = record
            if self.least is None or math.isnan(self.least.loss) or record.loss < self.least.loss:
                self.least = record
        elif isinstance(record, progress.Saved):
            self.saved[record.what] = record
        elif isinstance(record, progress.Notice):
            if record.text not in self.notices:  # each attempt gives the same ones again
                self.notices = [*self.notices, record.text][-_NOTICES:]
                self.noticed = self.clock
        else:
            self.done = record

    def _step(self, attempt: Attempt, step: progress.Step) -> None:
        if attempt is not self.attempt and self.attempt.first_step:
            return  # late words of a head that was lost: the newest attempt has trained on from elsewhere
        if attempt.first_step is None:
            attempt.first_step = step
            self._cut_back(step.step)
        attempt.step = self.reached = step
        if step.step % self._loss_every == 0:
            self._history.append((step.step, step.loss))
        if len(self._history) > _LOSSES:
            self._history = self._history[::2]
            self._loss_every *= 2

    def _cut_back(self, step: int) -> None:
        """An attempt goes on from here: later steps are trained again, and no later checkpoint was of use."""
        while self._history and self._history[-1][0] >= step:
            self._history.pop()
        saved = self.saved.get("checkpoint")
        if saved and saved.step >= step:
            del self.saved["checkpoint"]
