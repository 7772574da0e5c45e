"""A node that alone looks for another one at a hardware address where nobody is: its own entry. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks import networks
from clusterft.checks.examination import Examination
from clusterft.checks.ways import astray
from clusterft.checks.ways.astray import Trouble
from clusterft.findings import Finding


def kept(seen: Examination) -> Iterator[Finding]:
    """net.dup-ip, of the node that has the entry."""
    found = [one for one in astray.troubles(seen) if one.kind == "kept"]
    for node in dict.fromkeys(one.dial.source for one in found):
        yield _finding(seen, node, [one for one in found if one.dial.source == node])


def _finding(seen: Examination, node: str, ones: list[Trouble]) -> Finding:
    places = {one.dial.target: one.dial.address for one in ones}
    cards = {ip: _towards(seen, node, ip) for ip in places.values()}
    return Finding(
        id="net.dup-ip",
        status="fail",
        nodes=(node,),
        summary=f"keeps a wrong hardware address for {', '.join(places)}",
        evidence="\n".join(_told(seen, one) for one in ones[:10]),
        cause="an entry written by hand, or kept since a card was changed; the others find it at its own",
        fix=(
            *(f"on {node}: sudo ip neigh del {ip} dev {card}" for ip, card in cards.items()),
            "and take it out of whatever writes it at boot (the network configuration, /etc/ethers)",
            *(
                f"if it comes back, another machine has {ip} too: on {node}: sudo arping -c 3 -I {card} {ip}"
                for ip, card in cards.items()
            ),
        ),
        needs_root=True,
        blast_radius="connections to that address",
    )


def _told(seen: Examination, one: Trouble) -> str:
    source, target = one.dial.source, one.dial.target
    macs = [card.mac for card in seen.survey.facts[target].links or () if card.mac]
    return f"{one.dial.told}; {source} looks for it at {one.mac}, and {target} has {', '.join(macs[:4])}"


def _towards(seen: Examination, node: str, ip: str) -> str:
    """The card behind which a node looks for an address."""
    health = seen.health.get(node)
    told = (health.network.neighbours if health else None) or ()
    real = list(networks.real(seen.survey.facts[node]))
    near = [one.interface for one in real if (known := networks.parsed(ip)) and known in one.network]
    cards = (*(one.interface for one in told if one.ip == ip), *near, *(one.interface for one in real))
    return cards[0] if cards else "eth0"
