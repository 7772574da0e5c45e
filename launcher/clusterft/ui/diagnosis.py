"""A Diagnosis as lines: who failed first, the lines that prove it, why, what to do, what came of it. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterator

from clusterft import commands
from clusterft.diagnosis.diagnosis import Diagnosis, Follower, Setback

_MARKS = {"failed": "✗", "stopped": "·", "running": "·", "ok": "✓", "nothing": "✓"}
_WIDTH = 160


def lines(answer: Diagnosis) -> Iterator[str]:
    """The whole answer."""
    mark = _MARKS[answer.verdict]
    if not answer.id:
        yield f"{mark} {answer.summary}"
    else:
        yield from _first(mark, answer)
    for one in answer.followed:
        yield f"  then  {_follower(one)}"
    for before in answer.earlier:
        yield ""
        yield from _first("!", before, f"attempt {before.attempt}")
        yield f"  then  {before.after}"
    if answer.earlier:
        yield ""
    yield from _rest(answer)


def _first(mark: str, told: Diagnosis | Setback, which: str = "") -> Iterator[str]:
    """Who was first, of the run or of one attempt, and why."""
    where = " ".join(word for word in (told.node, "" if told.rank is None else f"rank {told.rank}") if word)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told.at)) if told.at is not None else ""
    head = f"{mark} {which + ': ' if which else ''}{told.id:<18}"
    yield "   ".join(word for word in (head, where, when) if word.strip()).rstrip()
    yield f"  {told.summary}"
    for quote in told.evidence:
        yield f"    {quote.where}: {_short(quote.text)}"
    if told.cause and told.cause not in told.summary:
        yield f"  because {told.cause}"
    for step in told.fix:
        yield f"  fix:  {commands.shown(step)}"


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
