"""What collectives, cards at work and a saved checkpoint say: the checks of `doctor --deep`.

Network and shared dir have cheaper checks of their own, which come first; what they have found is not said again.
"""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks import acceptance, pace, saved
from clusterft.checks.acceptance import Blame
from clusterft.checks.check import Check
from clusterft.checks.examination import Examination
from clusterft.facts.deep import Deep, Group
from clusterft.findings import Finding

_LOST = 0.01  # of a node's segments sent again while it was measured: no link that is well does that


def unconnected(seen: Examination) -> Iterator[Finding]:
    """net.high-ports: ranks that never found each other, though single ports could be reached."""
    if not seen.deep:
        return
    dead = [one for one in acceptance.best(seen.deep.groups).values() if one.busbw is None and one.hung]
    verdict = acceptance.blame([one.nodes for one in _pairs(seen.deep)], [one.nodes for one in dead])
    for node in verdict.nodes:
        mine = [one for one in dead if node in one.nodes]
        peers = [name for name in seen.nodes if name != node and name in seen.deep.addresses]
        yield _closed(seen, (node,), mine, f"{node} finds no other node in a collective", {node: peers})
    for pair in verdict.links:
        mine = [one for one in dead if one.nodes == pair]
        between = {pair[0]: [pair[1]], pair[1]: [pair[0]]}
        yield _closed(seen, pair, mine, f"{pair[0]} and {pair[1]} do not find each other in a collective", between)
    yield from _whole(seen, bool(dead))


def _closed(
    seen: Examination, nodes: tuple[str, ...], dead: list[Group], summary: str, peers: dict[str, list[str]]
) -> Finding:
    rules = tuple(_let_in(seen, node, others) for node, others in peers.items() if others)
    return Finding(
        id="net.high-ports",
        status="fail",
        nodes=nodes,
        summary=summary,
        evidence="\n".join(_story(one) for one in dead),
        cause="besides the rendezvous, ranks use TCP ports that the system chooses, in both directions",
        fix=rules,
        needs_root=True,
        blast_radius="the firewall: all TCP ports, from these nodes alone",
    )


def _let_in(seen: Examination, node: str, others: list[str]) -> str:
    """One command for a node's own firewall."""
    addresses = [(seen.deep.addresses if seen.deep else {}).get(other, other) for other in others]
    facts = seen.survey.facts.get(node)
    wall = facts.firewall if facts else None
    if wall and wall.ufw:
        return f"on {node}: " + " && ".join(f"sudo ufw allow from {one} to any proto tcp" for one in addresses)
    if wall and wall.firewalld:
        sources = " ".join(f"--add-source={one}" for one in addresses)
        return f"on {node}: sudo firewall-cmd --zone=trusted --permanent {sources} && sudo firewall-cmd --reload"
    return f"on {node}: sudo iptables -I INPUT -p tcp -s {','.join(addresses)} -j ACCEPT"


def _whole(seen: Examination, known: bool) -> Iterator[Finding]:
    """All nodes together do not come back, and no pair says why."""
    groups = seen.deep.groups if seen.deep else ()
    together = [one for one in groups if one.kind == "all"]
    if known or not together or any(one.busbw is not None for one in together) or not together[0].hung:
        return
    yield Finding(
        id="net.high-ports",
        status="fail",
        nodes=together[0].nodes,
        summary="all nodes together do not come to an end, though each pair that was tried does",
        evidence="\n".join(_story(one) for one in (*together, *(one for one in groups if one.kind == "part"))),
        cause="a link that no pair has tried, or a limit on connections",
        fix=("clusterft doctor --only network   names each port that is closed",),
    )


def slow_network(seen: Examination) -> Iterator[Finding]:
    """run.straggler: a node that is slow towards everybody; net.loss, net.linkspeed: one link."""
    if not seen.deep:
        return
    best = acceptance.best(seen.deep.groups)
    against = acceptance.yardstick(
        seen.deep.groups, seen.deep.backend, dict(seen.deep.wires), equal=seen.deep.equal
    )
    # Twice: one slow try is chance.
    tries = {pair: sum(one.nodes == pair for one in seen.deep.groups) for pair in best}
    why = {
        pair: words for pair, one in best.items() if tries[pair] > 1 and (words := acceptance.slow(one, against))
    }
    verdict = acceptance.blame(best, why)
    yield from _slow_nodes(seen.deep, verdict, best, why)
    for pair in verdict.links:
        yield _slow_link(seen.deep, best[pair], why[pair])


def _slow_nodes(
    deep: Deep, verdict: Blame, best: dict[tuple[str, ...], Group], why: dict[tuple[str, ...], str]
) -> Iterator[Finding]:
    for node in verdict.nodes:
        mine = [one for pair, one in best.items() if node in pair]
        others = [one for pair, one in best.items() if node not in pair]
        fastest = max((one.busbw or 0.0 for one in mine), default=0.0)
        yield Finding(
            id="run.straggler",
            status="warn",
            nodes=(node,),
            summary=f"{node} exchanges at {fastest:.3g} GB/s at most, whomever it works with",
            evidence="\n".join(
                (*(_story(one) for one in mine), *(f"without it: {_story(one)}" for one in others[:4]))
            ),
            cause="; ".join((next(iter(why.values())), "every step waits for the slowest node")),
            fix=(
                f"on {node}: ethtool $(ip -o route get {_other(deep, node)} | sed 's/.* dev //; s/ .*//') "
                "| grep -E 'Speed|Duplex'   then its cable, port and switch",
                f"or train without it: take {node} out of the hostfile",
            ),
            needs_root=False,
            blast_radius="the node's link",
        )


def _other(deep: Deep, node: str) -> str:
    return next((ip for name, ip in deep.addresses.items() if name != node), "PEER")


def _slow_link(deep: Deep, pair: Group, why: str) -> Finding:
    lossy = {node: share for node, share in pair.resent.items() if share > _LOST}
    figures = ", ".join(f"{node} sent {share:.1%} of its segments again" for node, share in lossy.items())
    whom = " and ".join(pair.nodes)
    return Finding(
        id="net.loss" if lossy else "net.linkspeed",
        status="warn",
        nodes=pair.nodes,
        summary=f"between {whom} an all-reduce reaches {pair.busbw or 0:.3g} GB/s",
        evidence=_story(pair) + (f"\n{figures}" if figures else ""),
        cause=f"{why}; each of them is faster with other nodes" if len(deep.addresses) > 2 else why,
        fix=tuple(
            f"on {node}: ip route get {deep.addresses.get(other, other)}   then the cable and switch on that way"
            for node, other in (pair.nodes, pair.nodes[::-1])
        ),
        blast_radius="nothing: it only looks",
    )


def fallen(seen: Examination) -> Iterator[Finding]:
    """net.linkspeed: clearly less than earlier looks have measured, each time that it was tried."""
    if not seen.deep:
        return
    for (kind, nodes), figures in acceptance.attempts(seen.deep.groups).items():
        before = seen.deep.before.get(f"{seen.deep.backend} {kind} {' '.join(nodes)}", ())
        usual = acceptance.fallen(max(figures), before, seen.deep.backend)
        if usual is None or len(figures) < 2:
            continue
        yield Finding(
            id="run.straggler" if kind == "node" else "net.linkspeed",
            status="warn",
            nodes=nodes,
            summary=f"an all-reduce reaches {max(figures):.3g} GB/s, and used to reach {usual:.3g} GB/s",
            evidence=f"now: {_list(figures)} GB/s\nbefore: {_list(before)} GB/s",
            cause="something has changed since: a cable, a port, a switch, or somebody uses the same link",
            fix=(
                "clusterft doctor   names links that were negotiated lower",
                f"or take it for usual from now on: rm ~/.clusterft/{seen.survey.cluster.name}/baseline.json",
            ),
            blast_radius="what clusterft remembers of this cluster",
        )


def _list(figures: tuple[float, ...]) -> str:
    return ", ".join(f"{one:.3g}" for one in figures)


def _pairs(deep: Deep) -> list[Group]:
    return [one for one in deep.groups if one.kind == "pair"]


def _story(one: Group) -> str:
    """One measurement in a line."""
    who = " - ".join(one.nodes)
    if one.busbw is not None:
        amount = (one.bytes or 0) / 2**20
        return f"{who}: {one.busbw:.3g} GB/s ({amount:.0f} MiB in {one.seconds or 0:.3f} s)"
    return f"{who}: no end, at stage {one.stage}" + (f"\n{one.words}" if one.words else "")


CHECKS: tuple[Check, ...] = (
    Check(("run.straggler",), slow_network, reads=("facts", "deep"), after=("net.", "nccl.")),
    Check((), unconnected, reads=("facts", "deep"), after=("net.", "nccl.")),
    Check((), fallen, reads=("facts", "deep"), after=("net.", "nccl.")),
    Check(("run.straggler",), pace.slow_cards, reads=("facts", "deep"), cuda=True),
    Check(("run.host-bound",), pace.starved, reads=("facts", "deep"), cuda=True),
    Check(("gpu.p2p",), pace.no_direct_copies, reads=("facts", "deep"), cuda=True),
    Check(("ckpt.latest", "ckpt.race"), saved.through_the_share, reads=("facts", "deep"), after=("fs.", "net.")),
)
