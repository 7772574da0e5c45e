"""Two nodes on one wire that get no answer to ARP from each other, while both answer others. Pure.

No firewall of theirs does that: one that refuses answers at once, with a neighbour whose MAC is known. Something
between their two ports keeps them apart. Where a node answers nobody, its address is in doubt: another file's.
"""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks import networks
from clusterft.checks.examination import Examination
from clusterft.checks.ways import routes
from clusterft.facts.links import Dial
from clusterft.findings import Finding

_ERRORS = ("no route to host", "timed out")  # the second where a try ended before the kernel had given up
_SHOWN = 10


def found(seen: Examination) -> Iterator[Finding]:
    """net.isolated: one finding for those that hang together."""
    apart = pairs(seen)
    for group in _groups(seen, apart):
        links = seen.links
        assert links is not None
        mine = [(one, other) for one, other in apart if one in group]
        ways = tuple(dict.fromkeys(" and ".join(sorted(pair, key=seen.nodes.index)) for pair in mine))
        proof = [
            f"on {one}: ip neigh show to {seen.dialled[other]}   FAILED or INCOMPLETE is no answer; "
            "with a MAC it is mended"
            for one, other in mine
            if seen.dialled[other] in links.unanswered.get(one, {})
        ]
        yield Finding(
            id="net.isolated",
            status="fail",
            nodes=group,
            summary=f"{'; '.join(ways)} get no answer to ARP from each other, and other nodes reach them",
            evidence="\n".join(_evidence(seen, mine)),
            cause="the switch, access point or hypervisor keeps their ports apart: port isolation, protected "
            "ports, a private VLAN, client isolation; or they are in two VLANs. No node's firewall does this",
            fix=(
                f"on the switch or hypervisor: take isolation off the ports of {', '.join(group)}, "
                "and put them into one VLAN",
                *proof[:2],
            ),
            blast_radius="the ports of these nodes on the switch",
        )


def pairs(seen: Examination) -> tuple[tuple[str, str], ...]:
    """(source, target), both ways, of nodes that do not find each other on their common wire."""
    return seen.once(_pairs)


def _pairs(seen: Examination) -> tuple[tuple[str, str], ...]:
    if seen.links is None:
        return ()
    ways: dict[tuple[str, str], list[Dial]] = {}
    for one in seen.links.dials:
        ways.setdefault((one.source, one.target), []).append(one)
    met = {way for way, dials in ways.items() if any(not one.error or one.reached for one in dials)}
    well = [frozenset(way) for way in met]
    apart = set()
    for (source, target), dials in ways.items():
        both = {(source, target), (target, source)}
        known = any(source in pair for pair in well) and any(target in pair for pair in well)
        silent = all(one.error in _ERRORS and _unanswered(seen, one) for one in dials)
        if known and silent and not both & (met | routes.cut(seen)):
            apart |= both
    order = {name: place for place, name in enumerate(seen.nodes)}
    return tuple(sorted(apart, key=lambda way: (order.get(way[0], 0), order.get(way[1], 0))))


def _unanswered(seen: Examination, one: Dial) -> bool:
    """Whether the sender has asked its own wire for an address that is there, and got no answer."""
    theirs, here = seen.survey.facts.get(one.target), seen.survey.facts.get(one.source)
    asked = seen.links.unanswered.get(one.source, {}) if seen.links else {}
    if one.address not in asked or theirs is None or here is None:
        return False
    at, own = networks.holder(theirs, one.address), networks.holder(here, seen.dialled.get(one.source, ""))
    if at is None or own is None or own.interface != asked[one.address]:
        return False
    card, ip = networks.link(theirs, at.interface), networks.parsed(one.address)
    return ip is not None and ip in own.network and (card is None or card.up)


def _groups(seen: Examination, apart: tuple[tuple[str, str], ...]) -> Iterator[tuple[str, ...]]:
    """Nodes that such pairs connect, in the hostfile's order."""
    left = dict.fromkeys(one for one, _ in apart)
    while left:
        group = {next(iter(left))}
        while more := {other for one, other in apart if one in group} - group:
            group |= more
        yield tuple(name for name in seen.nodes if name in group)
        left = dict.fromkeys(name for name in left if name not in group)


def _evidence(seen: Examination, mine: list[tuple[str, str]]) -> Iterator[str]:
    links = seen.links
    assert links is not None
    for one, other in mine[:_SHOWN]:
        ip = seen.dialled[other]
        if ip in links.unanswered.get(one, {}):
            yield f"{one}: no MAC of {other}, {ip}, on {links.unanswered[one][ip]}"
    tried = {(one.source, one.target): one for one in links.dials}
    yield from (tried[way].told for way in mine[:_SHOWN] if way in tried)
    for name in dict.fromkeys(one for one, _ in mine):
        well = [one for one in links.dials if name in (one.source, one.target) and not one.error]
        if well:
            yield well[0].told
