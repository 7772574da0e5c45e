"""A Diagnosis as lines: who failed first, the lines that prove it, why, what to do, what came of it. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterator

from clusterft.diagnosis.diagnosis import Diagnosis, Follower

_MARKS = {"failed": "✗", "stopped": "·", "running": "·", "ok": "✓", "nothing": "✓"}
_WIDTH = 160


def lines(answer: Diagnosis) -> Iterator[str]:
    """The whole answer."""
    mark = _MARKS[answer.verdict]
    if not answer.id:
        yield f"{mark} {answer.summary}"
        yield from _rest(answer)
        return
    where = " ".join(word for word in (answer.node, "" if answer.rank is None else f"rank {answer.rank}") if word)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(answer.at)) if answer.at is not None else ""
    yield "   ".join(word for word in (f"{mark} {answer.id:<18}", where, when) if word.strip()).rstrip()
    yield f"  {answer.summary}"
    for quote in answer.evidence:
        yield f"    {quote.where}: {_short(quote.text)}"
    if answer.cause and answer.cause not in answer.summary:
        yield f"  because {answer.cause}"
    for step in answer.fix:
        yield f"  fix:  {step}"
    for one in answer.followed:
        yield f"  then  {_follower(one)}"
    yield from _rest(answer)


def _rest(answer: Diagnosis) -> Iterator[str]:
    for note in answer.notes:
        yield f"  note: {note}"
    for one in answer.unread:
        yield f"? not readable: {one}"
    yield f"{answer.lines} lines of {answer.files} file{'s' * (answer.files != 1)} read"


def _follower(one: Follower) -> str:
    ranks = f"{one.count} other{'s' * (one.count != 1)}"
    if one.first is None or one.last is None:
        return f"{ranks}: {one.what}"
    span = f"{one.first:+.1f} s" if one.count == 1 else f"{one.first:+.1f} to {one.last:+.1f} s"
    return f"{ranks}: {one.what} ({span})"


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
