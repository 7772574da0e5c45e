"""The lab's own network: a bridge in a namespace of its own, one port a node.

Owns addresses, links, carriers and rates. The bridge does not live among this
machine's interfaces, because a Docker engine here filters every bridge it can see
and would keep light nodes from each other.
Refuses to route anywhere: nodes reach each other and this machine, nothing else.
"""

from __future__ import annotations

import ipaddress
import json

from .errors import LabError
from .journal import Journal
from .proc import run


class Switch:
    """One /24 in which this machine has .1 and the nodes the rest."""

    def __init__(self, journal: Journal, subnet: str) -> None:
        self._journal = journal
        self._subnet = ipaddress.ip_network(subnet)
        self._prefix = f"cfl-{journal.id}"
        self._self = f"{self._prefix}-sw"
        # Interface names have 15 characters at most.
        self._uplink = f"cfl{journal.id}"

    @staticmethod
    def taken() -> set[str]:
        """Address ranges that interfaces and routes of this machine use."""
        routes = json.loads(run(["ip", "-json", "-4", "route"]).stdout or "[]")
        return {route["dst"] for route in routes if route["dst"] != "default"}

    def address(self, number: int) -> str:
        """The address with this number."""
        return str(self._subnet[number])

    def name_of(self, node: str) -> str:
        """The network namespace of a node."""
        return f"{self._prefix}-{node}"

    def build(self) -> None:
        """Make the bridge and connect this machine to it."""
        self._journal.note("netns", self._self)
        self._journal.note("link", self._uplink)
        run(["ip", "netns", "add", self._self])
        _batch(self._self, "link set lo up", "link add br0 type bridge", "link set br0 up")
        peer = f"type veth peer name uplink netns {self._self}"
        run(["ip", "link", "add", self._uplink, *peer.split()])
        _batch(self._self, "link set uplink master br0 up")
        _batch(None, f"address add {self.address(1)}/24 dev {self._uplink}", f"link set {self._uplink} up")

    def plug(self, node: str, address: str) -> None:
        """Make a node's network namespace and connect it."""
        name = self.name_of(node)
        self._journal.note("netns", name)
        run(["ip", "netns", "add", name])
        _batch(
            self._self, f"link add {node} type veth peer name eth0 netns {name}", f"link set {node} master br0 up"
        )
        _batch(
            name,
            "link set lo up",
            f"address add {address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {self.address(1)}",
        )

    def plug_machine(self, node: str) -> str:
        """Make a namespace whose cable ends in a tap for a virtual machine; names the tap."""
        name = self.name_of(node)
        self._journal.note("netns", name)
        run(["ip", "netns", "add", name])
        _batch(
            self._self, f"link add {node} type veth peer name eth0 netns {name}", f"link set {node} master br0 up"
        )
        _batch(
            name,
            "link set lo up",
            "link add br0 type bridge",
            "link set br0 up",
            "tuntap add tap0 mode tap",
            "link set tap0 master br0 up",
            "link set eth0 master br0 up",
        )
        return "tap0"

    def set_port(self, node: str, *, up: bool) -> None:
        """Give a node a carrier, or take it away."""
        _batch(self._self, f"link set {node} {'up' if up else 'down'}")

    def throttle(self, node: str, rate: str) -> None:
        """Limit what goes to a node and what comes from it."""
        for name, card in self._both_ends(node):
            shape = f"qdisc replace dev {card} root tbf rate {rate} burst 64kb latency 100ms"
            run(["tc", "-n", name, *shape.split()])

    def unthrottle(self, node: str) -> None:
        """Take the limits away."""
        for name, card in self._both_ends(node):
            if " tbf " in run(["tc", "-n", name, "qdisc", "show", "dev", card]).stdout:
                run(["tc", "-n", name, "qdisc", "del", "dev", card, "root"])

    def _both_ends(self, node: str) -> list[tuple[str, str]]:
        return [(self._self, node), (self.name_of(node), "eth0")]


def _batch(namespace: str | None, *commands: str) -> None:
    """Several ip commands in one process."""
    place = ["-n", namespace] if namespace else []
    done = run(["ip", *place, "-batch", "-"], stdin="\n".join(commands) + "\n", check=False)
    if done.returncode != 0:
        raise LabError(f"ip {' '.join(place)}: {done.stderr.strip()}\n" + "\n".join(commands))
