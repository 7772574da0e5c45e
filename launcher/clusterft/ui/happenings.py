"""What of all that happens to a run is worth a line that stays; each thing once. Values in, text out."""

from __future__ import annotations

import re

from clusterft import commands
from clusterft.board import Board
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
from clusterft.ui import figures, nodes
from clusterft_trainer import progress, stream

_NUMBERS = re.compile(r"\d[\d .,:%]*")


class Teller:
    """Remembers what it has told: every attempt gives the same notices again, and every node begins it."""

    def __init__(self) -> None:
        self._attempt: int | None = None
        self._notices: set[str] = set()
        self._found: set[tuple[str, str]] = set()

    def tell(self, event: Event, board: Board) -> str | None:
        """The line for an event that the Board has taken in already; steps are no happenings."""
        if not isinstance(event, Said):
            return _of_the_gang(event)
        line = event.line
        if isinstance(line, stream.Progress):
            return self._progress(line.rank, line.record, board)
        if isinstance(line, stream.Attempt):
            return self._begun(line)
        if isinstance(line, stream.Found):
            return self._finding(line)
        return _said(event.node, line, board)

    def _begun(self, line: stream.Attempt) -> str | None:
        """The head speaks for all: in its stream the end of the attempt before comes first.

        Of a run's first attempt the stages have told.
        """
        if line.machine_rank != 0 or line.attempt == 0 or line.attempt == self._attempt:
            return None
        self._attempt = line.attempt
        return f"attempt {line.attempt} starts: {_counted(line.machines, 'node')}, {_counted(line.world, 'rank')}"

    def _finding(self, line: stream.Found) -> str | None:
        if line.status == "ok" or (line.id, line.summary) in self._found:
            return None
        self._found.add((line.id, line.summary))
        mark = "✗" if line.status == "fail" else "!"
        return f"{mark} {line.id}  {', '.join(line.nodes)}  {line.summary}"

    def _progress(self, rank: int, record: progress.Record, board: Board) -> str | None:
        if isinstance(record, progress.Phase):
            return nodes.PHASES.get(record.phase, record.phase) if rank == 0 else None
        if isinstance(record, progress.Saved):
            return f"  {record.what} {record.path}  (step {record.step}, {record.seconds:.1f} s)"
        if isinstance(record, progress.HeldOut):
            return f"  held-out loss {record.loss:.4f}  (step {record.step}, {record.seconds:.1f} s)"
        return self._notice(rank, record.text, board) if isinstance(record, progress.Notice) else None

    def _notice(self, rank: int, text: str, board: Board) -> str | None:
        """Each once; what ranks that prepare say is no warning, and the same with other numbers is the same."""
        counts = board.prep and rank >= 0
        told = _NUMBERS.sub("#", text) if counts else text
        if told in self._notices:
            return None
        self._notices.add(told)
        return f"  {text}" if counts else f"! {text}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _said(node: str, line: stream.Line, board: Board) -> str | None:
    """A line of a supervisor that concerns more than its own node."""
    if isinstance(line, stream.Decided):
        return _decision(line, board)
    if isinstance(line, stream.Hang):
        stacks = f"; what every rank was doing: {line.stacks}" if line.stacks else ""
        return f"! no step for {figures.span(line.seconds)}{stacks}"
    if isinstance(line, stream.Waiting):
        return _waiting(line)
    if isinstance(line, stream.Started) and line.incarnation:
        return f"! {node} is back: its supervisor was started again"
    return None


def _waiting(line: stream.Waiting) -> str:
    """`until` is when the first of them is given up: what is left of their time, and not what has passed."""
    told = [f"{', '.join(line.lost)} given up: out of the head's reach for too long"] if line.lost else []
    if line.nodes:
        left = f"waited for, {figures.span(line.until - line.at)} more"
        told.append(f"{', '.join(line.nodes)} out of the head's reach: {left}")
    return f"! {'; '.join(told)}" if told else "✓ all nodes are within reach of each other again"


def _decision(line: stream.Decided, board: Board) -> str | None:
    """Nothing of an end that needs no words: all is well, or as asked."""
    if not line.again and not line.failure:
        return None
    if line.attempt not in board.attempts:  # before the first one; a check has been told of already
        known = line.failure in board.found
        return None if known else f"✗ no attempt began ({line.failure}): {line.cause}; {line.why}"
    step = board.attempts[line.attempt].step
    head = f"attempt {line.attempt} ended{f' at step {step.step}' if step else ''} ({line.failure}): {line.cause}"
    if line.again:
        return f"! {head}; another attempt follows: {line.why}"
    return f"✗ {head}; no other attempt: {line.why}"


def _of_the_gang(event: Event) -> str | None:
    """What this controller itself saw or did."""
    if isinstance(event, StageDone):
        return f"✓ {event.name}  {event.seconds:.1f} s"
    if isinstance(event, Silent):
        return f"! {event.node} is silent: {event.words}"
    if isinstance(event, HeardAgain):
        return f"✓ {event.node} is heard again"
    if isinstance(event, Gone):
        return f"✗ {event.node} is gone: {commands.shown(event.words)}"
    if isinstance(event, Replaced):
        return f"! {event.by} takes the place of {event.node}"
    if isinstance(event, Replanned):
        return f"! planned anew for {', '.join(event.nodes)}: attempt {event.attempt}"
    return f"stopping: {event.reason}" if isinstance(event, Stopping) else None
