"""Routes by which a node itself refuses to send to a peer, or sends it another way than their common wire. Pure.

What then fails at either end is of this one node: it cannot connect, and its answers do not get out either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clusterft.checks import networks
from clusterft.checks.examination import Examination
from clusterft.facts.health.network import Refusal, Rule
from clusterft.facts.links import Dial
from clusterft.facts.network import Address
from clusterft.findings import Finding

_TAILSCALE = re.compile(r"tailscale\d+|ts\d+")
_VPN = "a VPN"  # as networks.virtual calls it


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


@dataclass(frozen=True, slots=True)
class Astray:
    """A peer on a node's own wire, to which the kernel leads it by another interface."""

    interface: str
    source: str  # the address that it would send from
    table: str  # empty: main
    own: Address  # of the node, on that wire


def led_away(seen: Examination) -> Iterator[Finding]:
    """net.route: one finding for each sender; a route that is taken, and by which nothing comes about."""
    found = seen.once(_led_away)
    for node in seen.nodes:
        mine = {peer: way for (source, peer), way in found.items() if source == node}
        if not mine:
            continue
        way = next(iter(mine.values()))
        kind = networks.virtual(way.interface)
        rule = _rule(seen, node, way)
        dials = seen.links.dials if seen.links else ()
        told = [one.told for one in dials if one.error and one.source == node and one.target in mine]
        gets = [
            f"{node}, ip route get {seen.dialled[peer]}: dev {each.interface}"
            + (f" table {each.table}" if each.table else "")
            + f" src {each.source}"
            for peer, each in mine.items()
        ]
        table = f", by table {way.table}" if way.table else ""
        yield Finding(
            id="net.route",
            status="fail",
            nodes=(node,),
            summary=f"what it sends to {', '.join(mine)} leaves by {way.interface}{table}, and not by "
            f"{way.own.interface}, which has its address {way.own.ip} in their network",
            evidence="\n".join((*gets, *([f"{node}, ip rule: {rule.line}"] if rule else ()), *told[:6])),
            cause=f"{way.interface} is {kind}, whose routes come before those of the node's own network"
            if kind
            else "a rule or a route of this node comes before that of its own network",
            fix=tuple(_back(seen, node, mine, rule)),
            needs_root=True,
            blast_radius="the node's routes",
        )


def _back(seen: Examination, node: str, mine: dict[str, Astray], rule: Rule | None) -> Iterator[str]:
    """Off with what leads away, else a rule in front of it; in the table main the narrowest route counts."""
    way = next(iter(mine.values()))
    if _TAILSCALE.fullmatch(way.interface):
        yield f"on {node}: sudo tailscale set --accept-routes=false"
    if way.table:
        # Priority 0 is the kernel's own, for the node's addresses.
        before = max(1, rule.priority - 1) if rule else 1
        family = "-6 " if way.own.network.version == 6 else ""
        to = f"to {way.own.network} lookup main priority {before}"
        yield f"on {node}: sudo ip {family}rule add {to}   until it is restarted"
    else:
        for peer, each in mine.items():
            to = f"{seen.dialled[peer]} dev {each.own.interface} src {each.own.ip}"
            yield f"on {node}: sudo ip route replace {to}   until it is restarted"
    if networks.virtual(way.interface) == _VPN:
        yield f"and leave {way.own.network} out of what goes through {way.interface}, in the VPN's settings"


def _rule(seen: Examination, node: str, way: Astray) -> Rule | None:
    """The first that asks this table."""
    health = seen.health.get(node)
    rules = [
        one
        for one in (health.network.rules if health else ())
        if way.table and one.table == way.table and one.version == way.own.network.version
    ]
    return min(rules, key=lambda one: one.priority, default=None)


def _led_away(seen: Examination) -> dict[tuple[str, str], Astray]:
    """Only where nothing came about: some nodes have a good reason for their ways."""
    found = {}
    for node, facts in seen.survey.facts.items():
        own = networks.holder(facts, seen.dialled.get(node, ""))
        ways = {peer: (interface, source) for peer, interface, source in facts.routes}
        for target, ip in seen.dialled.items():
            address = networks.parsed(ip)
            if target == node or ip not in ways or own is None or address is None or address not in own.network:
                continue
            interface, source = ways[ip]
            beside = any(each.interface == interface and address in each.network for each in facts.addresses or ())
            other = interface not in (own.interface, "lo") and (not beside or networks.virtual(interface) == _VPN)
            if other and networks.holder(facts, ip) is None and _failed(seen, node, target):
                found[node, target] = Astray(interface, source, dict(facts.tables).get(ip, ""), own)
    return found


def _failed(seen: Examination, node: str, target: str) -> bool:
    tried = [one for one in (seen.links.dials if seen.links else ()) if (one.source, one.target) == (node, target)]
    return bool(tried) and not any(one.reached or not one.error for one in tried)


def cut(seen: Examination) -> set[tuple[str, str]]:
    """(source, target) of what such a route explains: the way there, and the way back, which has no answers."""
    found = (*seen.once(_refused), *seen.once(_led_away))
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
