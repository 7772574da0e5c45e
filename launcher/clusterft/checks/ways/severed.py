"""Whether the network layer tells already why some nodes cannot meet: then others need not guess. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from clusterft.checks.examination import Examination
from clusterft.checks.ways import addresses, isolated, itself, paths, reach, routes

_TOLD = (
    addresses.dup_ip,
    addresses.bridge,
    addresses.netmask,
    routes.refused,
    routes.led_away,
    addresses.dup_ip_dialled,
    addresses.wrong_nic,
    addresses.wrong_nic_dialled,
    isolated.found,
    reach.high_ports,
    reach.master_port,
    itself.loopback,
    paths.mtu,
    paths.some_lost,
)


def by(seen: Examination, nodes: Iterable[str]) -> str:
    """The id of the first such finding of one of these; empty where nothing is known to stand between any."""
    some = set(nodes)
    return next(
        (one.id for find in _TOLD for one in find(seen) if one.status == "fail" and some & set(one.nodes)), ""
    )
