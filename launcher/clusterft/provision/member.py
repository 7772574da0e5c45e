"""Member: one node as its peers meet it: where they find it, whence it comes, which host key it has. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from clusterft.checks import Survey
from clusterft.facts import NodeFacts
from clusterft.hosts import Node
from clusterft.places import NodePlaces

_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?\Z")
_HOST_KEY = re.compile(r"(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,2}\Z")


@dataclass(frozen=True, slots=True)
class Member:
    """One reached node. Whatever ends in a file is of a plain kind: checked here, once."""

    node: str
    places: NodePlaces
    address: str | None = None  # where the peers find it; None where no address of use to them is known
    port: int | None = None  # None: the one on which its sshd says that this login came in
    sources: tuple[str, ...] = ()  # the addresses that its connections come from, all of them its own
    host_keys: tuple[str, ...] = ()  # "ssh-ed25519 AAAA...", from the controller's pins
    local: bool = False  # this machine, without SSH

    def __post_init__(self) -> None:
        if self.address is not None and not is_address(self.address):
            raise ValueError(f"{self.address!r} is not an address")
        if any(ip(source) != source for source in self.sources):
            raise ValueError(f"{self.sources!r} are not all addresses")
        if not all(_HOST_KEY.match(key) for key in self.host_keys):
            raise ValueError(f"{self.node}: not all host keys are of the form KIND BASE64")

    @property
    def nat(self) -> PurePosixPath:
        """From where peers were seen to come, where their own addresses do not tell."""
        return self.places.base / "nat"


@dataclass(frozen=True, slots=True)
class Order:
    """What every node is to have."""

    members: Mapping[str, Member]
    hostfile: str = ""  # DeepSpeed's, active nodes only
    controller_key: str | None = None  # a public line to let in; None leaves one that is there
    controller_for: frozenset[str] = frozenset()  # the nodes that it is let into; elsewhere only renewed
    accept_nat: Callable[[str, str], bool] = field(default=lambda caller, peer: False)


def members(survey: Survey, host_keys: Mapping[str, tuple[str, ...]]) -> dict[str, Member]:
    """The nodes that answered the survey and have a home."""
    nodes = {node.name: node for node in survey.cluster.active if node.name in survey.facts}
    own = {name: _sources(survey.facts[name]) for name in nodes}
    found = {}
    for name, node in nodes.items():
        home = survey.facts[name].home
        if home is None:
            continue
        places = NodePlaces(PurePosixPath(home) / ".clusterft", survey.cluster.name, name)
        if node.transport == "local":
            found[name] = Member(name, places, local=True)
            continue
        address = node.addr or _usable(survey.contacts.get(name)) or _usable(survey.facts[name].login_address)
        # What several nodes have is each one's own bridge (docker0), and would let in a neighbour's container.
        others = {source for other in own if other != name for source in own[other]}
        sources = tuple(source for source in own[name] if source not in others or source == address)
        # Behind a forwarded port the peers find sshd elsewhere than the controller does.
        port = node.port if address == survey.contacts.get(name) else None
        found[name] = Member(name, places, address, port, sources, host_keys.get(name, ()))
    return found


def hostfile(nodes: Iterable[Node]) -> str:
    """The hostfile for DeepSpeed."""
    return "".join(f"{node.name} slots={node.slots}\n" for node in nodes)


def _sources(facts: NodeFacts) -> tuple[str, ...]:
    """The node's own addresses, by its own account.

    Not the one at which it is found: that may be a gateway's, and all machines behind it would be let in.
    """
    found = {address for text in (facts.login_address, *_own(facts)) if (address := _usable(text))}
    return tuple(sorted(found, key=lambda text: (ipaddress.ip_address(text).version, ipaddress.ip_address(text))))


def _own(facts: NodeFacts) -> Iterable[str]:
    yield from (address.ip for address in facts.addresses or ())
    yield from (source for _, _, source in facts.routes)


def _usable(text: str | None) -> str | None:
    """An address that other machines can meet, in its shortest form."""
    address = ip(text or "")
    if address is None:
        return None
    parsed = ipaddress.ip_address(address)
    odd = parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified or parsed.is_multicast
    return None if odd else address


def ip(text: str) -> str | None:
    """An IP address in its shortest form; None for anything else, also for one with a zone."""
    try:
        return str(ipaddress.ip_address(text)) if "%" not in text else None
    except ValueError:
        return None


def is_address(text: str) -> bool:
    """Whether it is an IP address or a name, of plain characters either way."""
    return ip(text) is not None or _HOST_NAME.match(text) is not None
