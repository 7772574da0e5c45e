"""Has every node count what it holds of a job's data that lies outside the shared dir. Changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from clusterft.facts import holdings
from clusterft.facts.holdings import Holding
from clusterft.fleet import Fleet
from clusterft.remote import Remote, Unreachable


def count(
    fleet: Fleet,
    paths: Sequence[str],
    weights: Collection[str] = (),
    waits: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Mapping[str, Holding] | str | Unreachable]:
    """Node -> path -> what is there, or in words why that is not known.

    Of `weights`, which are some of these paths, content is sampled too. A node's paths in `waits` do not answer
    there: they are left alone, as whoever touches them waits.
    """

    def one(name: str, remote: Remote) -> Mapping[str, Holding] | str:
        stuck = (waits or {}).get(name, ())
        asked = [path for path in paths if path not in stuck]
        if not asked:
            return {}
        done = remote.run(holdings.argv(asked), seconds=holdings.SECONDS)
        words = f"exit {done.code}: {done.err.strip()[-200:] or 'no whole answer'}"
        held = holdings.parse(done.out, asked)
        sampled = [path for path in asked if path in weights]
        if not held or not sampled:
            return held or words
        try:
            said = remote.run(holdings.sums_argv(sampled), seconds=holdings.SECONDS).out
        except Unreachable:
            said = ""  # numbers and sizes are known all the same
        return holdings.with_sums(held, said, sampled)

    return {**fleet.each(one)}
