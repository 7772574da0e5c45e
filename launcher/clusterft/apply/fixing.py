"""Carrying out what doctor may mend, node by node; each outcome is kept, and a failure holds up no other."""

from __future__ import annotations

from collections.abc import Iterable

from clusterft.apply import harvest, settings
from clusterft.checks.mends import Mend, Mended
from clusterft.errors import ClusterftError
from clusterft.fleet import Fleet
from clusterft.remote.local import LocalRemote

_SECONDS = 20.0


def apply(fleet: Fleet, chosen: Iterable[Mend]) -> tuple[Mended, ...]:
    """All of them, one after the other: they are few and quick, and their order may matter."""
    return tuple(Mended(one, _do(fleet, one)) for one in chosen)


def _do(fleet: Fleet, mend: Mend) -> str:
    if mend.pin:
        settings.pin(settings.cluster_places(fleet.cluster.name), mend.node, mend.pin)
        return ""
    if mend.harvest:
        found = harvest.gather(fleet, mend.harvest, (), {mend.node}, kill=False).get(mend.node)
        if found is None:
            return "it is no longer there"
        return "; ".join(harvest.told({mend.node: found})) if isinstance(found, ClusterftError) else ""
    remote = fleet.remotes.get(mend.node) if mend.node else LocalRemote()
    if remote is None:
        return f"{mend.node} is not reached"
    try:
        done = remote.run(mend.argv, seconds=_SECONDS)
    except ClusterftError as error:
        return error.what
    return "" if done.code == 0 else done.err.strip() or f"exit code {done.code}"
