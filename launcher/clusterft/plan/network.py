"""Which address and interface each node uses towards the others, and which port the head listens on. Pure.

DeepSpeed takes the first word of `hostname -I`, which is as often a bridge; here the routes decide.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from clusterft.checks import Survey
from clusterft.errors import UsageError
from clusterft.facts import NodeFacts
from clusterft.hosts import Node

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Address:
    """How the other nodes reach a node, and the interface it speaks through (None: not known)."""

    ip: str
    interface: str | None


def solve(survey: Survey) -> dict[str, Address]:
    """An address for every active node, in the hostfile's order."""
    nodes = survey.cluster.active
    if len({survey.facts[node.name].boot_id for node in nodes}) == 1 and survey.cluster.all_local:
        return {node.name: Address(_LOOPBACK, "lo") for node in nodes}
    return {node.name: _address(node, survey) for node in nodes}


def _address(node: Node, survey: Survey) -> Address:
    facts = survey.facts[node.name]
    route = _towards_others(node, facts, survey)
    own = node.addr or (_contact(node, survey) if node.transport == "ssh" else route and route[1])
    if own is None:
        local = " transport=local" if node.transport == "local" else ""
        raise UsageError(
            f"the address of {node.name} towards the other nodes is not known",
            where=f"{survey.cluster.path}:{node.line}",
            remedy=f"give it: {node.name} slots={node.slots} addr=ADDRESS{local}",
        )
    return Address(own, route[0] if route else None)


def _contact(node: Node, survey: Survey) -> str | None:
    """The node's IP as SSH knows it; a loopback, from a forwarded port, leads other machines to themselves."""
    contact = survey.contacts.get(node.name)
    machines = {facts.boot_id for facts in survey.facts.values()}
    if contact and len(machines) > 1 and ipaddress.ip_address(contact).is_loopback:
        return None
    return contact


def _towards_others(node: Node, facts: NodeFacts, survey: Survey) -> tuple[str, str] | None:
    """(interface, own address) on the way to the first other machine, or to the controller that is one."""
    own = node.addr or survey.contacts.get(node.name)
    for peer, interface, source in facts.routes:
        if peer != own:
            return interface, source
    return facts.controller_route


def free_port(first: int, listening: frozenset[int] | None, span: int = 64) -> int:
    """The first port of `span` on which nobody listens; the first one when that could not be read."""
    last = min(first + span, 65536) - 1
    for port in range(first, last + 1):
        if port not in (listening or ()):
            return port
    raise UsageError(
        f"ports {first} to {last} are all in use on the head",
        remedy="set port: to the start of a free range",
    )
