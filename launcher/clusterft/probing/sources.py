"""Asks every node for what the job reads there, and for the first files that its tables name. Changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from clusterft.checks import sources as checks
from clusterft.facts import sources
from clusterft.facts.sources import Named, State, Table
from clusterft.fleet import Fleet
from clusterft.remote import Remote, Unreachable
from clusterft.spec import JobSpec

Waits = Mapping[str, Collection[str]]  # node -> paths that do not answer there, which nobody should touch


def look(fleet: Fleet, job: JobSpec, waits: Waits | None = None) -> Mapping[str, tuple[State, ...]]:
    """Node -> the state of each path that the job reads; who gave no whole answer in time is left out."""
    asked = checks.asked(job)
    if not asked:
        return {}

    def one(name: str, remote: Remote) -> tuple[State, ...] | None:
        well = [each for each in asked if not _stuck(each.path, (waits or {}).get(name, ()))]
        text = remote.run(sources.argv(well), seconds=sources.SECONDS).out if well else ""
        states = sources.parse(text, well)
        if states is None:
            return None
        found = iter(states)
        return tuple(next(found) if each in well else "late" for each in asked)

    found = fleet.each(one)
    return {name: said for name, said in found.items() if said is not None and not isinstance(said, Unreachable)}


def named(fleet: Fleet, job: JobSpec, head: str, waits: Waits | None = None) -> tuple[Named, ...]:
    """The first files of each table, read on one node and looked for on all."""
    tables = [one for one in checks.tables(job) if not _stuck(one.path, (waits or {}).get(head, ()))]
    return tuple(one for one in (_named(fleet, table, head, waits or {}) for table in tables) if one.files)


def _stuck(path: str, waits: Collection[str]) -> bool:
    """Whether it is, or lies below, one that does not answer."""
    return any(path == one or path.startswith(one.rstrip("/") + "/") for one in waits)


def _named(fleet: Fleet, table: Table, head: str, waits: Waits) -> Named:
    try:
        text = fleet.remotes[head].run(sources.head(table.path), seconds=sources.SECONDS).out
    except Unreachable:
        text = ""  # the trainer reads it, and says what is wrong
    files = sources.named(table, text)

    def one(name: str, remote: Remote) -> tuple[str, ...] | None:
        if any(_stuck(file, waits.get(name, ())) for file in files):
            return None
        done = remote.run(sources.missing_argv(files), seconds=sources.SECONDS)
        return sources.missing(done.out, files)

    found = fleet.each(one) if files else {}
    missing = {node: said for node, said in found.items() if said and not isinstance(said, Unreachable)}
    return Named(table, files, missing)
