"""Is the address by which the others dial a node really that node's, and does it lead there. Pure.

Judges what the nodes say of themselves, and what `astray` makes of the port matrix. The line that mends most of it
is one of the hostfile's, with an address that all nodes share.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace

from clusterft.checks import networks
from clusterft.checks.examination import Examination
from clusterft.checks.survey import Survey
from clusterft.checks.ways import entries
from clusterft.checks.ways.astray import Trouble, own, troubles
from clusterft.facts import Address, NodeFacts
from clusterft.findings import Finding
from clusterft.hosts import Node

_SHOWN = 10


def dup_ip(seen: Examination) -> Iterator[Finding]:
    """net.dup-ip, by what the nodes say of themselves: one address on real interfaces of two machines."""
    told: set[str] = set()
    for node, ip in seen.dialled.items():
        owners = [name for name in seen.survey.facts if own(seen.survey.facts[name], ip)]
        boots = {seen.survey.facts[name].boot_id for name in owners}
        if len(owners) < 2 or len(boots) < 2 or ip in told or node not in owners:
            continue
        told.add(ip)
        lines = [f"{name}: {ip} on {own(seen.survey.facts[name], ip)}" for name in owners]
        others = tuple(name for name in owners if name != node)
        yield _duplicate(node, ip, others, "\n".join(lines), _removal(seen, others, ip))


def dup_ip_unreached(seen: Examination) -> Iterator[Finding]:
    """net.dup-ip, of a node that SSH does not find: another one may have its address."""
    for node in seen.survey.cluster.active:
        if node.name in seen.survey.facts or node.addr is None:
            continue
        for name, facts in seen.survey.facts.items():
            at, usual = own(facts, node.addr), seen.dialled.get(name)
            if at and usual != node.addr:
                fix = (*_removal(seen, (name,), node.addr), f"or correct addr= of {node.name} in the hostfile")
                evidence = f"{name}: {node.addr} on {at}, beside {usual}"
                yield _duplicate(node.name, node.addr, (name,), evidence, fix)


def dup_ip_dialled(seen: Examination) -> Iterator[Finding]:
    """net.dup-ip, by who answered: a machine that is not the node, on the node's own address."""
    bad: dict[str, list[Trouble]] = {}
    for one in troubles(seen):
        ip = one.dial.address
        if not own(seen.survey.facts[one.dial.target], ip):
            continue  # not its own to begin with: another check's
        if one.who in seen.survey.facts and own(seen.survey.facts[one.who], ip):
            continue  # told already, by the facts
        if one.kind == "mac" or (one.kind == "answered" and not one.who):
            bad.setdefault(one.dial.target, []).append(one)
    for node, ones in bad.items():
        ip = ones[0].dial.address
        others = tuple(dict.fromkeys(one.who for one in ones if one.who and one.who != node))
        steps = _removal(seen, others, ip) if others else _search(seen, ones[0])
        yield _duplicate(node, ip, others, "\n".join(_evidence(seen, ones)), steps)
    yield from entries.kept(seen)


def wrong_nic(seen: Examination) -> Iterator[Finding]:
    """net.wrong-nic, by the facts: the address given for a node is another node's."""
    for node in seen.survey.cluster.active:
        ip, facts = seen.dialled.get(node.name), seen.survey.facts.get(node.name)
        if ip is None or facts is None or not facts.addresses or networks.holder(facts, ip):
            continue
        for other, theirs in seen.survey.facts.items():
            if theirs.boot_id != facts.boot_id and own(theirs, ip):
                yield _misplaced(
                    seen, (node.name,), f"{ip}, by which {node.name} is dialled, is an address of {other}",
                    f"{other}: {ip} on {own(theirs, ip)}; {node.name} has {_listed(facts)}",
                )  # fmt: skip
                break


def wrong_nic_dialled(seen: Examination) -> Iterator[Finding]:
    """net.wrong-nic, by trying: an address to which there is no way, from some node or from all."""
    lost = [one for one in troubles(seen) if one.kind == "nowhere" or (one.kind == "answered" and one.who)]
    lost = [one for one in lost if not _own_elsewhere(seen, one)]
    if seen.links is None or not lost:
        return
    pairs = {(one.dial.source, one.dial.target) for one in lost}
    reached = {one.target for one in seen.links.dials if (one.source, one.target) not in pairs and one.reached}
    by_node: dict[str, list[Trouble]] = {}
    for one in lost:
        # If others do get there, it is the sender that is not in that network.
        by_node.setdefault(one.dial.source if one.dial.target in reached else one.dial.target, []).append(one)
    for node, ones in by_node.items():
        ip = seen.dialled.get(node, "")
        at_fault = all(one.dial.target == node for one in ones)
        summary = f"the others do not reach {node} at {ip}" if at_fault else f"{node} does not reach the others"
        yield _misplaced(seen, (node,), summary, "\n".join(_evidence(seen, ones)))


def bridge(seen: Examination) -> Iterator[Finding]:
    """nccl.bridge: a node is dialled at an address of a bridge or VPN that other nodes have as well."""
    for name, ip in seen.dialled.items():
        at = networks.holder(seen.survey.facts[name], ip) if name in seen.survey.facts else None
        if at is None or not networks.virtual(at.interface):
            continue
        same = [
            other for other, facts in seen.survey.facts.items() if other != name and networks.holder(facts, ip)
        ]
        if same:
            yield Finding(
                id="nccl.bridge",
                status="fail",
                nodes=(name,),
                summary=f"is dialled at {ip}, which other nodes have too: they reach themselves",
                evidence=f"{at.interface} on {', '.join((name, *same))}; it is {networks.virtual(at.interface)}",
                cause="bridges get the same address on every machine",
                fix=proper(seen, (name,)),
                blast_radius="the hostfile",
            )


def netmask(seen: Examination) -> Iterator[Finding]:
    """net.netmask: a node whose mask leaves out the others, which count it among theirs."""
    holders = {}
    for name, at in seen.dialled.items():
        facts = seen.survey.facts.get(name)
        own = networks.holder(facts, at) if facts else None
        if own:
            holders[name] = own
    lengths = [own.network.prefixlen for own in holders.values()]
    for name, own in holders.items():
        others = {peer: one for peer, one in holders.items() if peer != name}
        left_out = [peer for peer, one in others.items() if networks.parsed(one.ip) not in own.network]
        usual = {one.network.prefixlen for one in others.values()}
        counted = all(networks.parsed(own.ip) in one.network for one in others.values())
        if (
            len(others) < 2
            or not left_out
            or not counted
            or len(usual) != 1
            or lengths.count(own.network.prefixlen) > 1
        ):
            continue
        (length,) = usual
        yield Finding(
            id="net.netmask",
            status="fail",
            nodes=(name,),
            summary=f"{own.ip} has a mask of /{own.network.prefixlen} there, and /{length} on the other nodes",
            evidence="\n".join(f"{each}: {one.ip}/{one.network.prefixlen}" for each, one in holders.items()),
            cause=f"for {name} {', '.join(left_out)} lie beyond a gateway, and are not on its own network",
            fix=(
                f"on {name}: sudo ip addr add {own.ip}/{length} dev {own.interface} && "
                f"sudo ip addr del {own.ip}/{own.network.prefixlen} dev {own.interface}",
                "and the same in the node's network configuration, so that it lasts",
            ),
            needs_root=True,
            blast_radius="the node's network, for a moment",
        )


def public_addr(seen: Examination) -> Iterator[Finding]:
    """net.public-addr: the rendezvous store asks nobody who they are."""
    if len(seen.nodes) < 2:
        return
    found = {name: ip for name, ip in seen.dialled.items() if (parsed := networks.parsed(ip)) and parsed.is_global}
    if found and not _one_prefix(seen, found):
        names = tuple(found)
        yield Finding(
            id="net.public-addr",
            status="warn",
            nodes=names,
            summary="are dialled by public addresses: whoever reaches the rendezvous port may take part",
            evidence="\n".join(f"{name}: {ip}" for name, ip in found.items()),
            cause="the rendezvous store of PyTorch has no authentication",
            fix=(
                *proper(seen, names),
                f"or let only these in, on port {seen.wanted.port} and above: {', '.join(found.values())}",
            ),
            blast_radius="the hostfile, or the nodes' firewalls",
        )


def _one_prefix(seen: Examination, found: dict[str, str]) -> bool:
    """Whether all nodes are in one network of IPv6, where global addresses are the usual ones."""
    ips = [networks.parsed(ip) for ip in found.values()]
    if set(found) != set(seen.dialled) or any(ip is None or ip.version != 6 for ip in ips):
        return False
    holders = (
        networks.holder(seen.survey.facts[name], ip) if name in seen.survey.facts else None
        for name, ip in found.items()
    )
    wide = [ipaddress.ip_network((int(ip) >> 64 << 64, 64)) for ip in ips[:1] if ip]
    own = [one.network for one in holders if one]
    return any(all(ip in network for ip in ips) for network in (*wide, *own))


def dup_route(seen: Examination) -> Iterator[Finding]:
    """net.dup-route: two cards of one node in one subnet; what is for one may leave by the other."""
    for name, facts in seen.survey.facts.items():
        if facts.addresses is None:
            yield Finding("net.dup-route", "unknown", (name,), "its addresses could not be read")
            continue
        by_network: dict[object, dict[str, Address]] = {}
        for one in networks.real(facts):
            by_network.setdefault(one.network, {}).setdefault(one.interface, one)
        for network, cards in by_network.items():
            if len(cards) > 1 and _matters(seen, name, tuple(cards)):
                keep = _kept(seen, name, tuple(cards))
                others = [one for card, one in cards.items() if card != keep]
                gone = [one for one in others if not _by_ssh(seen, name, one.ip)]
                yield Finding(
                    id="net.dup-route",
                    status="warn",
                    nodes=(name,),
                    summary=f"{' and '.join(cards)} are in one subnet, {network}: packets may take either",
                    evidence="\n".join(f"{card}: {one.ip}/{one.prefix}" for card, one in cards.items()),
                    cause="the kernel has two equal routes, and answers for either address on either card",
                    fix=(*(_deletion(name, one) for one in gone), *_apart(name, others, gone)),
                    needs_root=True,
                    blast_radius="connections to the address that goes",
                )


def _apart(name: str, others: list[Address], gone: list[Address]) -> Iterator[str]:
    """What else it takes; the address that SSH uses is never deleted, as the node would be lost with it."""
    for one in others:
        if one not in gone:
            yield (
                f"on {name}, at its console, as SSH may use {one.ip}: give {one.interface} a subnet of its own "
                "in the node's network configuration"
            )
    if gone:
        yield "and take it out of the node's network configuration, or give it a subnet of its own"


def _by_ssh(seen: Examination, name: str, ip: str) -> bool:
    """Whether this is, or may be, the address by which SSH comes to the node."""
    survey = seen.survey
    node = next((one for one in survey.cluster.nodes if one.name == name), None)
    if node is None or node.transport == "local":
        return False
    facts = survey.facts.get(name)
    known = {survey.contacts.get(name), facts.login_address if facts else None} - {None}
    # Through a door of someone else's, or a forwarded port, nothing tells which one it is.
    told = facts is not None and any(networks.holder(facts, one) for one in known if one)
    return ip in known or not told


def _deletion(name: str, one: Address) -> str:
    return f"on {name}: sudo ip addr del {one.ip}/{one.prefix} dev {one.interface}"


def proper(seen: Examination, names: tuple[str, ...]) -> tuple[str, ...]:
    """The hostfile's lines with addresses that do lead there, as far as they are known."""
    survey = seen.survey
    better = leading(seen, names)
    lines = [
        f"in {survey.cluster.path}, line {node.line}: {node.name} slots={node.slots} addr={better[node.name]}"
        for node in survey.cluster.active
        if node.name in better
    ]
    if lines:
        return tuple(lines)
    return tuple(
        f"in {survey.cluster.path}, line {node.line}: addr=ADDRESS, one that the others reach; "
        f"on {node.name}: ip -o addr"
        for node in survey.cluster.active
        if node.name in names
    )


def leading(seen: Examination, names: tuple[str, ...]) -> dict[str, str]:
    """Addresses that do lead to these nodes, where others are dialled now."""
    survey = seen.survey
    better = dict(seen.links.elsewhere) if seen.links else {}
    wanted = tuple(better) if better else names
    if not better:
        plain = replace(survey.cluster, nodes=tuple(replace(node, addr=None) for node in survey.cluster.nodes))
        better = {name: place.ip for name, place in networks.choose(_on(survey, plain)).places.items()}
    now = seen.dialled
    return {name: better[name] for name in wanted if name in better and better[name] != now.get(name)}


def _on(survey: Survey, cluster: object) -> Survey:
    return replace(survey, cluster=cluster)  # type: ignore[arg-type]


def _own_elsewhere(seen: Examination, one: Trouble) -> bool:
    """Whether it is told as a duplicate, or as a bridge."""
    target = seen.survey.facts[one.dial.target]
    at = networks.holder(target, one.dial.address)
    shared = any(
        networks.holder(each, one.dial.address)
        for name, each in seen.survey.facts.items()
        if name != one.dial.target and each.boot_id != target.boot_id
    )
    if at is None:
        return shared and one.kind == "answered"  # told by the facts
    return shared


def _matters(seen: Examination, name: str, cards: tuple[str, ...]) -> bool:
    """A laptop on cable and radio at once is well, as long as it sends by the cable."""
    health = seen.health.get(name)
    radio = (health.network.wireless if health else None) or frozenset()
    wired = [card for card in cards if card not in radio]
    routed = {interface for _, interface, _ in seen.survey.facts[name].routes}
    return len(wired) > 1 or (len(wired) < len(cards) and bool(routed & radio & set(cards)))


def _kept(seen: Examination, name: str, cards: tuple[str, ...]) -> str:
    at = networks.holder(seen.survey.facts[name], seen.dialled.get(name, ""))
    return at.interface if at and at.interface in cards else cards[0]


def _duplicate(node: str, ip: str, others: tuple[str, ...], evidence: str, fix: tuple[str, ...]) -> Finding:
    whom = " and ".join(others) or "another machine"
    return Finding(
        id="net.dup-ip",
        status="fail",
        nodes=(node, *others),
        summary=f"{ip}, the address of {node}, is in use by {whom} too",
        evidence=evidence,
        cause="two machines were given one address",
        fix=fix,
        needs_root=True,
        blast_radius="connections to that address",
    )


def _removal(seen: Examination, names: tuple[str, ...], ip: str) -> tuple[str, ...]:
    steps = []
    for name in names:
        at = networks.holder(seen.survey.facts[name], ip)
        if at and _by_ssh(seen, name, ip):
            steps.append(f"on {name}, at its console, as SSH may use {ip}: give {at.interface} another address")
        elif at:
            steps.append(_deletion(name, at._replace(ip=ip)))
    return (*steps, "and give it an address of its own in its network configuration")


def _search(seen: Examination, one: Trouble) -> tuple[str, ...]:
    facts = seen.survey.facts[one.dial.source]
    card = next((link.interface for link in networks.real(facts)), "eth0")
    at = f" at {one.mac}" if one.mac else ""
    return (
        f"find the machine{at} that has {one.dial.address} too, and give it another address: "
        f"on {one.dial.source}: sudo arping -c 3 -I {card} {one.dial.address}",
        f"then, on {one.dial.source}: sudo ip neigh flush to {one.dial.address}",
    )


def _evidence(seen: Examination, ones: list[Trouble]) -> Iterator[str]:
    for one in ones[:_SHOWN]:
        told = one.dial.told
        if one.kind == "answered":
            told += f", and it is {one.who or one.dial.name or 'a machine that is none of the nodes'} that answers"
        elif one.kind == "mac":
            macs = [card.mac for card in seen.survey.facts[one.dial.target].links or () if card.mac]
            told += f"; {one.dial.source} finds it at {one.mac}, and {one.dial.target} has {', '.join(macs[:4])}"
        yield told
    if len(ones) > _SHOWN:
        yield f"and {len(ones) - _SHOWN} more"


def _misplaced(seen: Examination, names: tuple[str, ...], summary: str, evidence: str) -> Finding:
    given = [node for node in seen.survey.cluster.active if node.name in names and node.addr]
    return Finding(
        id="net.wrong-nic",
        status="fail",
        nodes=names,
        summary=summary,
        evidence=evidence,
        cause=_why(given),
        fix=proper(seen, names),
        blast_radius="the hostfile",
    )


def _why(given: list[Node]) -> str:
    if given:
        return f"addr={given[0].addr} in the hostfile is no address by which the others reach it"
    return "the network that was chosen does not connect all nodes"


def _listed(facts: NodeFacts) -> str:
    return ", ".join(f"{one.ip} on {one.interface}" for one in list(networks.real(facts))[:4]) or "no such address"
