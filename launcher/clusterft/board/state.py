"""The running total of a run's events: the one thing that screens and verdicts are made from."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from dataclasses import dataclass, field, replace

from clusterft.events import Event, Gone, HeardAgain, Said, Silent, StageDone, Stopping
from clusterft_trainer import progress, stream

_TAIL = 30  # last lines kept of each rank
_LOSSES = 4096  # losses kept for the sparkline; thinned by half when full


@dataclass(slots=True)
class Board:
    """Filled by `see`; everything else only reads."""

    run: str
    nodes: tuple[str, ...]
    offsets: dict[str, float] = field(default_factory=dict)  # seconds that a node's clock is ahead
    stages: list[StageDone] = field(default_factory=list)
    phase: str | None = None
    step: progress.Step | None = None
    first_step: progress.Step | None = None  # of this attempt; a resumed run does not begin at 1
    losses: list[float] = field(default_factory=list)
    held_out: progress.HeldOut | None = None  # the newest
    least: progress.HeldOut | None = None  # the lowest of this attempt
    saved: dict[str, progress.Saved] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    done: progress.Done | None = None
    failures: list[tuple[str, int, progress.Failed]] = field(default_factory=list)
    deaths: list[tuple[str, stream.RankDied]] = field(default_factory=list)
    ended: dict[str, stream.Ended] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    stopping: str | None = None
    tails: dict[tuple[str, int], deque[str]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=_TAIL))
    )
    _loss_every: int = 1

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

    def _hear(self, node: str, line: stream.Line) -> None:
        ahead = self.offsets.get(node, 0.0)
        if isinstance(line, stream.Log):
            self.tails[node, line.rank].append(line.text)
        elif isinstance(line, stream.Progress):
            self._progress(node, line.rank, line.record)
        elif isinstance(line, stream.RankDied):
            self.deaths.append((node, replace(line, at=line.at - ahead)))
        elif isinstance(line, stream.Ended):
            self.ended[node] = replace(line, at=line.at - ahead)

    def _progress(self, node: str, rank: int, record: progress.Record) -> None:
        if isinstance(record, progress.Step):
            self._step(record)
        elif isinstance(record, progress.HeldOut):
            self.held_out = record
            if self.least is None or math.isnan(self.least.loss) or record.loss < self.least.loss:
                self.least = record
        elif isinstance(record, progress.Phase) and rank == 0:
            self.phase = record.phase
        elif isinstance(record, progress.Saved):
            self.saved[record.what] = record
        elif isinstance(record, progress.Notice):
            self.notices.append(record.text)
        elif isinstance(record, progress.Failed):
            self.failures.append((node, rank, replace(record, at=record.at - self.offsets.get(node, 0.0))))
        elif isinstance(record, progress.Done):
            self.done = record

    def _step(self, step: progress.Step) -> None:
        self.step = step
        self.first_step = self.first_step or step
        if step.step % self._loss_every == 0:
            self.losses.append(step.loss)
        if len(self.losses) > _LOSSES:
            self.losses = self.losses[::2]
            self._loss_every *= 2
