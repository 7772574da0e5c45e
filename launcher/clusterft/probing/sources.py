"""Asks every node for what the job reads there, and for the first files that its tables name. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

from clusterft.checks import sources as checks
from clusterft.facts import sources
from clusterft.facts.sources import Named, State, Table
from clusterft.fleet import Fleet
from clusterft.remote import Remote, Unreachable
from clusterft.spec import JobSpec


def look(fleet: Fleet, job: JobSpec) -> Mapping[str, tuple[State, ...]]:
    """Node -> the state of each path that the job reads; who gave no whole answer in time is left out."""
    asked = checks.asked(job)
    if not asked:
        return {}

    def one(_: str, remote: Remote) -> tuple[State, ...] | None:
        return sources.parse(remote.run(sources.argv(asked), seconds=sources.SECONDS).out, asked)

    found = fleet.each(one)
    return {name: said for name, said in found.items() if said is not None and not isinstance(said, Unreachable)}


def named(fleet: Fleet, job: JobSpec, head: str) -> tuple[Named, ...]:
    """The first files of each table, read on one node and looked for on all."""
    return tuple(one for one in (_named(fleet, table, head) for table in checks.tables(job)) if one.files)


def _named(fleet: Fleet, table: Table, head: str) -> Named:
    try:
        text = fleet.remotes[head].run(sources.head(table.path), seconds=sources.SECONDS).out
    except Unreachable:
        text = ""  # the trainer reads it, and says what is wrong
    files = sources.named(table, text)

    def one(_: str, remote: Remote) -> tuple[str, ...] | None:
        done = remote.run(sources.missing_argv(files), seconds=sources.SECONDS)
        return sources.missing(done.out, files)

    found = fleet.each(one) if files else {}
    missing = {node: said for node, said in found.items() if said and not isinstance(said, Unreachable)}
    return Named(table, files, missing)
