"""A port of a node on which somebody else answers, while its other ports lead to the node itself. Pure.

That is a rule that forwards connections, or a proxy; a second machine with that address is another file's.
"""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks.examination import Examination
from clusterft.checks.ways import astray
from clusterft.checks.ways.astray import Trouble
from clusterft.facts.links import SPAN, Kind
from clusterft.findings import Finding


def found(seen: Examination, kind: Kind) -> Iterator[Finding]:
    """net.master-port or net.high-ports: by node and port."""
    places: dict[tuple[str, int], list[Trouble]] = {}
    for one in astray.troubles(seen):
        if one.kind == "forwarded" and one.dial.kind == kind:
            places.setdefault((one.dial.target, one.dial.port), []).append(one)
    for (node, port), ones in places.items():
        yield _finding(seen, node, port, ones)


def _finding(seen: Examination, node: str, port: int, ones: list[Trouble]) -> Finding:
    dials = seen.links.dials if seen.links else ()
    led = tuple(dict.fromkeys(one.dial.source for one in ones))
    well = [one.source for one in dials if (one.target, one.port) == (node, port) and astray.itself(seen, one)]
    ends = (node, *led) if well else (node,)  # where others find the node there, the senders may have the rule
    meets, head = ones[0].dial.kind == "rendezvous", seen.nodes[0]
    later = f"; it matters once {head} is lost and another node leads" if meets and node != head else ""
    of = f" of {node}, for {', '.join(led)}" if well else ""
    where = f"a port forward or proxy on {' or '.join(ends)}"
    return Finding(
        id="net.master-port" if meets else "net.high-ports",
        status="warn" if later else "fail",
        nodes=ends,
        summary=f"something else answers on port {port}{of}: {where}{later}",
        evidence="\n".join(
            f"{one.dial.told}, and it is {one.who or 'no program of ours'} that answers; "
            f"other ports of {one.dial.address} lead to {node} itself"
            for one in ones[:10]
        ),
        cause="a rule that an earlier service left, a container's published port, or a proxy",
        fix=(*(step for end in ends for step in _steps(end, port, meets)), *_another(seen, port, meets)),
        needs_root=True,
        blast_radius="whoever uses that port forward" + (", or job.yaml" if meets else ""),
    )


def _steps(node: str, port: int, meets: bool) -> Iterator[str]:
    what = f"for port {port}" if meets else "that takes high ports"
    yield (
        f"on {node}: sudo iptables -t nat -S   shows the rule {what}; "
        "delete it: sudo iptables -t nat, and the rule with -D in place of -A"
    )
    yield (
        f"or on {node}, where nft keeps the rules: sudo nft -a list ruleset   shows it and its handle; "
        "delete it: sudo nft delete rule FAMILY TABLE CHAIN handle HANDLE"
    )


def _another(seen: Examination, port: int, meets: bool) -> Iterator[str]:
    """Beyond all that a run would take of the ports given now."""
    if meets:
        far = seen.wanted.port + 2 * SPAN
        yield f"or port: {far if far + 2 * SPAN <= 65536 else seen.wanted.port - 2 * SPAN} in job.yaml"
