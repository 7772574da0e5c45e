"""Which address and interface each node uses towards the others, and which port the head listens on. Pure.

DeepSpeed takes the first word of `hostname -I`, which is as often a bridge; here hostfile, networks and routes
decide, by the rules of `checks.networks`, which doctor explains and tries.
"""

from __future__ import annotations

from clusterft.checks import Survey, networks
from clusterft.checks.networks import Place as Address
from clusterft.errors import UsageError

__all__ = ["Address", "free_port", "solve"]


def solve(survey: Survey) -> dict[str, Address]:
    """An address for every active node, in the hostfile's order; UsageError where nothing tells one."""
    known = networks.choose(survey).places
    for node in survey.cluster.active:
        if node.name not in known:
            local = " transport=local" if node.transport == "local" else ""
            raise UsageError(
                f"the address of {node.name} towards the other nodes is not known",
                where=f"{survey.cluster.path}:{node.line}",
                remedy=f"give it: {node.name} slots={node.slots} addr=ADDRESS{local}",
            )
    return {node.name: known[node.name] for node in survey.cluster.active}


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
