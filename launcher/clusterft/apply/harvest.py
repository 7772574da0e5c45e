"""What is left of a run that is over: its containers, gone once their logs are safe.

By label and on every node, not by what was planned: a node that was lost may be back, with a container that nobody
told of the end. Refuses a run that goes on: who asks must know that it is over.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import PurePosixPath

from clusterft import places
from clusterft.errors import ClusterftError
from clusterft.fleet import Fleet
from clusterft.places import CONTAINER, NodePlaces
from clusterft.plan import Part
from clusterft.plan.part import Runtime
from clusterft.remote import Remote, Unreachable
from clusterft.runtime import Harvest, carrier


def gather(
    fleet: Fleet, run: str, parts: Iterable[Part], only: Container[str] | None = None
) -> dict[str, Harvest | ClusterftError]:
    """On every connected node: what was taken away, or why it could not be; nothing where there was nothing.

    With `only`, on these nodes alone: the run goes on elsewhere.
    """
    known = {part.node: part for part in parts}
    runtime: Runtime = next((part.runtime for part in known.values()), "docker")
    cluster = fleet.cluster.name
    hand = carrier(runtime, cluster, run)
    local = {node.name for node in fleet.cluster.active if node.transport == "local"}

    def one(node: str, remote: Remote) -> Harvest | ClusterftError:
        if only is not None and node not in only:
            return Harvest(removed=False)
        part = known.get(node) or Part(node, -1, runtime, str(CONTAINER), "python3")
        try:
            return hand.harvest(part, remote, _keep(cluster, node, run, local=node in local))
        except Unreachable as error:
            if node not in known and error.id in ("dk.absent", "dk.perm", "dk.down"):
                return Harvest(removed=False)  # a spare that never had an engine
            return error
        except ClusterftError as error:
            return error

    found = fleet.each(one)
    return {node: each for node, each in found.items() if isinstance(each, ClusterftError) or each.removed}


def told(found: dict[str, Harvest | ClusterftError]) -> list[str]:
    """What a person should know of it: logs that lie elsewhere, containers that are left."""
    lines = []
    for node, one in found.items():
        if isinstance(one, ClusterftError):
            remedy = f" ({one.remedy})" if one.remedy else ""
            lines.append(f"{node}: what is left there is not cleared away yet: {one.what}{remedy}")
        elif one.problem:
            where = f"; its logs are on {node} in {one.kept}" if one.kept else "; it has left no logs"
            lines.append(f"{node}: {one.problem}{where}")
    return lines


def _keep(cluster: str, node: str, run: str, *, local: bool) -> str:
    """Where a node keeps logs that are nowhere else; relative to the home of who logs in there."""
    root = PurePosixPath(places.controller_home()) if local else PurePosixPath(".clusterft")
    return str(NodePlaces(root, cluster, node).run(run))
