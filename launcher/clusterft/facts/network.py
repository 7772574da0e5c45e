"""What ip, /sys/class/net, /sys/class/infiniband and the firewall's managers say. Pure."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import NamedTuple

from clusterft.facts.frames import whole


class Address(NamedTuple):
    """An address of an interface, v4 or v6."""

    interface: str
    ip: str
    prefix: int

    @property
    def network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        """The subnet it lies in."""
        return ipaddress.ip_network(f"{self.ip}/{self.prefix}", strict=False)


@dataclass(frozen=True, slots=True)
class Link:
    """An interface; `speed` in Mbit/s, None for those that have none (virtual, Wi-Fi) or are down."""

    name: str
    up: bool  # switched on and with a carrier
    mtu: int
    mac: str | None
    speed: int | None


@dataclass(frozen=True, slots=True)
class InfiniBand:
    """One port of an RDMA device; `link_layer` is InfiniBand or Ethernet (RoCE)."""

    device: str
    port: int
    state: str | None  # ACTIVE, DOWN, INIT, ...
    rate: str | None  # as the kernel says it: 200 Gb/sec (4X HDR)
    link_layer: str | None
    interface: str | None  # the network interface on top of it


@dataclass(frozen=True, slots=True)
class Firewall:
    """What manages inbound filtering, where this user may know it. It never tells what can be reached."""

    ufw: bool | None  # switched on, in ufw's own file
    firewalld: bool | None
    chains: tuple[str, ...] | None  # the kernel's input chains, which only root may read


def addresses(text: str) -> tuple[Address, ...] | None:
    """`ip -o addr`; None when there was no ip command, as a machine has at least its loopback."""
    found = []
    for line in text.splitlines():
        match = re.match(r"\d+: +([^\s:@]+)(?:@\S+)? +inet6? (\S+?)(?: peer \S+?)?/(\d{1,3})\b", line)
        if match and _is_address(match.group(2), int(match.group(3))):
            found.append(Address(match.group(1), match.group(2), int(match.group(3))))
    return tuple(found) or None


def links(text: str, speeds: str) -> tuple[Link, ...] | None:
    """`ip -o link`, with the speeds of /sys/class/net."""
    known = dict(re.findall(r"^/sys/class/net/([^/\n]+)/speed:(\d{1,9})$", speeds, re.MULTILINE))
    found = []
    for line in text.splitlines():
        match = re.match(r"\d+: +([^\s:@]+)(?:@\S+?)?: <([^>]*)> mtu (\d{1,9})\b", line)
        if match:
            name, flags, mtu = match.groups()
            mac = re.search(r"link/ether ([0-9a-f:]{17})\b", line)
            up = {"UP", "LOWER_UP"} <= set(flags.split(","))
            found.append(Link(name, up, int(mtu), mac.group(1) if mac else None, _speed(known.get(name))))
    return tuple(found) or None


def infiniband(text: str) -> tuple[InfiniBand, ...] | None:
    """Ports of all RDMA devices; () when the kernel knows none."""
    if not text.startswith("seen\n"):
        return None
    if not text.startswith("seen\n"):
        return None
    said: dict[tuple[str, int], dict[str, str]] = {}
    for device, port, key, value in re.findall(r"^([^/\s]+)/ports/(\d{1,4})/(\S+?):(.*)$", text, re.MULTILINE):
        said.setdefault((device, int(port)), {})[key] = value.strip()
    return tuple(
        InfiniBand(
            device=device,
            port=port,
            state=of.get("state", "").partition(": ")[2] or None,
            rate=of.get("rate"),
            link_layer=of.get("link_layer"),
            interface=of.get("gid_attrs/ndevs/0"),
        )
        for (device, port), of in sorted(said.items())
    )


def firewall(text: str) -> Firewall | None:
    """What could be read; a manager that is not installed is not a firewall that is off."""
    lines = text.splitlines()
    ufw = {"ENABLED=yes": True, "ENABLED=no": False}
    service = {"firewalld active": True, "firewalld inactive": False, "firewalld failed": False}
    chains = tuple(line.strip() for line in lines if "hook input" in line)
    found = Firewall(
        ufw=next((ufw[line] for line in lines if line in ufw), None),
        firewalld=next((service[line] for line in lines if line in service), None),
        chains=chains if "nft" in lines else None,
    )
    return None if found == Firewall(None, None, None) else found


def ports(text: str) -> frozenset[int] | None:
    """Listening TCP ports, out of /proc/net/tcp."""
    found = frozenset(int(port, 16) for port in re.findall(r"^[0-9A-F]+:([0-9A-F]{4})$", text, re.MULTILINE))
    return found or None  # no listener at all means that it could not be read


def route(text: str) -> tuple[str, str] | None:
    """(interface, source address) of `ip -o route get`."""
    device, source = re.search(r"\bdev (\S+)", text), re.search(r"\bsrc (\S+)", text)
    return (device.group(1), source.group(1)) if device and source else None


def table(text: str) -> str:
    """The table of `ip -o route get`, which names every one but main."""
    found = re.search(r"\btable (\S+)", text)
    return found.group(1) if found else ""


def login(text: str) -> str | None:
    """The own side in $SSH_CONNECTION, if other machines may use it: an IP, and not one of a single link."""
    words = text.split()
    try:
        address = ipaddress.ip_address(words[2] if len(words) == 4 else "")
    except ValueError:
        return None
    return None if address.is_unspecified or address.is_link_local else str(address)


def _is_address(ip: str, prefix: int) -> bool:
    try:
        ipaddress.ip_network(f"{ip}/{prefix}", strict=False)
    except ValueError:
        return False
    return True


def _speed(text: str | None) -> int | None:
    speed = whole(text or "")
    return speed if speed and speed < 2**31 else None  # old kernels say 4294967295 for "unknown"
