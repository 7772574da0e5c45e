"""Has every node count what it holds of a job's data that lies outside the shared dir. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clusterft.facts import holdings
from clusterft.facts.holdings import Holding
from clusterft.fleet import Fleet
from clusterft.remote import Remote, Unreachable


def count(fleet: Fleet, paths: Sequence[str]) -> dict[str, Mapping[str, Holding] | str | Unreachable]:
    """Node -> path -> what is there, or in words why that is not known."""

    def one(_: str, remote: Remote) -> Mapping[str, Holding] | str:
        done = remote.run(holdings.argv(paths), seconds=holdings.SECONDS)
        words = f"exit {done.code}: {done.err.strip()[-200:] or 'no whole answer'}"
        return holdings.parse(done.out, paths) or words

    return {**fleet.each(one)}
