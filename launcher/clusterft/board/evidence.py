"""What the last words of ranks and launchers are worth: an own end, or the echo of another's. Pure.

Owns the Verdict, and the verdicts of those ends that nobody has explained.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from clusterft.board.state import Board
from clusterft_trainer import stream
from clusterft_trainer.stream import End

# What ranks say when another rank is gone: never a first cause.
ECHO = re.compile(
    r"[Cc]onnection (closed|reset) by|Connection refused|broken pipe|Watchdog caught collective|"
    r"remote process exited|Connection was likely closed|store has failed|Application timeout"
)
ECHOED = "peer-lost"  # what the trainer calls such an end itself
# torch puts the rank before each line of a traceback, once ranks have met.
_ERROR = re.compile(r"^(?:\[rank\d+\]: )?((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of a run in words; `failure` is the class of a failed one, or the check that stopped it."""

    end: End
    summary: str
    failure: str = ""
    node: str = ""
    rank: int | None = None
    evidence: tuple[str, ...] = ()
    remedy: str = ""
    why: str = ""  # why there was no other attempt
    blocked: bool = False  # a check of the members stopped it before its first attempt

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of it."""
        return asdict(self)


class _Part(NamedTuple):
    """How a node's launcher ended."""

    at: float
    node: str
    code: int


def died(board: Board) -> Verdict | None:
    """A rank that ended without echoing another."""
    own = [item for item in _deaths(board) if not is_echo(board, item[0], item[1].rank)]
    return _death(board, own)


def broke(board: Board) -> Verdict:
    """Nobody said why: a rank that died of its own, else a launcher without ranks, else an echo."""
    attempt = board.attempt
    heard = {node for node, _ in attempt.deaths} | {node for node, _, _ in attempt.failures}
    parts = _parts(board)
    silent = [part for part in parts if part.node not in heard]
    found = died(board)
    if found is None and not silent:
        found = _echoed(board) or _death(board, _deaths(board))
    return found or _launcher(board, silent or parts)


def is_echo(board: Board, node: str, rank: int) -> bool:
    """Whether the last error it spoke of is another rank's end; start-up warnings sound alike and do not count."""
    lines = last_lines(board, node, rank)
    errors = [line for line in lines if _ERROR.match(line)]
    return any(ECHO.search(line) for line in (errors[-1:] or lines[-3:]))


def last_lines(board: Board, node: str, rank: int, count: int = 12) -> tuple[str, ...]:
    """What a rank said last in the newest attempt."""
    return tuple(line for line in list(board.attempt.tails[node, rank])[-count:] if line.strip())


def _deaths(board: Board) -> list[tuple[str, stream.RankDied]]:
    return sorted(board.attempt.deaths, key=lambda item: item[1].at)


def _parts(board: Board) -> list[_Part]:
    """The launchers that failed by themselves, the earliest first."""
    by_attempt = [
        _Part(e.at, node, e.code) for node, e in board.attempt.ends.items() if e.end == "failed" and not e.why
    ]
    at_all = [_Part(e.at, node, e.code) for node, e in board.ended.items() if e.end == "failed"]
    return sorted(by_attempt or at_all)


def _death(board: Board, deaths: list[tuple[str, stream.RankDied]]) -> Verdict | None:
    """The earliest of some deaths, with its last words."""
    if not deaths:
        return None
    node, death = deaths[0]
    lines = last_lines(board, node, death.rank)
    error = next(
        (found[1] for line in reversed(lines) if (found := _ERROR.match(line))), f"exit code {death.code}"
    )
    summary = f"rank {death.rank} on {node}: {error}"
    return Verdict("failed", summary, "exception", node, death.rank, evidence=lines)


def _echoed(board: Board) -> Verdict | None:
    """All that is known is that some rank lost another."""
    known = [item for item in board.attempt.failures if item[2].failure == ECHOED]
    if not known:
        return None
    node, rank, failed = min(known, key=lambda item: item[2].at)
    return Verdict("failed", failed.message, ECHOED, node, rank, remedy=failed.remedy)


def _launcher(board: Board, parts: list[_Part]) -> Verdict:
    """The launcher that ended first."""
    if not parts:
        return Verdict("failed", "no part of it has said why", "launcher")
    first = parts[0]
    lines = last_lines(board, first.node, stream.LAUNCHER)
    return Verdict(
        "failed",
        f"the launcher on {first.node} ended with exit code {first.code}",
        "launcher",
        first.node,
        evidence=lines,
    )
