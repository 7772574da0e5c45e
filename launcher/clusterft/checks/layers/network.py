"""The checks of the network layer: is each node where it is dialled, who reaches it, what does the way carry."""

from __future__ import annotations

from clusterft.checks.check import Check
from clusterft.checks.ways import addresses, isolated, itself, paths, reach, routes, untried

# What then fails is not the node's firewall: it is dialled elsewhere.
_AWAY = ("net.netmask", "net.dup-ip", "net.wrong-nic", "nccl.bridge", "dk.subnet")

CHECKS: tuple[Check, ...] = (
    Check(("net.dup-ip",), addresses.dup_ip),
    Check(("net.dup-ip",), addresses.dup_ip_unreached),
    Check(("nccl.bridge",), addresses.bridge),
    Check(("net.netmask",), addresses.netmask, after=("dk.subnet", "net.dup-ip", "nccl.bridge")),
    Check(("net.route",), routes.refused, reads=("facts", "health")),
    Check(("net.route",), routes.led_away, reads=("facts", "links"), after=("dk.subnet", "net.netmask")),
    Check(("net.dup-ip",), addresses.dup_ip_dialled, reads=("facts", "links")),
    Check(("net.wrong-nic",), addresses.wrong_nic, after=("net.dup-ip", "nccl.bridge")),
    Check(("net.isolated",), isolated.found, reads=("facts", "links"), after=_AWAY),
    Check(
        ("net.wrong-nic",),
        addresses.wrong_nic_dialled,
        reads=("facts", "links"),
        after=("net.dup-ip", "nccl.bridge", "net.wrong-nic", "dk.subnet"),
    ),
    Check(("net.high-ports",), reach.high_ports, reads=("facts", "links"), after=_AWAY),
    Check(("net.master-port",), reach.master_port, reads=("facts", "links"), after=(*_AWAY, "net.high-ports")),
    Check(("net.loopback",), itself.loopback, reads=("facts", "links"), after=_AWAY),
    Check(("net.mtu",), paths.mtu, reads=("facts", "links"), after=_AWAY),
    Check(("net.loss",), paths.some_lost, reads=("facts", "links"), after=_AWAY),
    Check(("net.loss",), paths.loss, reads=("facts", "links"), after=_AWAY),
    Check(("net.linkspeed",), paths.linkspeed, reads=("facts", "health")),
    Check(("net.linkspeed",), paths.linkspeed_measured, reads=("facts", "links"), after=(*_AWAY, "net.mtu")),
    untried.after("net.high-ports", *_AWAY),
    untried.after("net.master-port", *_AWAY, "net.high-ports"),
    untried.after("net.loopback", *_AWAY),
    untried.after("net.mtu", *_AWAY, "net.high-ports"),
    untried.after("net.loss", *_AWAY, "net.high-ports", "net.mtu"),
    untried.after("net.linkspeed", *_AWAY, "net.high-ports", "net.mtu"),
    Check(("net.public-addr",), addresses.public_addr),
    Check(("net.dup-route",), addresses.dup_route),
)
