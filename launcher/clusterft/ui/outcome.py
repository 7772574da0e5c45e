"""What a run came to: a few lines for a person, one document for a program. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from clusterft.board import Board, Verdict
from clusterft.plan import LaunchPlan
from clusterft.ui import sparkline
from clusterft_trainer import stream

_RESULTS = (
    ("export", "model"),
    ("sample", "samples"),
    ("curve", "loss curve"),
    ("checkpoint", "checkpoint"),
    ("tensorboard", "tensorboard"),
)


def lines(planned: LaunchPlan, board: Board, verdict: Verdict) -> Iterator[str]:
    """The last lines on the screen."""
    for node, problem in board.problems.items():
        yield f"! logs of {node}: {problem}"
    if verdict.end == "failed":
        yield from _failure(planned, board, verdict)
        return
    mark = "✓" if verdict.end == "ok" else "■"
    yield f"{mark} run {planned.run} {verdict.summary}"
    if board.done:
        yield (
            f"  loss {board.done.first_loss:.4f} → {board.done.last_loss:.4f}  "
            f"{sparkline.draw(board.losses, 30)}  means of the first and last tenth of {board.done.step} steps"
        )
    if board.held_out and board.least:
        least = (
            "" if board.least == board.held_out else f"; least {board.least.loss:.4f} at step {board.least.step}"
        )
        yield f"  held-out loss {board.held_out.loss:.4f} at step {board.held_out.step}{least}"
    if board.step and board.step.skipped:
        yield f"  steps left out, since half precision overflowed: {board.step.skipped}"
    for what, label in _RESULTS:
        if what in board.saved:
            yield f"  {label:<12} {board.saved[what].path}"
    yield f"  {'all of it':<12} {planned.places.dir}"


def _failure(planned: LaunchPlan, board: Board, verdict: Verdict) -> Iterator[str]:
    at = f" at step {board.step.step}" if board.step else " before its first step"
    yield f"✗ run {planned.run} failed{at}"
    yield f"  first cause ({verdict.failure}): {verdict.summary}"
    for line in verdict.evidence:
        yield f"    {line}"
    if verdict.remedy:
        yield f"  {verdict.remedy}"
    if "checkpoint" in board.saved:
        yield f"  newest checkpoint: {board.saved['checkpoint'].path}"
    yield f"  logs: {log_path(planned, board, verdict)}"


def log_path(planned: LaunchPlan, board: Board, verdict: Verdict) -> str:
    """The log that tells most about the verdict; on the node itself when the shared dir did not take it."""
    for node in planned.nodes:
        if node.node.name == verdict.node:
            launcher = verdict.rank in (None, stream.LAUNCHER)
            name = "launcher.log" if launcher else f"rank{verdict.rank}.log"
            where = node.assignment.mirror_dir
            if verdict.node in board.problems:
                where = f"{node.node.name}:{node.assignment.log_dir}"
            return f"{where}/{name}"
    return f"{planned.places.dir}/logs"


def to_dict(planned: LaunchPlan, board: Board, verdict: Verdict) -> dict[str, Any]:
    """The document of `train --json`."""
    return {
        "schema": 1,
        "run": planned.run,
        "run_dir": str(planned.places.dir),
        "outcome": verdict.end,
        "verdict": verdict.to_dict(),
        "step": board.step.step if board.step else 0,
        "loss": _loss(board),
        "held_out": _held_out(board),
        "skipped": board.step.skipped if board.step else 0,
        "results": {what: saved.path for what, saved in board.saved.items()},
        "notices": list(board.notices),
        "log_problems": board.problems,
    }


def _loss(board: Board) -> dict[str, float | None] | None:
    """First and last; JSON has no word for a number that is none."""
    if board.done is None:
        return None
    return {"first": _finite(board.done.first_loss), "last": _finite(board.done.last_loss)}


def _held_out(board: Board) -> dict[str, dict[str, float | int | None]] | None:
    """The newest and the least loss on pictures that are not trained."""
    if board.held_out is None or board.least is None:
        return None
    told = {"last": board.held_out, "least": board.least}
    return {name: {"step": record.step, "loss": _finite(record.loss)} for name, record in told.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
