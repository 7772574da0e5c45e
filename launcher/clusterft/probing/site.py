"""Who takes part in `doctor --deep` and in the rehearsal: nodes on which the proving program could be started.

Owns the words of a node that has none. Starts no task.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from clusterft.checks import Survey, networks
from clusterft.checks.examination import Wanted
from clusterft.checks.work import acceptance
from clusterft.facts import deep as facts
from clusterft.hosts import Node
from clusterft.plan.container import Fittings
from clusterft.plan.network import Address
from clusterft.probing import box
from clusterft.probing.crew import Crew, Silent, Talk
from clusterft.remote import Remote

_PERSON = {"HOME": "/tmp", "USER": "clusterft"}  # a run's home is put into its container with its files
_READY = 90.0  # torch and its libraries from a cold disk, on all nodes at once


@dataclass(frozen=True, slots=True)
class Dress:
    """What a program gets of its node, and the variables that it has where these are a run's own."""

    fittings: Fittings
    env: Mapping[str, str] | None = None


def able(crew: Crew, survey: Survey, wanted: Wanted) -> tuple[list[str], dict[str, str]]:
    """Who can take part, and why the others cannot: a run in containers is tried in its image or not at all."""
    able, missing = [], {}
    for node in survey.cluster.active:
        way = crew.ways.get(node.name)
        if way is None or node.name not in survey.facts:
            continue
        if wanted.contained and way.kind != "image":
            missing[node.name] = (
                "the image is not there: clusterft up" if way.docker else "its engine cannot be used"
            )
        elif way.kind == "none":
            missing[node.name] = way.words
        else:
            able.append(node.name)
    return able, missing


def opened(
    crew: Crew, survey: Survey, wanted: Wanted, dressed: Mapping[str, Dress] | None = None, ready: float = _READY
) -> tuple[dict[str, Talk], dict[str, str]]:
    """Every node's program, once it has torch; words of those that have none."""
    nodes = {node.name: node for node in survey.cluster.active}
    told_python = wanted.job.python if wanted.job else None
    python = told_python or sys.executable

    def one(name: str, _: Remote) -> Talk | str:
        way, known = crew.ways[name], survey.facts[name]
        dress = dressed[name] if dressed else Dress(box.fittings(nodes[name], known, wanted))
        told = () if dress.env is None else (f"env={json.dumps(dict(dress.env))}",)
        # In a container it is the image's own Python that a run uses, unless the job names one.
        inside = (told_python,) if told_python else ()
        arguments = inside if way.kind == "image" else (*told, python)
        variables = {**(dress.env or {}), **_PERSON}
        try:
            talk = crew.start(
                name, "proving", arguments, owner=wanted.owner, fittings=dress.fittings, env=variables
            )
        except Silent as error:
            return str(error)
        try:
            body = talk.hear(ready)
        except Silent as error:
            talk.close()
            return f"torch did not come up: {error}"
        if "ready" in body:
            return talk
        talk.close()
        return f"no torch to work with: {str(body.get('broken', body))[:400]}"

    found = crew.fleet.each(lambda name, remote: one(name, remote) if name in nodes else "")
    talks = {name: found[name] for name in nodes if isinstance(found.get(name), Talk)}
    words = {name: str(found.get(name)) for name in nodes if name not in talks}
    return talks, words  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Site:
    """The nodes that take part, and what is known of them."""

    wanted: Wanted
    nodes: tuple[Node, ...]
    addresses: Mapping[str, Address]
    survey: Survey

    @property
    def cuda(self) -> bool:
        """Whether slots are cards."""
        return self.wanted.device == "cuda"

    @property
    def backend(self) -> facts.Backend:
        """Of torch.distributed."""
        return "nccl" if self.cuda else "gloo"

    @property
    def wires(self) -> dict[str, int | None]:
        """Node -> Mbit/s that one connection can have on the interface that it uses."""
        known = self.survey.facts
        return {name: networks.leg(known[name], one.interface) for name, one in self.addresses.items()}

    @property
    def equal(self) -> bool:
        """Four or more nodes with the same cards and the same link, which is known."""
        wires = self.wires
        models = set()
        for node in self.nodes:
            cards = sorted(card.name for card in self.survey.facts[node.name].gpus)
            models.add((node.slots, wires[node.name], *cards))
        return len(self.nodes) >= acceptance.EQUAL_NODES and len(models) == 1
