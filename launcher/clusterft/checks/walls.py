"""The lines that open ports on a node, for whatever manages its firewall. Pure.

Knows managers, not reachability: that a port is closed is found by dialling it, never by reading rules.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from clusterft.checks import networks
from clusterft.checks.examination import Examination
from clusterft.facts.health.network import Chain

Side = Literal["in", "out"]
_FEW = (50000, 51000)  # ports that a kernel can be told to take instead of all the high ones
_CLOUD = "if these machines are in a cloud: allow all TCP between them in its security group or firewall rules"


@dataclass(frozen=True, slots=True)
class Opening:
    """What is to be let through on one node: from these, or to these, on ports or on all."""

    node: str
    others: tuple[str, ...]  # subnets or addresses
    ports: tuple[int, int] | None
    side: Side = "in"


def lines(seen: Examination, wanted: Opening, *, silent: bool) -> tuple[str, ...]:
    """For a shell on that node. `silent`: what was sent met no answer, so it may have been dropped on the way."""
    facts, health = seen.survey.facts.get(wanted.node), seen.health.get(wanted.node)
    wall = facts.firewall if facts else None
    if wall and wall.ufw:
        return tuple(_ufw(wanted))
    if wall and wall.firewalld:
        return tuple(_firewalld(wanted))
    chains = [one for one in (health.network.chains if health else None) or () if _native(one, wanted.side)]
    found = tuple(_nft(wanted, chains)) if chains else tuple(_iptables(wanted))
    return (*found, _CLOUD) if silent and not _refuses(seen, wanted) else found


def others(seen: Examination, node: str, peers: Iterable[str]) -> tuple[str, ...]:
    """The subnet that a node shares with these peers, else their addresses one by one."""
    known = seen.links.addresses if seen.links else {}
    ips = [known[peer] for peer in peers if peer in known]
    facts = seen.survey.facts.get(node)
    own = networks.holder(facts, known[node]) if facts and node in known else None
    parsed = [_ip(ip) for ip in ips]
    if own and not own.network.is_global and all(ip is not None and ip in own.network for ip in parsed):
        return (str(own.network),)
    return tuple(dict.fromkeys(ips))


def few_ports() -> tuple[str, ...]:
    """The second choice: a narrow range instead of all high ports."""
    low, high = _FEW
    return (
        f"or open a few only: on every node sudo sysctl -w net.ipv4.ip_local_port_range='{low} {high}', "
        f"and open {low} to {high} in the same way",
    )


def _refuses(seen: Examination, wanted: Opening) -> bool:
    """Whether rules that could do it are known on the node itself."""
    health = seen.health.get(wanted.node)
    refusing = health.network.refusing if health else None
    return bool(refusing and ("INPUT" if wanted.side == "in" else "OUTPUT") in refusing)


def _native(chain: Chain, side: Side) -> bool:
    """Not those that iptables itself keeps there."""
    kept = chain.table == "filter" and chain.name in ("INPUT", "OUTPUT") and chain.family in ("ip", "ip6")
    return chain.hook == f"{side}put" and not kept and chain.family in ("ip", "inet")


def _ufw(wanted: Opening) -> Iterator[str]:
    for one in wanted.others:
        way = f"from {one}" if wanted.side == "in" else f"out to {one}"
        ports = f" to any port {wanted.ports[0]}:{wanted.ports[1]} proto tcp" if wanted.ports else ""
        if wanted.side == "out" and wanted.ports:
            ports = f" port {wanted.ports[0]}:{wanted.ports[1]} proto tcp"
        yield f"sudo ufw allow {way}{ports}"


def _firewalld(wanted: Opening) -> Iterator[str]:
    for one in wanted.others:
        if wanted.ports is None and wanted.side == "in":
            yield f"sudo firewall-cmd --permanent --zone=trusted --add-source={one}"
            continue
        family = "ipv6" if ":" in one else "ipv4"
        if wanted.side == "in":
            low, high = wanted.ports or (1024, 65535)
            rule = f'rule family="{family}" source address="{one}" port port="{low}-{high}" protocol="tcp" accept'
            yield f"sudo firewall-cmd --permanent --add-rich-rule='{rule}'"
        else:
            yield f"sudo firewall-cmd --permanent --direct --add-rule {family} filter OUTPUT 0 -d {one} -j ACCEPT"
    yield "sudo firewall-cmd --reload"


def _iptables(wanted: Opening) -> Iterator[str]:
    chain, flag = ("INPUT", "-s") if wanted.side == "in" else ("OUTPUT", "-d")
    ports = f" --dport {wanted.ports[0]}:{wanted.ports[1]}" if wanted.ports else ""
    for one in wanted.others:
        tool = "ip6tables" if ":" in one else "iptables"
        yield f"sudo {tool} -I {chain} {flag} {one} -p tcp{ports} -j ACCEPT"


def _nft(wanted: Opening, chains: Iterable[Chain]) -> Iterator[str]:
    flag = "saddr" if wanted.side == "in" else "daddr"
    ports = f" tcp dport {wanted.ports[0]}-{wanted.ports[1]}" if wanted.ports else ""
    for chain in chains:
        for one in wanted.others:
            family = "ip6" if ":" in one else "ip"
            place = f"{chain.family} {chain.table} {chain.name}"
            yield f"sudo nft insert rule {place} {family} {flag} {one}{ports} accept"


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
