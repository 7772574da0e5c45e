"""What is left of a run that is over: its containers, gone once their logs are safe.

By label and on every node, not by what was planned: a node that was lost may be back, with a container that nobody
told of the end. Refuses a run that goes on: who asks must know that it is over.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Mapping
from pathlib import PurePosixPath

from clusterft import places
from clusterft.errors import ClusterftError
from clusterft.fleet import Fleet
from clusterft.places import CONTAINER, NodePlaces
from clusterft.plan import Part
from clusterft.plan.part import Runtime
from clusterft.remote import Remote, Unreachable
from clusterft.runtime import Harvest, carrier

OVER = frozenset(("created", "exited", "dead"))  # the engine's words for a container that nothing runs in
_LAST_WORDS = 15.0  # seconds


def gather(
    fleet: Fleet, run: str, parts: Iterable[Part], only: Container[str] | None = None, *, kill: bool
) -> dict[str, Harvest | ClusterftError]:
    """On every connected node: what was taken away, or why it could not be; nothing where there was nothing.

    With `only`, on these nodes alone: the run goes on elsewhere. With `kill`, also what still runs and has not
    said that it is over: the run as a whole is known to be, or that part has been replaced.
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
            return hand.harvest(part, remote, _keep(cluster, node, run, local=node in local), kill=kill)
        except Unreachable as error:
            if node not in known and error.id in ("dk.absent", "dk.perm", "dk.down"):
                return Harvest(removed=False)  # a spare that never had an engine
            return error
        except ClusterftError as error:
            return error

    found = fleet.each(one)
    broken = {node for node, each in found.items() if isinstance(each, Unreachable) and each.id.startswith("ssh.")}
    for node in broken:  # it was rebooted, or its link was down for a while: the connection is gone, not the node
        fleet.reconnect(node)
    if broken:
        found |= fleet.each(lambda node, remote: one(node, remote) if node in broken else found[node])
    return {node: each for node, each in found.items() if isinstance(each, ClusterftError) or each.removed}


def ripe(
    state: str, containers: Mapping[str, str], members: Iterable[str], ended: float | None, *, told: bool
) -> bool:
    """Whether what is left of a run may go: it is over, and what still runs of it knows nothing of that.

    Only an outcome.json, which the gang writes itself, is `told`: a controller may have taken for an end what it
    could not hear, and what runs then is the run.
    `containers` has the engine's word for each node's; `members` are the nodes of the gang as it ended. A part
    gets time to hear of the end and for its last words; one that was replaced, or comes back later, has had it.
    """
    if state not in ("ok", "stopped", "failed"):
        return False
    if not told:
        return all(word in OVER for word in containers.values())
    late = ended is not None and time.time() - ended > _LAST_WORDS
    nodes = set(members)
    return late or all(word in OVER for node, word in containers.items() if node in nodes)


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
