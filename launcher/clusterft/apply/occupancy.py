"""Who has the nodes: the run whose supervisor is at work there, or whose container has the name of a node's cards.

Asked before anything is written down, so that a start on nodes in use leaves no run behind. Only looks; the lock
itself is taken by the start.
"""

from __future__ import annotations

import time
from pathlib import PurePosixPath
from typing import NamedTuple

from clusterft import places
from clusterft.engine import Engine, NoEngine
from clusterft.findings import Finding
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster, Node
from clusterft.places import NodePlaces
from clusterft.plan import container
from clusterft.remote import Remote, Unreachable
from clusterft.runtime import docker, process

_SETTLES = 2.0  # seconds: a run that has just said its last word still holds its nodes for a moment
_TICK = 0.5


class Holder(NamedTuple):
    """Who has a node."""

    run: str
    state: str = "at work"  # over: what is left of it has to be taken away; open: containers for work by hand


def found(fleet: Fleet, cluster: Cluster, run: str, *, contained: bool) -> tuple[Finding, ...]:
    """run.occupied: by run, the active nodes that another one than `run` has."""
    until = time.monotonic() + _SETTLES
    while taken := _taken(fleet, cluster, run, contained=contained):
        if time.monotonic() > until:
            break
        time.sleep(_TICK)
    nodes: dict[Holder, list[str]] = {}
    for node, holder in taken.items():
        nodes.setdefault(holder, []).append(node)
    return tuple(_finding(holder, tuple(held)) for holder, held in nodes.items())


def at_work(fleet: Fleet) -> dict[str, str]:
    """Node -> the run whose supervisor is at work there without a container; nothing of a node that is silent."""
    return _by_lock(fleet, fleet.cluster)


def _finding(holder: Holder, nodes: tuple[str, ...]) -> Finding:
    run = holder.run
    ways = {
        "over": (f"what is left of it is taken away by: clusterft stop {run}",),
        "open": (f"where nobody works in it any more: clusterft stop {run}",),
    }
    return Finding(
        id="run.occupied",
        status="fail",
        nodes=nodes,
        summary=f"in use by run {run}",
        evidence="" if holder.state == "at work" else f"its containers are {holder.state}",
        fix=ways.get(holder.state, (f"wait for it: clusterft attach {run}", f"or end it: clusterft stop {run}")),
        blast_radius=f"run {run}",
    )


def _taken(fleet: Fleet, cluster: Cluster, run: str, *, contained: bool) -> dict[str, Holder]:
    if contained:
        taken = _by_name(fleet, cluster)
    else:
        taken = {node: Holder(at_work) for node, at_work in _by_lock(fleet, cluster).items()}
    return {node: holder for node, holder in taken.items() if holder.run != run}


def _by_lock(fleet: Fleet, cluster: Cluster) -> dict[str, str]:
    nodes = {node.name: node for node in cluster.active}

    def one(name: str, remote: Remote) -> str:
        return process.holder(remote, _places(cluster, nodes[name])) if name in nodes else ""

    return {node: run for node, run in fleet.each(one).items() if isinstance(run, str) and run}


def _by_name(fleet: Fleet, cluster: Cluster) -> dict[str, Holder]:
    """A container that is over holds the name as well, until its logs are taken away."""
    nodes = {node.name: node for node in cluster.active}

    def one(name: str, remote: Remote) -> Holder | None:
        if name not in nodes:
            return None
        try:
            with Engine(remote, docker.command(remote)) as engine:
                held = docker.holder(engine, container.name(nodes[name]))
        except (NoEngine, docker.EngineSaidNo):
            return None  # which the start will tell
        if held is None:
            return None
        return Holder(held.run, "over" if held.state in docker.OVER else "open" if held.idle else "at work")

    return {node: held for node, held in fleet.each(one).items() if held and not isinstance(held, Unreachable)}


def _places(cluster: Cluster, node: Node) -> NodePlaces:
    """Relative to the home of who logs in there."""
    local = node.transport == "local"
    return NodePlaces(PurePosixPath(places.controller_home() if local else ".clusterft"), cluster.name, node.name)
