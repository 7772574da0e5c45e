"""What a run came to, and if it failed, the first cause: a pure reading of the Board.

A specific cause (what the trainer said of itself, a signal that killed a rank) outranks the echoes on other ranks
(connection closed by peer); among equals the earliest wins.
"""

from __future__ import annotations

import re
import signal
from dataclasses import asdict, dataclass
from typing import Any

from clusterft.board.state import Board
from clusterft_trainer import progress, stream
from clusterft_trainer.stream import End

# What ranks say when another rank is gone: never a first cause.
_ECHO = re.compile(
    r"[Cc]onnection (closed|reset) by|Connection refused|broken pipe|Watchdog caught collective|"
    r"remote process exited|Connection was likely closed|store has failed|Application timeout"
)
_ECHOED = "peer-lost"  # what the trainer calls such an end itself
_REPORTED_LATE = 5.0  # seconds; nothing of ours kills a rank sooner after the first failure
_NAMES = {int(number): number.name for number in signal.Signals}
_ERROR = re.compile(r"^(\w+\.)*\w*(Error|Exception|Interrupt)\b.*")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of a run in words; `failure` is the class of a failed one."""

    end: End
    summary: str
    failure: str = ""
    node: str = ""
    rank: int | None = None
    evidence: tuple[str, ...] = ()
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of it."""
        return asdict(self)


def judge(board: Board) -> Verdict:
    """The verdict of a run that is over."""
    ends = {ended.end for ended in board.ended.values()}
    if ends == {"ok"} and not board.gone:
        return Verdict("ok", "finished")
    asked_elsewhere = "stopped" in ends and not board.gone
    if (board.stopping == "asked" or asked_elsewhere) and "failed" not in ends:
        return _told(board, unforeseen=False) or _told(board, unforeseen=True) or _stopped(board)
    return (
        _told(board, unforeseen=False)
        or _killed(board)
        or _told(board, unforeseen=True)
        or _lost(board)
        or _broke(board)
    )


def _stopped(board: Board) -> Verdict:
    """As asked; the user will want to know whether the last step was saved."""
    step = board.step.step if board.step else 0
    saved = board.saved.get("checkpoint")
    lost = f"; lost meanwhile: {', '.join(board.gone)}" if board.gone else ""
    kept = "" if step == 0 or (saved and saved.step == step) else ", without a checkpoint of it"
    return Verdict("stopped", f"stopped at step {step}, as asked{kept}{lost}")


def _told(board: Board, *, unforeseen: bool) -> Verdict | None:
    """The trainer itself said why: knowingly, or as an exception that is no echo of another rank's end."""
    candidates = _failures(board, unforeseen=unforeseen)
    if not candidates:
        return None
    node, rank, failed = min(candidates, key=lambda item: item[2].at)
    return Verdict(
        "failed",
        failed.message,
        failure=failed.failure,
        node=node,
        rank=rank,
        evidence=_last_lines(board, node, rank) if failed.failure == "bug" else (),
        remedy=failed.remedy,
    )


def _failures(board: Board, *, unforeseen: bool) -> list[tuple[str, int, progress.Failed]]:
    return [
        (node, rank, failed)
        for node, rank, failed in board.failures
        if failed.failure != _ECHOED
        and (failed.failure == "bug") == unforeseen
        and not (unforeseen and (_ECHO.search(failed.message) or _is_echo(board, node, rank)))
    ]


def _killed(board: Board) -> Verdict | None:
    """A rank died by a signal: it said nothing more, so the signal is the cause."""
    signalled = [(node, death) for node, death in board.deaths if death.code < 0 and death.code != -signal.SIGTERM]
    # A crash that follows another rank's end is an echo of it; a SIGKILL comes from outside, whatever was logged.
    first = min(
        (i for i in signalled if i[1].code == -signal.SIGKILL or not _is_echo(board, i[0], i[1].rank)),
        key=lambda item: item[1].at,
        default=None,
    )
    if first is None or any(
        first[1].at - failed.at > _REPORTED_LATE for _, _, failed in _failures(board, unforeseen=True)
    ):
        return None
    node, death = first
    name = _NAMES.get(-death.code, f"signal {-death.code}")
    killed = death.code == -signal.SIGKILL
    return Verdict(
        "failed",
        f"rank {death.rank} on {node} was ended by {name}",
        failure="killed" if killed else "crash",
        node=node,
        rank=death.rank,
        evidence=_last_lines(board, node, death.rank),
        remedy="look for 'Out of memory' in the node's kernel log: sudo dmesg -T | tail" if killed else "",
    )


def _lost(board: Board) -> Verdict | None:
    if not board.gone:
        return None
    node, words = next(iter(board.gone.items()))
    remedy = f"did {node} reboot, lose power, or kill the supervisor?  there: uptime; sudo dmesg -T | tail"
    return Verdict("failed", f"{node} is gone: {words}", failure="node-lost", node=node, remedy=remedy)


def _broke(board: Board) -> Verdict:
    """Nobody said why: a rank that died without echoing another, else a launcher without ranks, else an echo."""
    deaths = sorted(board.deaths, key=lambda item: item[1].at)
    own = [item for item in deaths if not _is_echo(board, item[0], item[1].rank)]
    heard = {node for node, _ in board.deaths} | {node for node, _, _ in board.failures}
    silent = [node for node, ended in board.ended.items() if ended.end == "failed" and node not in heard]
    if own or not silent:
        return _died(board, own) or _echoed(board) or _died(board, deaths) or _launcher(board, list(board.ended))
    return _launcher(board, silent)


def _died(board: Board, deaths: list[tuple[str, stream.RankDied]]) -> Verdict | None:
    """The earliest of some deaths, with its last words."""
    if not deaths:
        return None
    node, death = deaths[0]
    lines = _last_lines(board, node, death.rank)
    error = next((line for line in reversed(lines) if _ERROR.match(line)), f"exit code {death.code}")
    return Verdict(
        "failed", f"rank {death.rank} on {node}: {error}", "exception", node, death.rank, evidence=lines
    )


def _echoed(board: Board) -> Verdict | None:
    """All that is known is that some rank lost another."""
    known = [item for item in board.failures if item[2].failure == _ECHOED]
    if not known:
        return None
    node, rank, failed = min(known, key=lambda item: item[2].at)
    return Verdict("failed", failed.message, _ECHOED, node, rank, remedy=failed.remedy)


def _launcher(board: Board, nodes: list[str]) -> Verdict:
    """The launcher that ended first."""
    node = min(nodes, key=lambda name: board.ended[name].at)
    lines = _last_lines(board, node, stream.LAUNCHER)
    summary = f"the launcher on {node} ended with exit code {board.ended[node].code}"
    return Verdict("failed", summary, "launcher", node, evidence=lines)


def _is_echo(board: Board, node: str, rank: int) -> bool:
    """Whether the last error it spoke of is another rank's end; start-up warnings sound alike and do not count."""
    lines = _last_lines(board, node, rank)
    errors = [line for line in lines if _ERROR.match(line)]
    return any(_ECHO.search(line) for line in (errors[-1:] or lines[-3:]))


def _last_lines(board: Board, node: str, rank: int, count: int = 12) -> tuple[str, ...]:
    return tuple(line for line in list(board.tails[node, rank])[-count:] if line.strip())
