"""Which networks the nodes share, and which address and interface of each node training uses, and why. Pure.

An address given in the hostfile is always taken. Without one, a network that all nodes share by a real interface
is preferred to whatever SSH happens to use, if it is faster, or if SSH's own leads through a VPN, a bridge, a NAT
or the open internet. Refuses to guess: where nothing tells an address, there is none.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from clusterft.checks.survey import Survey
from clusterft.facts import Address, Link, NodeFacts
from clusterft.hosts import Node

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_OWN = tuple(  # what no provider routes to the outside
    ipaddress.ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)
_CARD = re.compile(r"(en|eth|ib|bond)\w+")
LOOPBACK = "127.0.0.1"
_VIRTUAL = (
    (re.compile(r"docker\d+|docker_gwbridge|br-[0-9a-f]{12}"), "a bridge of Docker"),
    (re.compile(r"br-.+|lxcbr\d+|lxdbr\d+|podman\d+|cni\d+|cni-.+|nerdctl\d+"), "a bridge for containers"),
    (re.compile(r"virbr\d+(-nic)?|vmnet\d+|vboxnet\d+"), "a bridge for virtual machines"),
    (
        re.compile(r"veth.+|vnet\d+|tap\d+|cali.+|flannel.+|cilium.+|kube-.+|weave|lxc.+|dummy\d+|ifb\d+"),
        "virtual",
    ),
    (re.compile(r"tailscale\d+|ts\d+|wg.+|tun\d+|zt.+|nebula\d*|ppp\d+|utun\d+|nordlynx|ipsec.*|gpd\d+"), "a VPN"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """How the other nodes reach a node, and the interface it speaks through (None: not known)."""

    ip: str
    interface: str | None


@dataclass(frozen=True, slots=True)
class Choice:
    """The solver's answer: a place for every node of which one is known, and why."""

    places: Mapping[str, Place]
    network: Network | None = None  # that all of them lie in
    why: str = ""
    others: Mapping[Network, str] = field(default_factory=dict)  # networks that were passed over, and why


@dataclass(frozen=True, slots=True)
class Shared:
    """A network in which every active node has an address of its own."""

    network: Network
    places: Mapping[str, Place]
    speed: int | None  # Mbit/s of its slowest link, where all are known


def virtual(interface: str) -> str:
    """What kind of interface it is that training should not use; empty for a real one."""
    return next((words for pattern, words in _VIRTUAL if pattern.fullmatch(interface)), "")


def choose(survey: Survey) -> Choice:
    """An address for every active node that has given its facts."""
    nodes = [node for node in survey.cluster.active if node.name in survey.facts]
    boots = {survey.facts[node.name].boot_id for node in nodes}
    if len(boots) == 1 and survey.cluster.all_local:
        return Choice({node.name: Place(LOOPBACK, "lo") for node in nodes}, why="all nodes are this machine")
    usual = {node.name: _usual(node, survey) for node in nodes}
    best, why = _best(nodes, survey, {name: one.ip for name, one in usual.items() if one})
    places = {node.name: _place(node, survey.facts[node.name], usual[node.name], best) for node in nodes}
    kept = {name: one for name, one in places.items() if one}
    network = best.network if best and all(_in(one.ip, best.network) for one in kept.values()) else None
    return Choice(kept, network, why, dict(_passed_over(nodes, survey, network)))


def shared(nodes: Iterable[Node], survey: Survey) -> tuple[Shared, ...]:
    """The networks that all these nodes share by real interfaces, the fastest first, IPv4 before IPv6."""
    names = [node.name for node in nodes]
    if not names:
        return ()
    by_network: dict[Network, dict[str, list[Address]]] = {}
    for name in names:
        for one in real(survey.facts[name]):
            by_network.setdefault(one.network, {}).setdefault(name, []).append(one)
    found = []
    for network, there in [*by_network.items(), *_routed(names, survey)]:
        if len(there) < len(names):
            continue
        places = {name: _picked(there[name], survey, name) for name in names}
        if len({one.ip for one in places.values()}) == len(names):  # on one address twice, two would be one
            speeds = [speed(survey.facts[name], places[name].interface) for name in names]
            known = [each for each in speeds if each]
            found.append(Shared(network, places, min(known) if len(known) == len(names) else None))
    return tuple(sorted(found, key=lambda one: (-(one.speed or 0), one.network.version, str(one.network))))


def real(facts: NodeFacts) -> Iterator[Address]:
    """Addresses that other machines could use: of interfaces that are up, no bridges, VPNs or single links."""
    for one in facts.addresses or ():
        ip = ipaddress.ip_address(one.ip)
        card = link(facts, one.interface)
        if ip.is_loopback or ip.is_link_local or virtual(one.interface):
            continue
        if one.network.num_addresses == 1 and not _alone(facts, one):
            continue
        if card is None or card.up:
            yield one


def _alone(facts: NodeFacts, one: Address) -> bool:
    """Whether a /32 is a card's whole address, as clouds give it: the rest of the network is behind a router.

    Beside a wider one it is an address that wanders between machines, or of a service.
    """
    wider = any(
        each.interface == one.interface
        and each.network.version == one.network.version
        and each.prefix != one.prefix
        for each in facts.addresses or ()
        if not ipaddress.ip_address(each.ip).is_link_local
    )
    known = _block(one) is not None and one.interface != "lo" and not wider
    return known and (one.interface in _ways(facts) or bool(_CARD.fullmatch(one.interface)))


def _ways(facts: NodeFacts) -> set[str]:
    """Interfaces by which a node is known to reach other machines."""
    return {interface for _, interface, _ in facts.routes} | set((facts.controller_route or ())[:1])


def _block(one: Address) -> Network | None:
    ip = ipaddress.ip_address(one.ip)
    return next((block for block in _OWN if block.version == ip.version and ip in block), None)


def _routed(names: list[str], survey: Survey) -> Iterator[tuple[Network, dict[str, list[Address]]]]:
    """Private addresses without a subnet that all nodes have: the least network that has them all in it."""
    for block in _OWN:
        there: dict[str, list[Address]] = {}
        for name in names:
            facts = survey.facts[name]
            ones = [one for one in real(facts) if one.network.num_addresses == 1 and _block(one) == block]
            there[name] = [one for one in ones if one.interface in _ways(facts)] or ones
        if all(there.values()):
            ips = [int(ipaddress.ip_address(one.ip)) for ones in there.values() for one in ones]
            spare = (min(ips) ^ max(ips)).bit_length()
            yield ipaddress.ip_network((min(ips) >> spare << spare, block.max_prefixlen - spare)), there


def link(facts: NodeFacts, interface: str | None) -> Link | None:
    """An interface by name."""
    return next((one for one in facts.links or () if one.name == interface), None)


def speed(facts: NodeFacts, interface: str | None) -> int | None:
    """Mbit/s, where the interface has one; the 10 of a tunnel is made up by its driver."""
    card = link(facts, interface)
    if card is None or virtual(card.name) or (card.mac is None and card.speed == 10):
        return None
    return card.speed


def leg(facts: NodeFacts, interface: str | None) -> int | None:
    """Mbit/s that one connection can have: of a bond, whose cards have its MAC, one card's."""
    whole, card = speed(facts, interface), link(facts, interface)
    if whole is None or card is None or card.mac is None:
        return whole
    legs = [one.speed for one in facts.links or () if one.mac == card.mac and one.up and one.speed]
    return max((one for one in legs if one < whole), default=whole)


def holder(facts: NodeFacts, ip: str) -> Address | None:
    """Where a node has this address, if it does."""
    wanted = parsed(ip)
    return next((one for one in facts.addresses or () if wanted and parsed(one.ip) == wanted), None)


def _usual(node: Node, survey: Survey) -> Place | None:
    """By the hostfile, by SSH or by the routes; the interface is that towards the others."""
    facts = survey.facts[node.name]
    route = _towards_others(node, facts, survey)
    own = node.addr or (_contact(node, survey) if node.transport == "ssh" else route and route[1])
    return Place(own, route[0] if route else None) if own else None


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


def _best(nodes: list[Node], survey: Survey, usual: Mapping[str, str]) -> tuple[Shared | None, str]:
    """A network for all, or None where what SSH and the routes say is as good."""
    known = shared(nodes, survey) if len(nodes) > 1 else ()
    given = [node.addr for node in nodes if node.addr]
    fitting = [one for one in known if all(_in(addr, one.network) for addr in given)]
    if given:
        return (fitting[0], "the addr= of the hostfile lie in it") if fitting else (None, "addr= in the hostfile")
    now = next((one for one in fitting if _is(one, usual)), None)
    if not fitting:
        return None, "by it SSH reaches them, and they share no network"
    if now is None:
        why = _unfit(nodes, survey, usual)
        return (fitting[0], why) if why else (None, "by it SSH reaches them")
    if now.speed and (fitting[0].speed or 0) > now.speed:
        first = fitting[0]
        return first, f"all nodes share it at {rate(first.speed)}, and {now.network} at {rate(now.speed)}"
    return now, "all nodes share it, and SSH reaches them by it" if len(known) > 1 else "all nodes share it"


def _unfit(nodes: list[Node], survey: Survey, usual: Mapping[str, str]) -> str:
    """Why what SSH uses is worse than a network that all share; empty if it is not."""
    for node in nodes:
        ip = usual.get(node.name)
        if ip is None:
            return f"all nodes share it, and nothing else tells an address of {node.name}"
        at = holder(survey.facts[node.name], ip) if parsed(ip) else None
        if at is None and survey.facts[node.name].addresses:
            return f"all nodes share it; {ip}, by which SSH reaches {node.name}, is no address of its own"
        if at and virtual(at.interface):
            kind = virtual(at.interface)
            return f"all nodes share it; SSH reaches {node.name} through {at.interface}, which is {kind}"
        if (own := parsed(ip)) and own.is_global:
            return f"all nodes share it; SSH reaches {node.name} by the public address {ip}"
    return ""


def _place(node: Node, facts: NodeFacts, usual: Place | None, best: Shared | None) -> Place | None:
    if best is None:
        return usual
    own = best.places[node.name]
    if node.addr is None:
        return own
    at = holder(facts, node.addr)
    return Place(node.addr, at.interface if at else own.interface)


def _passed_over(nodes: list[Node], survey: Survey, chosen: Network | None) -> Iterator[tuple[Network, str]]:
    """Networks that were not taken, and why: one line each."""
    whole = {one.network: one for one in shared(nodes, survey)}
    told: set[Network] = {chosen} if chosen else set()
    for node in nodes:
        for one in survey.facts[node.name].addresses or ():
            ip = ipaddress.ip_address(one.ip)
            if one.network in told or ip.is_loopback or ip.is_link_local:
                continue
            told.add(one.network)
            if kind := virtual(one.interface):
                yield one.network, f"{one.interface} is {kind}"
            elif one.network in whole and chosen:
                at = f" at {rate(whole[one.network].speed)}" if whole[one.network].speed else ""
                yield one.network, f"{one.interface}: all nodes share it{at}, which is no better"


def _picked(there: list[Address], survey: Survey, name: str) -> Place:
    """Of several addresses in one network: that of SSH, else on the fastest link."""
    contact = survey.contacts.get(name)
    facts = survey.facts[name]
    first = min(there, key=lambda one: (one.ip != contact, -(speed(facts, one.interface) or 0)))
    return Place(first.ip, first.interface)


def rate(mbit: int | None) -> str:
    """Of a link, in words."""
    if mbit is None:
        return "an unknown speed"
    return f"{mbit / 1000:g} Gbit/s" if mbit >= 1000 else f"{mbit} Mbit/s"


def _is(one: Shared, usual: Mapping[str, str]) -> bool:
    return all(name in usual and _in(usual[name], one.network) for name in one.places)


def _in(ip: str, network: Network) -> bool:
    own = parsed(ip)
    return own is not None and own.version == network.version and own in network


def parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, or None for a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
