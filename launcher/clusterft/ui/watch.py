"""A run while it happens: a live screen on a terminal, plain lines elsewhere, silence under --json.

What is drawn is a pure function of the Board (`live`), what stays is told once (`happenings`); here is only when.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TextIO

from clusterft.board import Board
from clusterft.events import Event, Said
from clusterft.ui import figures, live, sparkline
from clusterft.ui.happenings import Teller
from clusterft.ui.terminal import Still
from clusterft_trainer import progress, stream

_PLAIN_EVERY = 5.0  # seconds between step lines without a terminal
_SIGN_EVERY = 60.0  # the same of a run that has no steps to tell: its newest log line
_REDRAW_EVERY = 0.125


class Watcher(Protocol):
    """Shown each event after the Board has taken it in."""

    def show(self, event: Event, board: Board) -> None: ...

    def tick(self, board: Board) -> None:
        """Nothing has happened for a moment."""

    def ask(self, question: str) -> None:
        """Show what the user is asked, in the place of the keys; nothing takes it away."""


def watcher(*, quiet: bool) -> AbstractContextManager[Watcher]:
    """The watcher that fits where stdout goes."""
    if quiet:
        return nullcontext(Silence())
    if sys.stdout.isatty():
        return LiveWatcher()
    return nullcontext(PlainWatcher(sys.stdout))


def notes(*, quiet: bool) -> Callable[[str], None]:
    """How a remark before the start is shown: on stdout, or on stderr where stdout belongs to a document."""
    out = sys.stderr if quiet else sys.stdout

    return lambda line: say(out, line)


def say(out: TextIO, line: str) -> None:
    """One line; a reader that went away (| head) is no reason to leave a run unwatched."""
    try:
        out.write(line + "\n")
        out.flush()
    except BrokenPipeError:
        # What is still to be said has nowhere to go, also when the interpreter flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


class Silence:
    """For --json."""

    def show(self, event: Event, board: Board) -> None:
        """Show nothing."""

    def tick(self, board: Board) -> None:
        """Show nothing."""

    def ask(self, question: str) -> None:
        """Nobody reads it."""


class PlainWatcher:
    """One line for each thing worth a line; steps at most every few seconds."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._teller = Teller()
        self._next_step = 0.0
        self._next_sign: float | None = None

    def show(self, event: Event, board: Board) -> None:
        """Print the event, if it is worth a line."""
        text = self._teller.tell(event, board)
        if text:
            say(self._out, text)
        if isinstance(event, Said):
            line = event.line
            if isinstance(line, stream.Progress) and isinstance(line.record, progress.Step):
                self._step(line.record, board)
            elif isinstance(line, stream.Log) or (board.prep and isinstance(line, stream.Progress)):
                self._sign(board)

    def tick(self, board: Board) -> None:
        """Nothing has happened, so there is nothing to say."""

    def ask(self, question: str) -> None:
        """A line of its own."""
        if question:
            say(self._out, question)

    def _step(self, record: progress.Step, board: Board) -> None:
        now = time.monotonic()
        if now >= self._next_step or record.step == record.steps:
            self._next_step = now + _PLAIN_EVERY
            say(self._out, step_line(record, board))

    def _sign(self, board: Board) -> None:
        """A script's own lines are all that tells that it lives: one now and then."""
        now = time.monotonic()
        if self._next_sign is None or board.reached is not None:
            self._next_sign = now + _SIGN_EVERY
        elif now >= self._next_sign and board.latest is not None:
            self._next_sign = now + _SIGN_EVERY
            node, rank, words = board.latest
            who = f"{node} rank {rank}" if rank >= 0 else node
            say(self._out, figures.shortened(f"  {who}: {words}", 160))


class LiveWatcher:
    """A screen that redraws itself; what is worth keeping is printed above it."""

    def __enter__(self) -> LiveWatcher:
        from rich.console import Console
        from rich.live import Live

        self._teller = Teller()
        self._question = ""
        self._next = 0.0
        self._console = Console(highlight=False)
        self._still = Still(sys.stdout.fileno())
        # Drawn by who calls, never by a thread beside it: the Board must not change while it is read.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._still.restore()

    def show(self, event: Event, board: Board) -> None:
        """Print above the screen what should stay; redraw, but not for every line of a flood."""
        text = self._teller.tell(event, board)
        if text:
            self._console.print(text, markup=False, soft_wrap=True)
        self.tick(board)

    def tick(self, board: Board) -> None:
        """Redraw, if it is time to."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _REDRAW_EVERY
            self._live.update(live.Screen(board, self._question or live.KEYS), refresh=True)

    def ask(self, question: str) -> None:
        """In the place of the keys, from the next redraw on."""
        self._question = question
        self._next = 0.0


def step_line(step: progress.Step, board: Board) -> str:
    """One step as one line."""
    mfu = "" if step.mfu is None else f"  MFU {step.mfu:.0%}"
    return (
        f"step {step.step}/{step.steps}  loss {step.loss:.4f}  {sparkline.draw(board.losses, 20)}  "
        f"{step.images_per_second:.1f} img/s{mfu}  ETA {live.eta(board)}"
    )
