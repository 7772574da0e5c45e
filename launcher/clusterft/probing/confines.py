"""Asks every node how much memory a login, or what a container shares with it, may use. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

from clusterft.facts.health import confines
from clusterft.facts.health.confines import Confines, Limit
from clusterft.fleet import Fleet
from clusterft.remote import Remote, Unreachable

_SECONDS = 10.0


def look(fleet: Fleet, *, contained: bool) -> Mapping[str, Limit]:
    """Node -> the least limit of memory that its ranks are under; none where there is none, or no answer."""

    def one(_: str, remote: Remote) -> Confines:
        return confines.read(remote.run(confines.argv(), seconds=_SECONDS).out)

    found = fleet.each(one)
    least = {
        name: said.least_memory(contained=contained)
        for name, said in found.items()
        if not isinstance(said, Unreachable)
    }
    return {name: limit for name, limit in least.items() if limit is not None}
