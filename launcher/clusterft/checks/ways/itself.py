"""Whether a node reaches itself at its own address, where rank 0 dials its own store. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks.examination import Examination
from clusterft.checks.ways import walls
from clusterft.findings import Finding

_UP = "sudo ip link set lo up"


def loopback(seen: Examination) -> Iterator[Finding]:
    """net.loopback: what a node sends to itself goes by lo, which is down, or which its firewall has forgotten."""
    for node, tried in (seen.links.own if seen.links else {}).items():
        if tried.reached or tried.stranger:
            continue
        facts = seen.survey.facts.get(node)
        down = any(one.name == "lo" and not one.up for one in (facts.links if facts else None) or ())
        yield Finding(
            id="net.loopback",
            status="fail",
            nodes=(node,),
            summary="cannot reach itself at its own address: ranks there cannot meet, though others get through",
            evidence=f"{node} → {node} {tried.address} port {tried.port}: "
            f"{tried.error} after {tried.seconds:.1f} s" + ("\nlo is down" if down else ""),
            cause="the interface lo is down"
            if down
            else "a firewall that lets others in, and not what comes in by lo; or lo is down",
            fix=tuple(f"on {node}: {line}" for line in ((_UP,) if down else (*walls.by_lo(seen, node), _UP))),
            needs_root=True,
            blast_radius="what the node sends to itself",
        )
