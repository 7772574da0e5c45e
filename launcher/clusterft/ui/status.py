"""Runs at a glance: all that are alive on a cluster, one of them in full, and those of the past. Pure.

Owns the words for the state of a run and the documents of `status --json` and `runs --json`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from clusterft import commands
from clusterft.board import Board, judge
from clusterft.ui import figures, live, nodes, outcome

if TYPE_CHECKING:
    from rich.text import Text

SCHEMA = 1
_NARROW = 80


class Glance(NamedTuple):
    """A run that is alive, in one line."""

    run: str
    state: str
    nodes: int  # that are heard
    of: int
    step: int | None
    steps: int | None
    loss: float | None
    checkpoint_age: float | None
    restarts: int
    allowed: int | None
    cause: str = ""  # of the last restart


class LeftBehind(NamedTuple):
    """A container or a supervisor of a run that is over, or of nobody's run."""

    node: str
    run: str
    state: str
    words: str  # what became of it now, or what to do


@dataclass(frozen=True, slots=True)
class Past:
    """A run that is in the shared dir; None where it has not left that behind."""

    run: str
    state: str  # running, ok, stopped, failed, or lost
    began: float | None
    ended: float | None
    step: int | None
    loss: float | None
    failure: str
    cause: str
    restarts: int | None
    job: str = ""  # in a line
    run_dir: str = ""
    nodes: tuple[str, ...] = ()


def state(board: Board) -> str:
    """What a run does, in a word."""
    if board.ended or board.gone:
        if board.over:
            return judge(board).end
        return "ending" if board.ended else "in trouble"
    attempt = board.attempt
    if attempt.decided is not None:
        return "restarting" if attempt.decided.again else "ending"
    if attempt.hang is not None:
        return "hanging"
    if board.waiting is not None:
        return "waiting"
    if not attempt.members:
        return "starting"
    if attempt.step is not None:
        return "training"
    return nodes.PHASES.get(attempt.phase or "", attempt.phase or nodes.idle(board))


def glance(board: Board) -> Glance:
    """One line's worth of a Board."""
    step = board.step
    lost = board.silent.keys() | board.gone.keys()
    return Glance(
        run=board.run,
        state=state(board),
        nodes=sum(node not in lost for node in board.nodes),
        of=len(board.nodes),
        step=step.step if step else None,
        steps=step.steps if step else None,
        loss=outcome.finite(step.loss) if step else None,
        checkpoint_age=board.checkpoint_age,
        restarts=board.used,
        allowed=board.allowed,
        cause=board.decided.cause if board.decided else "",
    )


def overview(cluster: str, alive: Sequence[Glance], left: Sequence[LeftBehind]) -> Iterator[str]:
    """`clusterft status`: what goes on, then what lies about."""
    count = f"{len(alive)} run{'s' * (len(alive) != 1)}" if alive else "nothing runs"
    yield f"cluster {cluster} · {count}"
    if alive:
        yield ""
        head = ("run", "state", "nodes", "step", "loss", "checkpoint", "restarts")
        yield from columns([head, *(_cells(one) for one in alive)])
    for one in alive:
        if one.cause:
            yield f"  ! {one.run} restarted: {one.cause}"
    if left:
        yield ""
        for box in left:
            yield f"  {box.node}: left of {box.run}, {box.state}: {commands.shown(box.words)}"
    if len(alive) == 1 and alive[0].state not in ("ok", "stopped", "failed"):
        yield ""
        yield commands.shown(f"clusterft attach {alive[0].run}   watches it")


def _cells(one: Glance) -> tuple[str, ...]:
    return (
        one.run,
        one.state,
        str(one.of) if one.nodes == one.of else f"{one.nodes} of {one.of}",
        f"{figures.count(one.step)}/{figures.count(one.steps or 0)}" if one.step is not None else "",
        f"{one.loss:.4f}" if one.loss is not None else "",
        f"{figures.span(one.checkpoint_age)} ago" if one.checkpoint_age is not None else "",
        str(one.restarts) if one.allowed is None else f"{one.restarts} of {one.allowed}",
    )


def columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """A table; columns without a value in any row are left out."""
    used = [place for place in range(len(rows[0])) if any(row[place] for row in rows[1:])]
    widths = {place: max(len(row[place]) for row in rows) for place in used}
    for row in rows:
        yield ("  " + "  ".join(row[place].ljust(widths[place]) for place in used)).rstrip()


def overview_dict(cluster: str, alive: Sequence[Glance], left: Sequence[LeftBehind]) -> dict[str, Any]:
    """The document of `status --json`."""
    return {
        "schema": SCHEMA,
        "cluster": cluster,
        "runs": [one._asdict() for one in alive],
        "left_behind": [one._asdict() for one in left],
    }


def one_run(board: Board, width: int) -> Iterator[Text]:
    """`clusterft status RUN` while it is alive: the live screen, standing still."""
    yield from live.lines(board, max(width, _NARROW), keys="")


def run_dict(board: Board) -> dict[str, Any]:
    """The document of `status RUN --json`, alive or over."""
    verdict = judge(board) if board.over else None
    saved = board.saved.get("checkpoint")
    step = board.step
    return {
        "schema": SCHEMA,
        "run": board.run,
        "run_dir": board.run_dir,
        "state": state(
            board
        ),  # starting, running, training, waiting, hanging, restarting, ending, ok, stopped, failed, ...
        "attempt": board.attempt.number,
        "step": step.step if step else None,
        "steps": step.steps if step else None,
        "loss": outcome.finite(step.loss) if step else None,
        "images_per_second": outcome.finite(step.images_per_second) if step else None,
        "checkpoint": {"step": saved.step, "path": saved.path, "age": board.checkpoint_age} if saved else None,
        "restarts": {"used": board.used, "allowed": board.allowed},
        "attempts": [outcome.attempt_dict(board, one, verdict) for one in board.attempts.values()],
        "nodes": [_node_dict(board, node) for node in board.nodes],
        "checks": [asdict(found) for found in board.found.values()],  # what the look before the start has found
        "notices": list(board.notices),
        "verdict": verdict.to_dict() if verdict else None,  # as in run.json, once it is over
    }


def _node_dict(board: Board, node: str) -> dict[str, Any]:
    told, usage = nodes.state(board, node), board.usage.get(node)
    return {
        "node": node,
        "state": told.words,
        "worry": told.worry,
        "usage": asdict(usage) if usage else None,
    }


def past(found: Sequence[Past]) -> Iterator[str]:
    """`clusterft runs`, the newest first."""
    if not found:
        yield "no run has left anything in the shared dir"
        return
    head = ("run", "began", "took", "end", "step", "loss", "restarts", "first cause")
    yield from columns([head, *(_past_cells(one) for one in found)])


def _past_cells(one: Past) -> tuple[str, ...]:
    took = one.ended - one.began if one.ended is not None and one.began is not None else None
    cause = f"{one.failure}: {one.cause}" if one.failure else one.cause
    return (
        one.run,
        time.strftime("%Y-%m-%d %H:%M", time.localtime(one.began)) if one.began is not None else "",
        figures.span(took) if took is not None else "",
        one.state,
        figures.count(one.step) if one.step is not None else "",
        f"{one.loss:.4f}" if one.loss is not None else "",
        str(one.restarts) if one.restarts else "",
        figures.shortened(cause, 60),
    )


def past_dict(found: Sequence[Past]) -> dict[str, Any]:
    """The document of `runs --json`."""
    return {"schema": SCHEMA, "runs": [asdict(one) for one in found]}
