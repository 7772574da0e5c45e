"""Who has the nodes: the run whose supervisor is at work there, or whose container has the name of a node's cards.

Asked before anything is written down, so that a start on nodes in use leaves no run behind. Only looks; the lock
itself is taken by the start.
"""

from __future__ import annotations

import time
from pathlib import PurePosixPath

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


def found(fleet: Fleet, cluster: Cluster, run: str, *, contained: bool) -> tuple[Finding, ...]:
    """run.occupied: by run, the active nodes that another one than `run` has."""
    until = time.monotonic() + _SETTLES
    while taken := _taken(fleet, cluster, run, contained=contained):
        if time.monotonic() > until:
            break
        time.sleep(_TICK)
    nodes: dict[str, list[str]] = {}
    for node, holder in taken.items():
        nodes.setdefault(holder, []).append(node)
    return tuple(_finding(holder, tuple(held)) for holder, held in nodes.items())


def at_work(fleet: Fleet) -> dict[str, str]:
    """Node -> the run whose supervisor is at work there without a container; nothing of a node that is silent."""
    return _by_lock(fleet, fleet.cluster)


def _finding(run: str, nodes: tuple[str, ...]) -> Finding:
    return Finding(
        id="run.occupied",
        status="fail",
        nodes=nodes,
        summary=f"in use by run {run}",
        fix=(f"wait for it: clusterft attach {run}", f"or end it: clusterft stop {run}"),
        blast_radius=f"run {run}",
    )


def _taken(fleet: Fleet, cluster: Cluster, run: str, *, contained: bool) -> dict[str, str]:
    taken = _by_name(fleet, cluster) if contained else _by_lock(fleet, cluster)
    return {node: holder for node, holder in taken.items() if holder != run}


def _by_lock(fleet: Fleet, cluster: Cluster) -> dict[str, str]:
    nodes = {node.name: node for node in cluster.active}

    def one(name: str, remote: Remote) -> str:
        return process.holder(remote, _places(cluster, nodes[name])) if name in nodes else ""

    return {node: run for node, run in fleet.each(one).items() if isinstance(run, str) and run}


def _by_name(fleet: Fleet, cluster: Cluster) -> dict[str, str]:
    """A container that is over holds the name as well, until its logs are taken away."""
    nodes = {node.name: node for node in cluster.active}

    def one(name: str, remote: Remote) -> str:
        if name not in nodes:
            return ""
        try:
            with Engine(remote, docker.command(remote)) as engine:
                held = docker.holder(engine, container.name(nodes[name]))
        except (NoEngine, docker.EngineSaidNo):
            return ""  # which the start will tell
        return held.run if held else ""

    return {node: run for node, run in fleet.each(one).items() if not isinstance(run, Unreachable) and run}


def _places(cluster: Cluster, node: Node) -> NodePlaces:
    """Relative to the home of who logs in there."""
    local = node.transport == "local"
    return NodePlaces(PurePosixPath(places.controller_home() if local else ".clusterft"), cluster.name, node.name)
