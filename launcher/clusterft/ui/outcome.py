"""What a run came to: a few lines for a person, one document for a program. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from clusterft import commands
from clusterft.board import MENDED_FIRST, Attempt, Board, Verdict
from clusterft.ui import sparkline
from clusterft_trainer import stream

SCHEMA = 2
_RESULTS = (
    ("export", "model"),
    ("sample", "samples"),
    ("curve", "loss curve"),
    ("checkpoint", "checkpoint"),
    ("tensorboard", "tensorboard"),
)


def lines(board: Board, verdict: Verdict, local_logs: Mapping[str, str] | None = None) -> Iterator[str]:
    """The last lines on the screen; `local_logs` says where a node keeps its logs itself."""
    for node, problem in board.problems.items():
        yield f"! logs of {node}: {problem}"
    if verdict.blocked:
        yield from _blocked(board, verdict)
    elif verdict.end == "failed":
        yield from _failure(board, verdict, local_logs or {})
    else:
        yield from _success(board, verdict)


def _success(board: Board, verdict: Verdict) -> Iterator[str]:
    """Of a run that is through, or was stopped as asked."""
    mark = "✓" if verdict.end == "ok" else "■"
    yield f"{mark} run {board.run} {verdict.summary}"
    for node, words in board.gone.items():
        yield f"  without {node}: {words}"
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
    if board.reached and board.reached.skipped:
        yield f"  steps left out, since half precision overflowed: {board.reached.skipped}"
    yield from _history(board.attempts.values())
    for what, label in _RESULTS:
        if what in board.saved:
            yield f"  {label:<12} {board.saved[what].path}"
    if report(board):
        yield f"  {'report':<12} {report(board)}"
    if board.prep and board.run_dir:
        yield f"  {'prepared in':<12} {PurePosixPath(board.run_dir).parent}/.clusterft"
    yield f"  {'all of it':<12} {board.run_dir}"
    if verdict.end == "stopped" and ("checkpoint" in board.saved or board.prep):
        yield "  to go on:    " + commands.shown(f"clusterft resume {board.run}")


def _blocked(board: Board, verdict: Verdict) -> Iterator[str]:
    """The members' own checks: nothing was started, so there is no step and no log."""
    yield f"✗ run {board.run} was not started: {verdict.failure} ({verdict.node})"
    yield f"  {verdict.summary}"
    for line in verdict.evidence:
        yield f"    {line}"
    if verdict.remedy:
        yield f"  {commands.shown(verdict.remedy)}"
    if verdict.why:
        yield f"  {verdict.why}"


def _failure(board: Board, verdict: Verdict, local_logs: Mapping[str, str]) -> Iterator[str]:
    attempt = board.attempt
    at = f" at step {attempt.step.step}" if attempt.step else "" if board.prep else " before its first step"
    yield f"✗ run {board.run} failed{at}{_counted(board)}"
    yield f"  first cause ({verdict.failure}): {verdict.summary}"
    if verdict.node and verdict.rank is not None and f"rank {verdict.rank} " not in verdict.summary:
        yield f"  told by rank {verdict.rank} on {verdict.node}"
    for line in verdict.evidence:
        yield f"    {line}"
    if verdict.remedy:
        yield f"  {commands.shown(verdict.remedy)}"
    if verdict.why:
        yield f"  no other attempt: {verdict.why}"
    yield from _history(a for a in board.attempts.values() if a is not attempt)
    saved = board.saved.get("checkpoint")
    if saved:
        yield f"  newest checkpoint: {saved.path}"
    if board.attempts:
        yield f"  logs: {log_path(board, verdict, local_logs)}"
    else:
        yield f"  no attempt began, so there are no logs; what each supervisor said: {board.run_dir}/events"
    if report(board):
        yield f"  report: {report(board)}"
    goes_on = saved or (board.prep and verdict.failure not in MENDED_FIRST)
    again = f"clusterft resume {board.run}   or   " if goes_on else ""
    yield "  next: " + commands.shown(f"{again}clusterft logs {board.run}{_of_whom(verdict)}")


def _counted(board: Board) -> str:
    """Which attempt that was, where there was more than one."""
    if not board.attempt.number and not board.used:
        return ""
    allowed = f" of {board.allowed}" if board.allowed is not None else ""
    return f" (attempt {board.attempt.number}, restarts {board.used}{allowed})"


def _of_whom(verdict: Verdict) -> str:
    if verdict.rank is not None and verdict.rank >= 0:
        return f" --rank {verdict.rank}"
    return f" --node {verdict.node}" if verdict.node else ""


def _history(attempts: Iterable[Attempt]) -> Iterator[str]:
    """What was survived on the way."""
    for one in attempts:
        decided = one.decided
        if decided is None or not decided.cause:
            continue
        at = f"step {one.step.step}" if one.step else "no step"
        yield f"  attempt {one.number}, {at}: {_class(decided)}{decided.cause}"


def _class(decided: stream.Decided) -> str:
    return f"{decided.failure}: " if decided.failure else ""


def report(board: Board) -> str | None:
    """The page that the head makes at the end of a run that has trained."""
    return f"{board.run_dir}/report.html" if board.reached and board.run_dir and board.over else None


def log_path(board: Board, verdict: Verdict, local_logs: Mapping[str, str] | None = None) -> str:
    """The log that tells most about the verdict; on the node itself when the shared dir did not take it."""
    if verdict.node not in board.nodes:
        return f"{board.run_dir}/logs"
    name = f"rank{verdict.rank}.log" if verdict.rank not in (None, stream.LAUNCHER) else "launcher.log"
    attempt = f"attempt-{board.attempt.number}"
    kept = (local_logs or {}).get(verdict.node)
    if verdict.node in board.problems and kept:
        return f"{verdict.node}:{kept}/{attempt}/{name}"
    return f"{board.run_dir}/logs/{attempt}/{verdict.node}/{name}"


def to_dict(board: Board, verdict: Verdict, local_logs: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The document of `train --json` and `attach --json`."""
    return {
        "schema": SCHEMA,
        "run": board.run,
        "run_dir": board.run_dir,
        "outcome": verdict.end,  # ok, stopped or failed
        "verdict": verdict.to_dict(),
        "step": board.reached.step if board.reached else 0,  # the last one
        "loss": _loss(board),  # first and last: means of the first and last tenth of all steps
        "held_out": _held_out(board),  # the last and the least, with their steps
        "skipped": board.reached.skipped if board.reached else 0,  # steps that half precision has left out
        "attempts": [attempt_dict(board, one, verdict) for one in board.attempts.values()],
        "restarts": {"used": board.used, "allowed": board.allowed},
        "results": {
            what: saved.path for what, saved in board.saved.items()
        },  # what was written: export, samples, checkpoint, ...
        "report": report(board),
        "log": log_path(board, verdict, local_logs) if board.attempts and verdict.end == "failed" else None,
        "lost": dict(board.gone),  # node to why it was lost
        "replaced": dict(board.replaced),  # node to the spare that took its place
        "notices": list(board.notices),
        "log_problems": board.problems,  # node to why logs are there alone
    }


def attempt_dict(board: Board, attempt: Attempt, verdict: Verdict | None) -> dict[str, Any]:
    """One attempt: the last one's cause is the verdict's, which knows more than its head did."""
    decided = attempt.decided
    told = verdict if attempt is board.attempt and verdict and verdict.end == "failed" else None
    return {
        "attempt": attempt.number,
        "nodes": list(attempt.members),
        "began": attempt.began,
        "ended": attempt.ended,
        "resumed_from": attempt.resumed_from,  # the step of its checkpoint
        "step": attempt.step.step if attempt.step else None,
        "failure": told.failure if told else decided.failure if decided else "",
        "cause": told.summary if told else decided.cause if decided else "",
        "node": told.node if told else decided.node if decided else "",
        "rank": told.rank if told else decided.rank if decided else None,
        "why": decided.why if decided else "",  # what was decided after it, and why
    }


def _loss(board: Board) -> dict[str, float | None] | None:
    """First and last; JSON has no word for a number that is none."""
    if board.done is None:
        return None
    return {"first": finite(board.done.first_loss), "last": finite(board.done.last_loss)}


def _held_out(board: Board) -> dict[str, dict[str, float | int | None]] | None:
    """The newest and the least loss on pictures that are not trained."""
    if board.held_out is None or board.least is None:
        return None
    told = {"last": board.held_out, "least": board.least}
    return {name: {"step": record.step, "loss": finite(record.loss)} for name, record in told.items()}


def finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
