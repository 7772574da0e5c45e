"""The nodes of a run as a table that fits: who does what, how busy, how hot. Pure: the Board in, cells out."""

from __future__ import annotations

from typing import NamedTuple

from clusterft.board import Board
from clusterft.ui import figures
from clusterft_trainer import stream

PHASES = {
    "imports": "loading libraries",
    "model": "loading the model",
    "data": "reading the data",
    "train": "training",
    "export": "writing the model",
    "latents": "encoding pictures",
    "text": "encoding captions",
}
_ENDS = {"ok": "finished", "stopped": "stopped", "failed": "failed"}
_MANY_CARDS = 8  # beyond which only the least and the most busy of them are told
_GAP = 2
_LEAST_STATE = 12  # characters that the state keeps, whatever else has to go


class State(NamedTuple):
    """What a node does at the moment; whether that should worry anybody."""

    words: str
    worry: bool = False


class Row(NamedTuple):
    """One line of the table."""

    node: str
    state: State
    cells: tuple[str, ...]  # padded to their columns


class Table(NamedTuple):
    """Header and rows, all of one width; nodes that were left out are counted."""

    header: str
    rows: tuple[Row, ...]
    node_width: int
    state_width: int
    left_out: int


def state(board: Board, node: str) -> State:
    """What a node does, seen from what worries most to what worries least."""
    if node in board.ended:
        end = board.ended[node].end
        return State(_ENDS[end], worry=end == "failed")
    if node in board.gone:
        return State("gone", worry=True)
    if board.waiting and node in board.waiting.nodes:
        left = figures.span(board.waiting.until - board.clock)
        return State(f"out of the head's reach; {left} left", worry=True)
    if node in board.silent:
        return State(f"silent: {board.silent[node]}", worry=True)
    return _at_work(board, node)


def _at_work(board: Board, node: str) -> State:
    attempt = board.attempt
    if node not in attempt.members:
        return State("restarting" if attempt.members or len(board.attempts) > 1 else "starting")
    if node in attempt.ends or attempt.decided:
        again = attempt.decided is None or attempt.decided.again
        return State("restarting" if again else "ending", worry=attempt.hang is not None)
    if attempt.hang is not None:
        return State("hangs", worry=True)
    if attempt.step:
        return State("training")
    phase = attempt.phases.get(node) or attempt.phase
    return State(PHASES.get(phase, phase) if phase else idle(board))


def idle(board: Board) -> str:
    """What goes on where nobody tells of a stage."""
    return "preparing" if board.prep else "running"


def table(board: Board, width: int, most: int | None = None) -> Table:
    """The columns that fit into a width; at most so many rows, those that worry first."""
    states = {node: state(board, node) for node in board.nodes}
    shown = _chosen(board, states, most)
    columns = _columns(board, shown)
    node_width = max((len(node) for node in shown), default=0)
    fixed = {i: max(len(name), *(len(cell) for cell in cells)) for i, (name, _, cells) in enumerate(columns)}
    wanted = max((len(one.words) for node, one in states.items() if node in shown), default=0)
    least = min(wanted, _LEAST_STATE)
    kept = _fitting(columns, fixed, width - node_width - 2 - _GAP - least)
    rest = width - node_width - 2 - _GAP - sum(fixed[i] + _GAP for i in kept)
    state_width = max(least, min(wanted, rest))
    header = " " * (node_width + 2 + _GAP + state_width)
    header += "".join(" " * _GAP + columns[i][0].ljust(fixed[i]) for i in kept)
    rows = tuple(
        Row(node, states[node], tuple(columns[i][2][place].ljust(fixed[i]) for i in kept))
        for place, node in enumerate(shown)
    )
    return Table(header.rstrip(), rows, node_width, state_width, len(board.nodes) - len(shown))


def _chosen(board: Board, states: dict[str, State], most: int | None) -> tuple[str, ...]:
    """In the run's order, but not all where there is no room; who worries and the head stay."""
    if most is None or len(board.nodes) <= most:
        return board.nodes
    order = sorted(board.nodes, key=lambda node: (not states[node].worry, node != board.head))
    kept = set(order[: max(1, most)])
    return tuple(node for node in board.nodes if node in kept)


_Column = tuple[str, int, list[str]]  # title, rank among those that may be left out, cells


def _columns(board: Board, nodes: tuple[str, ...]) -> list[_Column]:
    """What is known of any of the nodes, most wanted first where the rank is lowest."""
    # What a node told before it fell silent is no longer so.
    past = board.silent.keys() | board.gone.keys() | board.ended.keys()
    usages = [None if node in past else board.usage.get(node) for node in nodes]
    if any(usage and usage.cards for usage in usages):
        found: list[_Column] = [
            ("GPU use", 0, [_uses(usage) for usage in usages]),
            ("memory", 1, [_card_memory(usage) for usage in usages]),
            ("heat", 4, [_heat(usage) for usage in usages]),
            ("power", 3, [_power(usage) for usage in usages]),
        ]
    else:
        found = [
            ("CPU", 0, [figures.percent(usage.cpu) if usage else "" for usage in usages]),
            ("memory", 1, [figures.of(usage.memory, usage.memory_total) if usage else "" for usage in usages]),
        ]
    found.append(("net", 2, [_net(usage) for usage in usages]))
    return [column for column in found if any(column[2])]


def _fitting(columns: list[_Column], widths: dict[int, int], room: int) -> list[int]:
    """The most wanted columns that fit, in the order in which they stand."""
    kept: list[int] = []
    for place in sorted(range(len(columns)), key=lambda i: columns[i][1]):
        if widths[place] + _GAP > room:
            break
        room -= widths[place] + _GAP
        kept.append(place)
    return sorted(kept)


def _uses(usage: stream.Usage | None) -> str:
    known = [card.use for card in usage.cards if card.use is not None] if usage else []
    if not known:
        return ""
    if len(known) > _MANY_CARDS:
        return figures.between([use * 100 for use in known], "%")
    return " ".join(f"{use * 100:.0f}".rjust(2) for use in known) + " %"


def _card_memory(usage: stream.Usage | None) -> str:
    """Of the fullest card: that one ends the run."""
    known = (
        [(c.memory, c.memory_total) for c in usage.cards if c.memory is not None and c.memory_total]
        if usage
        else []
    )
    if not known:
        return ""
    memory, total = max(known, key=lambda pair: pair[0] / pair[1])
    return figures.of(memory, total)


def _heat(usage: stream.Usage | None) -> str:
    known = [card.temperature for card in usage.cards if card.temperature is not None] if usage else []
    return figures.between(known, "°C") if known else ""


def _power(usage: stream.Usage | None) -> str:
    known = [card.power for card in usage.cards if card.power is not None] if usage else []
    return figures.between(known, "W") if known else ""


def _net(usage: stream.Usage | None) -> str:
    if usage is None:
        return ""
    most = max(usage.sent, usage.received)
    unit, factor = next(((u, f) for u, f in (("GB/s", 1e9), ("MB/s", 1e6)) if most >= f), ("kB/s", 1e3))
    return f"↑{usage.sent / factor:.1f} ↓{usage.received / factor:.1f} {unit}"
