"""The runs that hold nodes now: nothing is wrong with that, and no other run can begin there. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clusterft.checks.engines import containers
from clusterft.checks.examination import Examination
from clusterft.facts.health.docker import OVER


@dataclass(frozen=True, slots=True)
class Occupant:
    """One run, and what it holds of this cluster."""

    run: str
    nodes: tuple[str, ...]
    cluster: str = ""  # where it was started for another one, which has some of these machines too


def found(seen: Examination) -> tuple[Occupant, ...]:
    """By locks of nodes and by containers, in the order of the nodes."""
    held: dict[tuple[str, str], list[str]] = {}
    left = frozenset((node, one.id) for node, one, _ in containers.left_behind(seen))
    for node in seen.nodes:
        for key in dict.fromkeys(_on(seen, node, left)):
            held.setdefault(key, []).append(node)
    mine = seen.survey.cluster.name
    return tuple(
        Occupant(run, tuple(nodes), "" if cluster == mine else cluster) for (cluster, run), nodes in held.items()
    )


def _on(seen: Examination, node: str, left: frozenset[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Cluster and run. Nodes of one cluster may share a home, so there its lock must be of this very node."""
    health = seen.health.get(node)
    if health is None:
        return
    for held in health.ours.runs or ():
        if held.cluster != seen.survey.cluster.name or held.node == node:
            yield held.cluster, held.run
    for one in health.docker.containers or ():
        if one.run and one.state not in OVER and (node, one.id) not in left:
            yield one.labels.get("clusterft.cluster", ""), one.run
