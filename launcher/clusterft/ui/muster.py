"""All nodes while `up`, `down` or `push` is at work: a live table, plain lines or silence; then what stays.

`screen` and `lines` are pure functions of the Roster and the Muster.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from clusterft.board import Muster, Roster, Row, Standing
from clusterft.events import Progress, Settled, StageDone
from clusterft.findings import Finding
from clusterft.ui import text
from clusterft.ui.watch import say

if TYPE_CHECKING:
    from rich.console import RenderableType

_PLAIN_EVERY = 5.0  # seconds between two lines about one node without a terminal
_PLAIN_WIDTH = 160  # a builder's line may be a whole script
_COLUMNS = ("node", "address", "GPUs", "driver", "image", "shared dir")

Seen = Progress | Settled | StageDone


class Watcher(Protocol):
    """Shown each event after the Roster has taken it in."""

    def show(self, event: Seen, roster: Roster) -> None: ...

    def pause(self) -> AbstractContextManager[None]:
        """While a question is asked at the terminal."""


def watcher(*, quiet: bool) -> AbstractContextManager[Watcher]:
    """The watcher that fits where stdout goes."""
    if quiet:
        return nullcontext(Silence())
    return LiveWatcher() if sys.stdout.isatty() else nullcontext(PlainWatcher(sys.stdout))


class Silence:
    """For --json."""

    def show(self, event: Seen, roster: Roster) -> None:
        """Show nothing."""

    def pause(self) -> AbstractContextManager[None]:
        """Nothing is shown, so nothing is in the way."""
        return nullcontext()


class PlainWatcher:
    """One line for each thing worth a line; who is quick at something says nothing of it."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._next: dict[str, float] = {}

    def show(self, event: Seen, roster: Roster) -> None:
        """Print the event, if it is worth a line."""
        if isinstance(event, Progress) and not self._due(event):
            return
        line = happening(event)
        if line:
            say(self._out, line[:_PLAIN_WIDTH])

    def pause(self) -> AbstractContextManager[None]:
        """Lines are not in the way of a question."""
        return nullcontext()

    def _due(self, event: Progress) -> bool:
        """At most a line in a few seconds about each node, and none in its first few seconds."""
        now = time.monotonic()
        if now < self._next.setdefault(event.node, now + _PLAIN_EVERY):
            return False
        self._next[event.node] = now + _PLAIN_EVERY
        return True


class LiveWatcher:
    """A table that redraws itself; what is worth keeping is printed above it."""

    def __enter__(self) -> LiveWatcher:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, event: Seen, roster: Roster) -> None:
        """Redraw; print above the table what should stay."""
        line = None if isinstance(event, Progress) else happening(event)
        if line:
            self._console.print(line, markup=False)
        self._live.update(screen(roster))

    def pause(self) -> AbstractContextManager[None]:
        """Take the table away while a question is asked."""
        return _Paused(self._live)


class _Paused(AbstractContextManager[None]):
    def __init__(self, live: Any) -> None:
        self._live = live

    def __enter__(self) -> None:
        self._live.stop()

    def __exit__(self, *_: object) -> None:
        self._live.start()


def screen(roster: Roster) -> RenderableType:
    """The live view."""
    from rich.text import Text

    view = Text()
    width = max((len(name) for name in roster.rows), default=0)
    for row in roster.rows.values():
        style = "red" if row.failure else "default"
        view.append(f"  {row.node:<{width}}  ", style="bold")
        for stage in roster.stages:
            mark = "✓" if stage in row.passed else "✗" if row.failure and row.stage == stage else "·"
            view.append(f"{mark} {stage}   ", style="green" if mark == "✓" else "bright_black")
        view.append(f"{_state(row)}\n", style=style)
    if roster.controller:
        view.append(f"  {roster.controller[:100]}\n", style="bright_black")
    return view


def _state(row: Row) -> str:
    if row.failure:
        return f"{row.failure.id}"
    if row.done is not None and row.total:
        return f"{row.stage} {size(row.done)} of {size(row.total)}"
    return row.words or row.stage


def happening(event: Seen) -> str | None:
    """An event that is worth a line."""
    if isinstance(event, StageDone):
        return f"✓ {event.name}  {event.seconds:.1f} s"
    if isinstance(event, Progress):
        amount = f"{size(event.done)} of {size(event.total or 0)}" if event.done is not None else ""
        return "  " + " ".join(filter(None, (event.node or event.stage, amount, event.words)))
    if isinstance(event.outcome, Finding):
        return f"✗ {event.node}: {event.outcome.id}: {event.outcome.summary}"
    return f"  {event.node}: {'; '.join(event.outcome)}" if event.outcome else None


def lines(muster: Muster) -> Iterator[str]:
    """What stays on the screen: the table, what is wrong, what changed, what to do next."""
    up, all_ = len(muster.roster.up), len(muster.roster.rows)
    count = f"{up} of {all_} nodes" if up < all_ else f"{all_} node{'s' * (all_ > 1)}"
    yield f"cluster {muster.cluster} · {count} up · {_duration(muster.seconds)}"
    yield ""
    yield from _table(muster)
    yield ""
    found = muster.all_findings
    if found:
        yield from text.findings(found, effect="keeps the node out")
        yield ""
    changed = [node for node, row in muster.roster.rows.items() if row.changes]
    if changed or muster.controller:
        where = " ".join((*(("controller",) if muster.controller else ()), *changed))
        yield f"changed: {where}"
    elif muster.complete:
        yield "nothing to change"


def _table(muster: Muster) -> Iterator[str]:
    rows = [_COLUMNS, *(_cells(standing, muster.roster) for standing in muster.standings)]
    used = [index for index in range(len(_COLUMNS)) if index == 0 or any(row[index] for row in rows[1:])]
    widths = {index: max(len(row[index]) for row in rows) for index in used}
    for row in rows:
        yield ("  " + "  ".join(f"{row[index]:<{widths[index]}}" for index in used)).rstrip()


def _cells(standing: Standing, roster: Roster) -> tuple[str, ...]:
    failure = roster.rows[standing.node].failure
    name = f"{standing.node} (spare)" if standing.spare else standing.node
    image = f"✗ {failure.id}" if failure else standing.image
    return (name, standing.address, standing.gpus, standing.driver, image, standing.shared)


def to_dict(muster: Muster) -> dict[str, Any]:
    """The document of `up --json`."""
    rows = muster.roster.rows
    return {
        "schema": 1,
        "cluster": muster.cluster,
        "complete": muster.complete,
        "image": muster.tag,
        "nodes": [
            {
                "node": one.node,
                "up": rows[one.node].failure is None,
                "spare": one.spare,
                "address": one.address or None,
                "gpus": one.gpus or None,
                "driver": one.driver or None,
                "image": one.image or None,
                "shared": one.shared or None,
                "changes": rows[one.node].changes,
            }
            for one in muster.standings
        ],
        "controller_changes": list(muster.controller),
        "checks": [finding.to_dict() for finding in muster.all_findings],
        "sent_bytes": muster.sent,
        "seconds": round(muster.seconds, 3),
    }


def changes(cluster: str, roster: Roster, controller: tuple[str, ...]) -> dict[str, Any]:
    """The document of `down --json` and `push --json`."""
    return {
        "schema": 1,
        "cluster": cluster,
        "complete": not roster.failures,
        "nodes": [
            {"node": row.node, "done": row.failure is None, "changes": row.changes} for row in roster.rows.values()
        ],
        "controller_changes": list(controller),
        "checks": [finding.to_dict() for finding in roster.failures],
    }


def size(count: int) -> str:
    """Bytes for a reader."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
