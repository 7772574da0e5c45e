"""The lines that open ports on a node, for whatever manages its firewall. Pure.

Knows managers, not reachability: that a port is closed is found by dialling it, never by reading rules.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from clusterft.checks import networks
from clusterft.checks.examination import Examination
from clusterft.checks.system import kernel
from clusterft.facts.health.network import Chain, NetworkHealth

Side = Literal["in", "out"]
_FEW = (50000, 51000)  # ports that a kernel can be told to take instead of all the high ones
_CLOUD = "if these machines are in a cloud: allow all TCP between them in its security group or firewall rules"
_OR_NFT = "or, where nft keeps the rules: "
_LASTS = (
    "such a rule is gone after a reboot: put it where the node keeps its rules too "
    "(/etc/nftables.conf, or sudo netfilter-persistent save)"
)


@dataclass(frozen=True, slots=True)
class Opening:
    """What is to be let through on one node: from these, or to these, on ports or on all."""

    node: str
    others: tuple[str, ...]  # subnets or addresses
    ports: tuple[int, int] | None
    side: Side = "in"


def lines(seen: Examination, wanted: Opening, *, silent: bool) -> tuple[str, ...]:
    """For a shell on that node. `silent`: what was sent met no answer, so it may have been dropped on the way."""
    found = (*commands(seen, wanted), *_beside(seen, wanted))
    return (*found, _CLOUD) if silent and not _refuses(seen, wanted) else found


def steps(seen: Examination, wanted: Opening) -> tuple[str, ...]:
    """The same with the node's name: one line, then what else may be needed."""
    beside = (
        step.replace(_OR_NFT, f"or on {wanted.node}, where nft keeps the rules: ", 1)
        for step in _beside(seen, wanted)
    )
    return (f"on {wanted.node}: {' && '.join(commands(seen, wanted))}", *beside)


def unseen(node: str, whom: str, port: int) -> str:
    """For a node that nobody can look into: what it has for a firewall is not known."""
    (line,) = _ufw(Opening(node, (whom,), (port, port)))
    return f"on {node}: {line}   (or the same in its firewall, or in the provider's security group)"


def by_lo(seen: Examination, node: str) -> tuple[str, ...]:
    """What lets a node's own packets in, for whatever manages its firewall."""
    manager = _manager(seen, node)
    if manager == "ufw":
        return ("sudo ufw prepend allow in on lo",)
    if manager == "firewalld":
        trust = "--zone=trusted --add-interface=lo"
        return (f"sudo firewall-cmd --permanent {trust} && sudo firewall-cmd {trust}",)
    network = _network(seen, node)
    chains = [one for one in (network.chains if network else None) or () if _native(one, "in")]
    nft = tuple(f"sudo nft insert rule {one.family} {one.table} {one.name} iif lo accept" for one in chains)
    return nft or ("sudo iptables -I INPUT -i lo -j ACCEPT", _LASTS)


def commands(seen: Examination, wanted: Opening) -> tuple[str, ...]:
    """What opens it, by whatever manages that node's firewall."""
    manager = _manager(seen, wanted.node)
    if manager == "ufw":
        return tuple(_ufw(wanted))
    if manager == "firewalld":
        return tuple(_firewalld(wanted))
    network = _network(seen, wanted.node)
    chains = [one for one in (network.chains if network else None) or () if _native(one, wanted.side)]
    if chains:
        return tuple(_nft(wanted, chains))
    if network and network.iptables is False:
        return tuple(_nft_anywhere(wanted))
    return tuple(_iptables(wanted))


def _beside(seen: Examination, wanted: Opening) -> Iterator[str]:
    """The other way, where it cannot be known which one serves; and that neither lasts."""
    if _manager(seen, wanted.node):
        return
    network = _network(seen, wanted.node)
    readable = network is not None and (network.chains is not None or network.refusing is not None)
    if not readable and not (network and network.iptables is False):
        yield from (f"{_OR_NFT}{line}" for line in _nft_anywhere(wanted))
    yield _LASTS


def _manager(seen: Examination, node: str) -> Literal["ufw", "firewalld", ""]:
    facts = seen.survey.facts.get(node)
    wall = facts.firewall if facts else None
    return "ufw" if wall and wall.ufw else "firewalld" if wall and wall.firewalld else ""


def _network(seen: Examination, node: str) -> NetworkHealth | None:
    health = seen.health.get(node)
    return health.network if health else None


def others(seen: Examination, node: str, peers: Iterable[str]) -> tuple[str, ...]:
    """The subnet that a node shares with these peers, else their addresses one by one."""
    known = seen.links.addresses if seen.links else {}
    ips = [known[peer] for peer in peers if peer in known]
    facts = seen.survey.facts.get(node)
    own = networks.holder(facts, known[node]) if facts and node in known else None
    parsed = [networks.parsed(ip) for ip in ips]
    if own and not own.network.is_global and all(ip is not None and ip in own.network for ip in parsed):
        return (str(own.network),)
    return tuple(dict.fromkeys(ips))


def few_ports() -> tuple[str, ...]:
    """The second choice: a narrow range instead of all high ports."""
    low, high = _FEW
    setting = shlex.quote(f"net.ipv4.ip_local_port_range={low} {high}")
    return (
        f"or open a few only: on every node {kernel.kept('port-range', setting)}, "
        f"and open {low} to {high} in the same way",
    )


def refuses(seen: Examination, node: str, side: Side) -> bool | None:
    """Whether a node's own rules are known to refuse something; None where not all were read."""
    network = _network(seen, node)
    if network is None:
        return None
    native = [one for one in network.chains or () if _native(one, side)]
    known = network.refusing
    if any(one.policy == "drop" for one in native) or (known and f"{side}put".upper() in known):
        return True
    return None if known is None or native else False


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
    """In front: behind a rule that denies, one that allows is never asked."""
    for one in wanted.others:
        way = f"from {one}" if wanted.side == "in" else f"out to {one}"
        place = "to any port" if wanted.side == "in" else "port"
        ports = f" {place} {_span(wanted.ports, ':')} proto tcp" if wanted.ports else ""
        yield f"sudo ufw prepend allow {way}{ports}"


def _span(ports: tuple[int, int], between: str) -> str:
    low, high = ports
    return str(low) if low == high else f"{low}{between}{high}"


def _firewalld(wanted: Opening) -> Iterator[str]:
    for one in wanted.others:
        if wanted.ports is None and wanted.side == "in":
            yield f"sudo firewall-cmd --permanent --zone=trusted --add-source={one}"
            continue
        family = "ipv6" if ":" in one else "ipv4"
        if wanted.side == "in":
            ports = _span(wanted.ports or (1024, 65535), "-")
            rule = f'rule family="{family}" source address="{one}" port port="{ports}" protocol="tcp" accept'
            yield f"sudo firewall-cmd --permanent --add-rich-rule='{rule}'"
        else:
            yield f"sudo firewall-cmd --permanent --direct --add-rule {family} filter OUTPUT 0 -d {one} -j ACCEPT"
    yield "sudo firewall-cmd --reload"


def _iptables(wanted: Opening) -> Iterator[str]:
    chain, flag = ("INPUT", "-s") if wanted.side == "in" else ("OUTPUT", "-d")
    ports = f" --dport {_span(wanted.ports, ':')}" if wanted.ports else ""
    for tool, ones in (
        ("iptables", [one for one in wanted.others if ":" not in one]),
        ("ip6tables", [one for one in wanted.others if ":" in one]),
    ):
        if ones:
            yield f"sudo {tool} -I {chain} -p tcp {flag} {','.join(ones)}{ports} -j ACCEPT"


def _nft(wanted: Opening, chains: Iterable[Chain]) -> Iterator[str]:
    for chain in chains:
        for one in wanted.others:
            yield f"sudo nft insert rule {chain.family} {chain.table} {chain.name} {_matched(wanted, one)}"


def _nft_anywhere(wanted: Opening) -> Iterator[str]:
    """Into every chain that filters, as their names are not known: only root may read them."""
    for one in wanted.others:
        family = "(inet|ip6)" if ":" in one else "(inet|ip)"
        yield (
            """sudo nft list ruleset | awk '/^table/ { t = $2 " " $3 } /^[ \\t]*chain/ { c = $2 } """
            f"""/type filter hook {wanted.side}put/ && t ~ /^{family} / """
            f"""{{ print "insert rule", t, c, "{_matched(wanted, one)}" }}' | sudo nft -f -"""
        )


def _matched(wanted: Opening, one: str) -> str:
    """A rule of nft for one of the others."""
    flag = "saddr" if wanted.side == "in" else "daddr"
    ports = f" tcp dport {_span(wanted.ports, '-')}" if wanted.ports else ""
    return f"{'ip6' if ':' in one else 'ip'} {flag} {one}{ports} accept"
