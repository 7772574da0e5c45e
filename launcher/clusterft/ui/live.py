"""The screen of a run that goes on: a pure function of the Board and the room there is.

Right at 80 columns and at 200, on a light and on a dark ground: colours of a middle brightness, and never a colour
alone for something that matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from clusterft.board import Board
from clusterft.ui import figures, nodes, sparkline
from clusterft_trainer import progress

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

GOOD, BAD, WARN, QUIET, ACCENT = "green4", "red3", "dark_orange3", "grey50", "dodger_blue1"
KEYS = "Ctrl-C asks: detach, stop after a checkpoint, or stop now"
_GAP = "   "
_OTHER_LINES = 16  # of the screen, beside the table
_LEAST_ROWS = 4
_FRESH = 120.0  # seconds that a notice stays on the screen; above it, it stays for good
_TROUBLES = 3  # lines of logs that are shown


class Screen:
    """What rich draws, at whatever size the terminal has at that moment."""

    def __init__(self, board: Board, keys: str = KEYS) -> None:
        self._board = board
        self._keys = keys

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw for this width and height."""
        yield from lines(self._board, options.max_width, keys=self._keys, height=options.height or console.height)


def lines(board: Board, width: int, *, keys: str = KEYS, height: int | None = None) -> Iterator[Text]:
    """The screen from top to bottom, no line longer than the width."""
    yield from _flow(_title(board), width, " · ")
    yield from _course(board, width)
    yield from _table(board, width, None if height is None else max(_LEAST_ROWS, height - _OTHER_LINES))
    yield from _flow(_safety(board), width, " · ")
    yield from _trouble(board, width)
    if keys:
        yield _text(figures.shortened(_foot(board, keys), width), QUIET)


def eta(board: Board) -> str:
    """Time left at the mean pace since the first step of this attempt."""
    step, first = board.step, board.first_step
    if step is None or first is None or step.step == first.step:
        return "…"
    return figures.span((step.at - first.at) / (step.step - first.step) * (step.steps - step.step))


def _text(words: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(words, style=style, no_wrap=True, overflow="ellipsis")


def _flow(items: list[Text], width: int, gap: str, indent: str = "  ") -> Iterator[Text]:
    """Items one after the other, on a new line where there is no room."""
    line = _text("")
    for item in items:
        item.truncate(width - (len(indent) if line else 0), overflow="ellipsis")
        if line and len(line) + len(gap) + len(item) > width:
            yield line
            line = _text(indent)
        elif line:
            line.append(gap, QUIET)
        line.append_text(item)
    if line:
        yield line


def _title(board: Board) -> list[Text]:
    told = [_text(board.run, "bold")]
    step = board.step
    if step is None:
        told.append(_text(_beginning(board)))
    else:
        told.append(_text(f"step {figures.count(step.step)} of {figures.count(step.steps)}"))
        told += [_text(f"epoch {step.epoch + 1}"), _text(f"ETA {eta(board)}")]
    if board.attempt.number:
        told.append(_text(f"attempt {board.attempt.number}"))
    return told


def _beginning(board: Board) -> str:
    """What goes on before the first step, or instead of steps."""
    attempt = board.attempt
    if attempt.decided and attempt.decided.again:
        return "restarting"
    if not attempt.members:
        return "starting"
    word = nodes.PHASES.get(attempt.phase or "", attempt.phase or nodes.idle(board))
    return f"{word} for {figures.span(board.clock - (attempt.began or board.clock))}"


def _course(board: Board, width: int) -> Iterator[Text]:
    """How training goes; a run without steps shows the newest line that anybody has written."""
    step = board.step
    if step is None:
        if board.reached:
            before = _text(f"before: step {figures.count(board.reached.step)}, loss {board.reached.loss:.4f} ")
            before.append(sparkline.draw(board.losses, 24), ACCENT)
            before.truncate(width, overflow="ellipsis")
            yield before
        if board.latest and board.attempt.members:
            node, rank, words = board.latest
            told = f"{node} rank {rank}: {words}" if rank >= 0 else f"{node}: {words}"
            yield _text(figures.shortened(told, width), QUIET)
        return
    yield _bar(step, min(width, 60))
    yield from _flow(_figures(board, step, width), width, _GAP)
    yield from _flow(_costs(step), width, _GAP)


def _bar(step: progress.Step, width: int) -> Text:
    """The share done: the one number that a glance should catch."""
    filled = width * step.step // max(1, step.steps)
    bar = _text("━" * filled, GOOD)
    bar.append("┄" * (width - filled), QUIET)  # another character: also readable without colour
    return bar


def _figures(board: Board, step: progress.Step, width: int) -> list[Text]:
    loss = _text(f"loss {step.loss:.4f} ", "bold")
    loss.append(sparkline.draw(board.losses, max(16, min(60, width - 74))), ACCENT)
    told = [loss]
    if board.held_out is not None:
        told.append(_text(f"held-out {board.held_out.loss:.4f}", "bold"))
    told += [_text(f"rate {step.rate:.1e}"), _text(f"{step.images_per_second:.1f} img/s")]
    if step.mfu is not None:
        told.append(_text(f"MFU {step.mfu:.0%}"))
    if step.memory is not None and not board.usage:
        told.append(_text(f"memory {figures.size(step.memory)}"))
    if step.skipped:
        told.append(_text(f"left out {step.skipped} (fp16 overflowed)", WARN))
    return told


def _costs(step: progress.Step) -> list[Text]:
    """What a step's time went into, as far as the trainer tells it; what is left over is computing."""
    parts = [
        ("communication", step.communication),
        ("data wait", step.data_wait),
        ("peer wait", step.peer_wait),
    ]
    known = [(name, share) for name, share in parts if share is not None]
    rest = max(0.0, 1.0 - sum(share for _, share in known if share == share))
    told = [_text("time of a step:", QUIET), _text(f"compute {rest:.0%}")]
    return told + [_text(f"{name} {share:.0%}", WARN if share >= 0.3 else "") for name, share in known]


def _table(board: Board, width: int, most: int | None) -> Iterator[Text]:
    found = nodes.table(board, width, most)
    if found.header:
        yield _text(found.header, QUIET)
    for row in found.rows:
        line = _text(f"  {row.node:<{found.node_width}}", "bold")
        words = figures.shortened(row.state.words, found.state_width)
        line.append(f"  {words:<{found.state_width}}", WARN if row.state.worry else GOOD)
        for cell in row.cells:
            line.append(f"  {cell}", "not bold")
        line.rstrip()
        yield line
    if found.left_out:
        yield _text(f"  … and {found.left_out} more nodes", QUIET)


def _safety(board: Board) -> list[Text]:
    """What would be lost if it ended now, and what was survived so far."""
    told = []
    saved = board.saved.get("checkpoint")
    if saved is not None:
        age = board.checkpoint_age
        ago = f"{figures.span(age)} ago" if age is not None else "complete"
        told.append(_text(f"checkpoint {ago} (step {figures.count(saved.step)})"))
    elif board.step is not None:
        told.append(_text("no checkpoint yet"))
    if board.allowed is not None or board.used:
        told.append(
            _text(f"restarts {board.used}" + (f" of {board.allowed}" if board.allowed is not None else ""))
        )
    if board.decided and board.decided.cause:
        told.append(_text(f"last: {board.decided.cause}", WARN))
    return told


def _trouble(board: Board, width: int) -> Iterator[Text]:
    """What somebody should look at."""
    attempt = board.attempt
    if attempt.hang:
        words = f"! no step for {figures.span(attempt.hang.seconds)}; what every rank did: {attempt.hang.stacks}"
        yield _text(figures.shortened(words, width), WARN)
    for found in board.found.values():
        yield _text(figures.shortened(f"! {found.id} {', '.join(found.nodes)}: {found.summary}", width), WARN)
    fresh = board.clock - board.noticed < _FRESH and not board.prep  # whose notices say how far it is
    for notice in board.notices[-_TROUBLES:] if fresh else ():
        yield _text(figures.shortened(f"! {notice}", width), WARN)
    for one in list(board.worth)[-_TROUBLES:]:
        who = f"{one.node} rank {one.rank}" if one.rank >= 0 else one.node
        times = f" (×{one.times})" if one.times > 1 else ""
        yield _text(figures.shortened(f"{who}{times}: {one.text}", width), QUIET)


def _foot(board: Board, keys: str) -> str:
    if board.stopping:
        return f"stopping: {board.stopping} …"
    return keys.replace("stop after a checkpoint", "stop") if board.prep else keys
