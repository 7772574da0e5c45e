"""What a run came to, and if it failed, the first cause: a pure reading of the Board.

The last attempt is what counts. A specific cause (what the trainer said of itself, a signal that killed a rank)
outranks the echoes on other ranks (connection closed by peer); among equals the earliest wins. What the gang's
head found counts where its members' own words say less: it has heard all of them, this controller maybe not.
"""

from __future__ import annotations

import signal
from dataclasses import replace

from clusterft.board import evidence
from clusterft.board.evidence import Verdict
from clusterft.board.state import Board
from clusterft_trainer import progress
from clusterft_trainer.stream import End

_REPORTED_LATE = 5.0  # seconds; nothing of ours kills a rank sooner after the first failure
_NAMES = {int(number): number.name for number in signal.Signals}
# What the gang as a whole knows, and a single rank does not: what ranks say meanwhile follows from it.
_OF_THE_GANG = frozenset({"node-lost", "head-lost", "container", "interrupted"})
_BY_THE_KERNEL = "host-oom"  # of a SIGKILL: the head's node has seen the kernel's own count
_VAGUE = frozenset({evidence.ECHOED, "launcher"})  # the head found nothing better than this
# What the trainer refuses: the same job with the same data ends by it again.
MENDED_FIRST = frozenset({"config", "data"})

__all__ = ["MENDED_FIRST", "Verdict", "judge"]


def judge(board: Board) -> Verdict:
    """The verdict of a run that is over."""
    end = _end(board)
    if end == "ok":
        return Verdict("ok", "finished")
    blocked = _blocked(board)
    if blocked:
        return blocked
    ends = {ended.end for ended in board.ended.values()}
    if end == "stopped" and board.prep:
        return _stopped(board)  # a rank that failed before did not end it: its work was the others'
    if (end == "stopped" or board.asked) and "failed" not in ends:
        return _told(board, unforeseen=False) or _told(board, unforeseen=True) or _stopped(board)
    found = _cause(board)
    decided = board.attempt.decided
    return replace(found, why=decided.why) if decided and not decided.again else found


def _end(board: Board) -> End | None:
    """What the gang itself says that it came to: the head's word, else what all the others agree on."""
    head = board.ended.get(board.head)
    if head is not None:
        return head.end
    ends = {ended.end for ended in board.ended.values()}
    complete = not board.gone.keys() - {board.head}
    return ends.pop() if len(ends) == 1 and complete else None


def _blocked(board: Board) -> Verdict | None:
    """The members' own look at ports and shared dir found something, and no attempt began."""
    failed = [found for found in board.found.values() if found.status == "fail"]
    if not failed or board.attempts:
        return None
    first, more = failed[0], len(failed) - 1
    return Verdict(
        "failed",
        first.summary,
        failure=first.id,
        node=", ".join(first.nodes),
        evidence=tuple(line for line in (first.cause, *first.evidence.splitlines()) if line),
        remedy="; ".join(first.fix),
        why="nothing was started" + (f"; {more} more of these checks failed" if more else ""),
        blocked=True,
    )


def _stopped(board: Board) -> Verdict:
    """As asked; the user will want to know whether the last step was saved."""
    step = board.reached.step if board.reached else 0
    saved = board.saved.get("checkpoint")
    lost = f"; lost meanwhile: {', '.join(board.gone)}" if board.gone else ""
    if board.prep:
        return Verdict("stopped", f"stopped as asked; what is prepared stays{lost}")
    kept = "" if step == 0 or (saved and saved.step == step) else ", without a checkpoint of it"
    return Verdict("stopped", f"stopped at step {step}, as asked{kept}{lost}")


def _cause(board: Board) -> Verdict:
    """Of a failed run; from what is most specific to what is least."""
    decided = board.attempt.decided
    if decided and decided.again:
        # Another attempt was due: what ended the last one is past, and not what ended the run.
        return _lost(board) or _parted(board) or evidence.broke(board)
    return (
        _told(board, unforeseen=False)
        or _hung(board)
        or _found(board, only=_OF_THE_GANG | {_BY_THE_KERNEL})
        or _killed(board)
        or _told(board, unforeseen=True)
        or _found(board, but=_VAGUE)
        or _lost(board)
        or evidence.died(board)
        or _found(board)
        or _parted(board)
        or evidence.broke(board)
    )


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
        evidence=evidence.last_lines(board, node, rank) if failed.failure == "bug" else (),
        remedy=failed.remedy,
    )


def _failures(board: Board, *, unforeseen: bool) -> list[tuple[str, int, progress.Failed]]:
    return [
        (node, rank, failed)
        for node, rank, failed in board.attempt.failures
        if failed.failure != evidence.ECHOED
        and (failed.failure == "bug") == unforeseen
        and not (unforeseen and (evidence.ECHO.search(failed.message) or evidence.is_echo(board, node, rank)))
        and not _after_the_hang(board, failed.at)
    ]


def _after_the_hang(board: Board, at: float) -> bool:
    """Ranks that are ended because they hang may say something of it, which is no cause."""
    hang = board.attempt.hang
    return hang is not None and at >= hang.at


def _hung(board: Board) -> Verdict | None:
    """No rank took a step for too long. That they were killed then is no cause."""
    hang, decided = board.attempt.hang, board.attempt.decided
    if hang is None:
        return None
    told = decided if decided and decided.failure == "hang" else None
    return Verdict(
        "failed",
        told.cause if told else f"no step for {hang.seconds:.0f} s",
        "hang",
        node=told.node if told else "",
        rank=told.rank if told else None,
        remedy=f"what every rank was doing then: {hang.stacks}" if hang.stacks else "",
    )


def _killed(board: Board) -> Verdict | None:
    """A rank died by a signal: it said nothing more, so the signal is the cause."""
    deaths = board.attempt.deaths
    signalled = [(node, death) for node, death in deaths if death.code < 0 and death.code != -signal.SIGTERM]
    # A crash that follows another rank's end is an echo of it; a SIGKILL comes from outside, whatever was logged.
    first = min(
        (i for i in signalled if i[1].code == -signal.SIGKILL or not evidence.is_echo(board, i[0], i[1].rank)),
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
        evidence=evidence.last_lines(board, node, death.rank),
        remedy=_remedy("killed", node) if killed else "",
    )


def _found(
    board: Board, *, only: frozenset[str] | None = None, but: frozenset[str] = frozenset()
) -> Verdict | None:
    """What the head found to be the first cause."""
    decided = board.attempt.decided
    if decided is None or not decided.failure or decided.failure in but:
        return None
    if only is not None and decided.failure not in only:
        return None
    node, rank = decided.node, decided.rank
    lines = evidence.last_lines(board, node, rank) if node and rank is not None else ()
    return Verdict("failed", decided.cause, decided.failure, node, rank, lines, _remedy(decided.failure, node))


def _lost(board: Board) -> Verdict | None:
    """Somebody is gone for good; without the head nobody could decide about another attempt."""
    if not board.gone:
        return None
    head = board.head
    node = head if head in board.gone and len(board.nodes) > 1 else next(iter(board.gone))
    failure = "head-lost" if node == head and len(board.nodes) > 1 else "node-lost"
    summary = f"{node} is gone: {board.gone[node]}"
    return Verdict("failed", summary, failure=failure, node=node, remedy=_remedy(failure, node))


def _parted(board: Board) -> Verdict | None:
    """A supervisor gave a reason of its own for ending its part."""
    reasons = [
        (ended.at, node, ended) for node, ended in board.ended.items() if ended.end == "failed" and ended.why
    ]
    if not reasons:
        return None
    _, node, ended = min(reasons, key=lambda item: item[0])
    return Verdict("failed", ended.why, "gang", node)


def _remedy(failure: str, node: str) -> str:
    """What a person can look at, where no rank has said what to do."""
    if failure in _OF_THE_GANG and node:
        return f"did {node} reboot, lose power, or kill the supervisor?  there: uptime; sudo dmesg -T | tail"
    if failure in ("killed", _BY_THE_KERNEL):
        return "look for 'Out of memory' in the node's kernel log: sudo dmesg -T | tail"
    return ""
