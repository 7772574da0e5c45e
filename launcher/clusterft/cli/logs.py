"""`clusterft logs`: what the ranks of a run have written and go on writing, each line with its owner."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from clusterft.apply import listening, reading, runs
from clusterft.apply.listening import Source
from clusterft.apply.runs import Located
from clusterft.cli.ask import Terminal
from clusterft.errors import Interrupted, UsageError
from clusterft.events import Gone
from clusterft.remote import Unreachable
from clusterft.spec import amounts
from clusterft.ui import logs as view

_BATCH = 256  # lines that wait to be written while more come


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of this verb."""

    run: str | None
    hosts: Path | None
    cluster: str | None
    follow: bool
    node: str | None
    rank: int | None
    attempt: int | None
    grep: str | None
    since: str | None
    as_json: bool


def run(options: Options) -> int:
    """Print the lines that are wanted; with --follow until the run is over."""
    wanted = _wanted(options)  # before any node is asked
    with runs.locate(options.run, options.hosts, options.cluster, Terminal()) as located:
        before, now = reading.sources(located, options.node)
        if not now:
            named = ", ".join(part.node for part in located.parts)
            raise UsageError(f'run {located.run} has no node "{options.node}"', remedy=f"its nodes: {named}")
        _has_rank(options.rank, located)
        try:
            return _print(options, wanted, located, (before, now))
        except KeyboardInterrupt:  # how one leaves a log that is followed
            return Interrupted.exit_code


def _has_rank(rank: int | None, located: Located) -> None:
    """Those of the plan, which may have said nothing yet; before a run was resumed there may have been more."""
    count = int(located.record.get("plan", {}).get("world_size") or 0)
    if rank is None or not count or -1 <= rank < count:
        return
    count = max(count, *(one + 1 for one in reading.ranks(located)), 0)
    if rank < -1 or rank >= count:
        there = f"ranks 0 to {count - 1}" if count > 1 else "rank 0"
        raise UsageError(f"run {located.run} has no rank {rank}", remedy=f"it has {there}; -1 is the launchers")


def _wanted(options: Options) -> view.Wanted:
    try:
        pattern = re.compile(options.grep) if options.grep is not None else None
    except re.error as error:
        raise UsageError(f"--grep is not a regular expression: {error}", where=str(options.grep)) from None
    try:
        ago = None if options.since is None else float(str(amounts.seconds(options.since)))
    except ValueError as error:
        raise UsageError(f"--since {options.since}: {error}") from None
    since = None if ago is None else time.time() - ago
    return view.Wanted(options.node, options.rank, options.attempt, pattern, since)


def _print(
    options: Options, wanted: view.Wanted, located: Located, sources: tuple[list[Source], list[Source]]
) -> int:
    """Batches: a write a line would be most of the work in a flood."""
    chosen = view.Log(wanted)
    before, now = sources
    form = view.Form((source.node for source in now), colours=sys.stdout.isatty())
    waiting: list[str] = []
    unread = False
    offsets = reading.clock_offsets(located.fleet) if len(now) > 1 else {}
    earlier = listening.listen(before, follow=False, offsets=offsets)
    for event in chain(earlier, listening.listen(now, follow=options.follow, offsets=offsets)):
        entry = chosen.entry(event) if event is not None else None
        if entry is not None:
            waiting.append(view.to_json(entry) if options.as_json else form.line(entry))
        if waiting and (event is None or len(waiting) >= _BATCH):
            _write(waiting)
        aside = view.aside(event) if event is not None else None
        if aside:
            _write(waiting)
            sys.stderr.write(aside + "\n")
        unread = unread or (isinstance(event, Gone) and event.words != listening.VANISHED)
    _write(waiting)
    if not unread and (there := chosen.lacks()):
        raise UsageError(f"run {located.run} has no attempt {options.attempt}", remedy=there)
    return Unreachable.exit_code if unread else 0


def _write(waiting: list[str]) -> None:
    if waiting:
        sys.stdout.write("\n".join(waiting) + "\n")
        sys.stdout.flush()
        waiting.clear()
