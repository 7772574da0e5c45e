"""What the supervisors and ranks of a made-up run say, for the tests of all that is made from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clusterft.board import Board
from clusterft.events import Event, Said
from clusterft_trainer import progress, stream

RUN = "lighthouse-20261120-1432-7f3a"
RUN_DIR = f"/mnt/out/{RUN}"
NODES = ("left", "right")


def told(record: progress.Record, node: str = "left", rank: int = 0) -> Said:
    """A rank says something of its progress."""
    return Said(node, stream.Progress(rank, record))


def log(node: str, rank: int, text: str, at: float = 0.0) -> Said:
    """A rank (or the launcher, -1) writes a line."""
    return Said(node, stream.Log(rank, text, at))


def step(number: int, *, loss: float = 0.1043, at: float = 0.0) -> progress.Step:
    """One of a thousand steps, half a second each."""
    return progress.Step(number, 1000, number // 100, loss, 4e-7, 0.5, 8.04, 0.013, at or number * 0.5)


def saved(number: int, at: float = 1.0) -> progress.Saved:
    """A complete checkpoint."""
    return progress.Saved("checkpoint", f"{RUN_DIR}/checkpoints/step-{number:08d}", number, 1.25, at)


def begun(number: int, at: float = 0.0, nodes: Iterable[str] = NODES) -> list[Event]:
    """These nodes start an attempt, a rank each."""
    names = tuple(nodes)
    return [
        Said(name, stream.Attempt(number, len(names), i, i, len(names), "10.0.0.1", 29500, at))
        for i, name in enumerate(names)
    ]


def over(number: int, end: stream.End, code: int, at: float, nodes: Iterable[str] = NODES) -> list[Event]:
    """An attempt is over on these nodes."""
    return [Said(name, stream.AttemptEnded(number, end, code, at)) for name in nodes]


def ended(end: stream.End, code: int, at: float, nodes: Iterable[str] = NODES) -> list[Event]:
    """The parts of these nodes are over."""
    return [Said(name, stream.Ended(end, code, at)) for name in nodes]


def died(node: str, rank: int, code: int, at: float) -> Said:
    """The launcher reports a death."""
    return Said(node, stream.RankDied(rank, code, 4000 + rank, at))


def decided(number: int, **changes: Any) -> Said:
    """The head says whether there is another attempt: here rank 1 on right was the first cause."""
    whole: dict[str, Any] = {
        "attempt": number,
        "node": "right",
        "rank": 1,
        "why": "",
        "used": 1,
        "restarts": 3,
        "at": 100.0,
    }
    return Said("left", stream.Decided(**{**whole, **changes}))


def cards(count: int, *, use: float = 0.98, heat: float = 61.0, at: float = 1.0) -> stream.Usage:
    """A node with some cards at work."""
    each = [stream.Card(i, use, int(23.1e9), int(23.7e9), heat + i, 269.0 + 4 * i) for i in range(count)]
    return stream.Usage(at, 0.21, int(40e9), int(128e9), 1.1e9, 1.12e9, tuple(each))


def bare(cpu: float = 0.93, at: float = 1.0) -> stream.Usage:
    """A node without cards at work."""
    return stream.Usage(at, cpu, int(11.2e9), int(64e9), 12.3e6, 11.9e6)


def board(*events: Event, nodes: tuple[str, ...] = NODES, restarts: int | None = 3) -> Board:
    """A board that has seen these events."""
    made = Board(RUN, nodes, run_dir=RUN_DIR, restarts=restarts)
    for event in events:
        made.see(event)
    return made


SIGKILLED = "rank 1 on right was ended by SIGKILL"


def killed_once(steps: int = 55, kept: int = 40) -> list[Event]:
    """An attempt that ends by a SIGKILL at one step, and the next one, which goes on from an earlier one."""
    return [
        *begun(0),
        *(told(step(n, loss=1 / n)) for n in range(1, kept + 1)),
        told(saved(kept, at=kept * 0.5)),
        *(told(step(n, loss=1 / n)) for n in range(kept + 1, steps + 1)),
        died("right", 1, -9, 30.0),
        *over(0, "failed", 1, 31.0),
        decided(0, again=True, failure="killed", cause=SIGKILLED, why="restart 1 of 3"),
        *begun(1, at=33.0),
        *(told(step(n, loss=2 / n, at=40 + n * 0.5)) for n in range(kept + 1, kept + 4)),
    ]
