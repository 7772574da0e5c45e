"""Ranks that never found each other in a collective, though single ports could be reached. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks.examination import Examination
from clusterft.checks.ways import walls
from clusterft.checks.ways.walls import Opening
from clusterft.checks.work import acceptance
from clusterft.checks.work.measured import story
from clusterft.facts.deep import Deep, Group
from clusterft.findings import Finding

_CONNECTED = ("first", "measure")  # gloo has all its connections by then
_SAFE_MTU = 1400


def ranks(seen: Examination) -> Iterator[Finding]:
    """net.high-ports: a node that meets nobody, two that do not meet each other, or nothing but all at once."""
    deep = seen.deep
    if deep is None:
        return
    best = acceptance.best(deep.groups)
    dead = [one for one in best.values() if one.busbw is None and one.hung]
    verdict = acceptance.blame(best, [one.nodes for one in dead])
    stuck = [one for one in dead if deep.backend == "gloo" and one.stage in _CONNECTED]
    for node in verdict.nodes:
        peers = [name for name in deep.addresses if name != node]
        mine = [one for one in dead if node in one.nodes]
        if all(one in stuck for one in mine):
            yield _stuck((node,), mine, "reaches the other nodes, and no data gets through", deep)
        else:
            yield _closed(seen, (node,), mine, "meets no other node in a collective", {node: peers})
    for one in dead:
        if one.nodes in verdict.links:
            left, right = one.nodes
            if one in stuck:
                yield _stuck(one.nodes, [one], f"{left} and {right} connect, and no data gets through", deep)
                continue
            summary = f"{left} and {right} do not meet in a collective"
            yield _closed(seen, one.nodes, [one], summary, {left: [right], right: [left]})
    if not dead:
        yield from _together(deep)
    broken = [one for one in best.values() if one.busbw is None and not one.hung]
    yield from _broken(broken)


def _closed(
    seen: Examination, nodes: tuple[str, ...], dead: list[Group], summary: str, peers: dict[str, list[str]]
) -> Finding:
    return Finding(
        id="net.high-ports",
        status="fail",
        nodes=nodes,
        summary=summary,
        evidence="\n".join(map(story, dead)),
        cause="besides the rendezvous, ranks use TCP ports that the system chooses, in both directions",
        fix=_steps(seen, peers),
        needs_root=True,
        blast_radius="the firewall: all TCP ports, for these nodes alone",
    )


def _stuck(nodes: tuple[str, ...], dead: list[Group], summary: str, deep: Deep) -> Finding:
    """Connections are made of small packets alone."""
    return Finding(
        id="net.mtu",
        status="fail",
        nodes=nodes,
        summary=summary,
        evidence="\n".join(map(story, dead)),
        cause="large packets are lost on the way: cards or a tunnel whose MTU is not the same at both ends",
        fix=tuple(
            f"on {node}: ip link show {card}; sudo ip link set {card} mtu {_SAFE_MTU}"
            for node in nodes
            if (card := deep.interfaces.get(node))
        ),
        needs_root=True,
        blast_radius="that interface, until the next reboot",
    )


def _steps(seen: Examination, peers: dict[str, list[str]]) -> tuple[str, ...]:
    """Of all these nodes; what is said of each of them alike comes once, at the end."""
    each = [_let_in(seen, node, others) for node, others in peers.items() if others]
    every = [step for steps in each for step in steps]
    return tuple(dict.fromkeys(sorted(every, key=lambda step: " on " not in f" {step.partition(':')[0]}:")))


def _let_in(seen: Examination, node: str, others: list[str]) -> tuple[str, ...]:
    """What opens a node's own firewall to these others."""
    known = seen.deep.addresses if seen.deep else {}
    return walls.steps(seen, Opening(node, tuple(known.get(other, other) for other in others), None))


def _together(deep: Deep) -> Iterator[Finding]:
    """All nodes do not come to an end, and no pair says why."""
    together = [one for one in deep.groups if one.kind == "all"]
    if len(together) < 2 or not all(one.busbw is None and one.hung for one in together):
        return
    parts = [one for one in deep.groups if one.kind == "part"]
    yield Finding(
        id="net.high-ports",
        status="fail",
        nodes=together[0].nodes,
        summary="all nodes together come to no end, though each pair that was tried does",
        evidence="\n".join(map(story, (*together, *parts))),
        cause="two nodes that were in no pair do not meet, or connections are limited in number",
        fix=("clusterft doctor --only network   names each port that is closed",),
        blast_radius="nothing: it only looks",
    )


def _broken(groups: list[Group]) -> Iterator[Finding]:
    """Ended by something else than the network: what it was is in the words."""
    for one in groups:
        yield Finding(
            id="run.straggler",
            status="unknown",
            nodes=one.nodes,
            summary="a collective among them ended with an error each time",
            evidence=story(one),
        )
