"""Routes by which a node itself refuses to send to a peer: nothing of it reaches the wire. Pure.

What then fails at either end is of this one node: it cannot connect, and its answers do not get out either.
"""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks import networks
from clusterft.checks.examination import Examination
from clusterft.facts.health.network import Refusal
from clusterft.facts.links import Dial
from clusterft.findings import Finding


def refused(seen: Examination) -> Iterator[Finding]:
    """net.route: one finding for each sender, with all the routes that are to go."""
    found = seen.once(_refused)
    for node in seen.nodes:
        mine = {peer: route for (source, peer), route in found.items() if source == node}
        if not mine:
            continue
        dials = seen.links.dials if seen.links else ()
        told = [one.told for one in dials if one.error and one.source == node and one.target in mine]
        routes = tuple(dict.fromkeys(mine.values()))
        others = tuple(mine)
        yield Finding(
            id="net.route",
            status="fail",
            nodes=(node,),
            summary=f"a route of its own keeps it from sending to {', '.join(others)}, and from answering",
            evidence="\n".join((*(f"{node}, ip route: {one.line}" for one in routes), *told[:6])),
            cause="fail2ban or a person has banned the address: such a route stops every packet to it",
            fix=(
                *(f"on {node}: sudo ip route del {one.words}" for one in routes),
                *(
                    f"if fail2ban put it there, on {node}: sudo fail2ban-client unban {seen.dialled[peer]}   (and "
                    "name it in ignoreip of /etc/fail2ban/jail.local)"
                    for peer in others
                ),
            ),
            needs_root=True,
            blast_radius="the node's routes",
        )


def cut(seen: Examination) -> set[tuple[str, str]]:
    """(source, target) of what such a route explains: the way there, and the way back, which has no answers."""
    found = seen.once(_refused)
    return {pair for source, target in found for pair in ((source, target), (target, source))}


def _refused(seen: Examination) -> dict[tuple[str, str], Refusal]:
    found = {}
    for node, health in seen.health.items():
        facts = seen.survey.facts.get(node)
        routed = {peer for peer, _, _ in facts.routes} if facts else set()
        for target, ip in seen.dialled.items():
            if target == node or ip in routed or _came_about(seen, node, target):
                continue
            address = networks.parsed(ip)
            fitting = [one for one in health.network.refusals or () if address and address in one.network]
            if fitting:
                found[node, target] = max(fitting, key=lambda one: one.network.prefixlen)
    return found


def _came_about(seen: Examination, node: str, target: str) -> bool:
    """A narrower route may lead there even so: what was tried counts more than a table."""
    tried: tuple[Dial, ...] = seen.links.dials if seen.links else ()
    return any(one.reached for one in tried if (one.source, one.target) == (node, target))
