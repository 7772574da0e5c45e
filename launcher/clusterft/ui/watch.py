"""A run while it happens: a live screen on a terminal, plain lines elsewhere, silence under --json.

The screen is drawn from the Board alone; `screen` is a pure function of it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol, TextIO

from clusterft.board import Board
from clusterft.events import Event, Gone, HeardAgain, Said, Silent, StageDone, Stopping
from clusterft.ui import sparkline
from clusterft_trainer import progress, stream

if TYPE_CHECKING:
    from rich.console import RenderableType

_PLAIN_EVERY = 5.0  # seconds between step lines without a terminal
_WORDS = {
    "imports": "loading libraries",
    "model": "loading the model",
    "data": "reading the data",
    "train": "training",
    "export": "writing the model",
}


class Watcher(Protocol):
    """Shown each event after the Board has taken it in."""

    def show(self, event: Event, board: Board) -> None: ...


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


class PlainWatcher:
    """One line for each thing worth a line; steps at most every few seconds."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._next_step = 0.0

    def show(self, event: Event, board: Board) -> None:
        """Print the event, if it is worth a line."""
        text = self._line(event, board)
        if text:
            say(self._out, text)

    def _line(self, event: Event, board: Board) -> str | None:
        if isinstance(event, Said) and isinstance(event.line, stream.Progress):
            return self._progress(event.line.record, board)
        return happening(event)

    def _progress(self, record: progress.Record, board: Board) -> str | None:
        if isinstance(record, progress.Step):
            now = time.monotonic()
            if now < self._next_step and record.step != record.steps:
                return None
            self._next_step = now + _PLAIN_EVERY
            return step_line(record, board)
        if isinstance(record, progress.Phase):
            return _WORDS.get(record.phase, record.phase)
        return remark(record)


class LiveWatcher:
    """A screen that redraws itself; what is worth keeping is printed above it."""

    def __enter__(self) -> LiveWatcher:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, event: Event, board: Board) -> None:
        """Redraw; print above the screen what should stay."""
        line = event.line if isinstance(event, Said) else None
        text = remark(line.record) if isinstance(line, stream.Progress) else happening(event)
        if text:
            self._console.print(text, markup=False)
        self._live.update(screen(board))


def screen(board: Board) -> RenderableType:
    """The live view of a run."""
    from rich.text import Text

    view = Text(board.run, style="bold")
    step = board.step
    if step is None:
        view.append(f" · {_WORDS.get(board.phase or '', 'starting')}", style="default")
        return view
    # The share done as a bar: the one number that a glance should catch.
    width = 30
    filled = width * step.step // max(1, step.steps)
    view.append(
        f" · step {step.step} of {step.steps} · epoch {step.epoch + 1} · ETA {eta(board)}\n", style="default"
    )
    view.append("━" * filled, style="green")
    view.append("┄" * (width - filled) + "\n", style="bright_black")  # also readable without colour
    view.append(f"loss {step.loss:.4f} ", style="bold")
    view.append(sparkline.draw(board.losses, 24), style="cyan")
    if board.held_out is not None:
        view.append(f"   held-out {board.held_out.loss:.4f}", style="bold")
    view.append(f"   rate {step.rate:.1e}   {step.images_per_second:.1f} img/s{_mfu(step)}\n")
    view.append("   ".join(_costs(step)) + "\n")
    for node in board.nodes:
        state = "silent: " + board.silent[node] if node in board.silent else _node_state(board, node)
        view.append(f"  {node:<12} {state}\n", style="yellow" if node in board.silent else "default")
    if board.checkpoint_age is not None:
        view.append(f"checkpoint {_span(board.checkpoint_age)} ago (step {board.saved['checkpoint'].step})\n")
    view.append("Ctrl-C stops after a checkpoint" if not board.stopping else "stopping …", style="bright_black")
    return view


def _mfu(step: progress.Step) -> str:
    return "" if step.mfu is None else f"   MFU {step.mfu:.0%}"


def _costs(step: progress.Step) -> list[str]:
    """What a step's time and memory went into, as far as the trainer tells it."""
    told = [f"data wait {step.data_wait:.0%}"]
    if step.peer_wait is not None:
        told.append(f"peer wait {step.peer_wait:.0%}")
    if step.communication is not None:
        told.append(f"communication {step.communication:.0%}")
    if step.memory is not None:
        told.append(f"memory {step.memory / 1e9:.1f} GB")
    if step.skipped:
        told.append(f"left out {step.skipped} (fp16 overflowed)")
    return told


def _node_state(board: Board, node: str) -> str:
    if node in board.ended:
        return board.ended[node].end
    return "gone" if node in board.gone else "running"


def step_line(step: progress.Step, board: Board) -> str:
    """One step as one line."""
    return (
        f"step {step.step}/{step.steps}  loss {step.loss:.4f}  {sparkline.draw(board.losses, 20)}  "
        f"{step.images_per_second:.1f} img/s{_mfu(step).replace('   ', '  ')}  ETA {eta(board)}"
    )


def remark(record: progress.Record) -> str | None:
    """A progress record that should stay on the screen."""
    if isinstance(record, progress.Saved):
        return f"  {record.what} {record.path}  (step {record.step}, {record.seconds:.1f} s)"
    if isinstance(record, progress.HeldOut):
        return f"  held-out loss {record.loss:.4f}  (step {record.step}, {record.seconds:.1f} s)"
    if isinstance(record, progress.Notice):
        return f"! {record.text}"
    return None


def happening(event: Event) -> str | None:
    """An event beside progress that is worth a line."""
    if isinstance(event, StageDone):
        return f"✓ {event.name}  {event.seconds:.1f} s"
    if isinstance(event, Silent):
        return f"! {event.node} is silent: {event.words}"
    if isinstance(event, HeardAgain):
        return f"✓ {event.node} is heard again"
    if isinstance(event, Gone):
        return f"✗ {event.node} is gone: {event.words}"
    if isinstance(event, Stopping):
        return f"stopping: {event.reason}"
    return None


def eta(board: Board) -> str:
    """Time left at the mean pace since the first step."""
    step, first = board.step, board.first_step
    if step is None or first is None or step.step == first.step:
        return "…"
    return _span((step.at - first.at) / (step.step - first.step) * (step.steps - step.step))


def _span(seconds: float) -> str:
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 60} m {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
