"""How fast nodes exchange gradients: which node or link is behind, and what has fallen since. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping

from clusterft.checks.examination import Examination
from clusterft.checks.work import acceptance
from clusterft.checks.work.measured import story
from clusterft.facts import deep as facts
from clusterft.facts.deep import Deep, Group
from clusterft.findings import Finding

_LOST = 0.01  # of a node's segments sent again while it was measured: no link that is well does that
_ONLY_LOOKS = "nothing: it only looks"

Pairs = Mapping[tuple[str, ...], Group]


def slow(seen: Examination) -> Iterator[Finding]:
    """run.straggler: a node that is slow towards everybody; net.loss, net.linkspeed: one link, or all at once."""
    if seen.deep is None:
        return
    best, why = acceptance.judged(seen.deep)
    verdict = acceptance.blame(best, why)
    for node in verdict.nodes:
        yield _node(seen, node, best, why)
    for pair in verdict.links:
        yield _link(seen.deep, best[pair], why[pair])
    if not why:
        yield from _together(seen.deep, best)


def _node(seen: Examination, node: str, best: Pairs, why: Mapping[tuple[str, ...], str]) -> Finding:
    mine = [one for pair, one in best.items() if node in pair]
    others = [one for pair, one in best.items() if node not in pair][:4]
    fastest = max((one.busbw or 0.0 for one in mine), default=0.0)
    card = (seen.deep.interfaces if seen.deep else {}).get(node, "INTERFACE")
    reason = next((words for pair, words in why.items() if node in pair), "")
    return Finding(
        id="run.straggler",
        status="warn",
        nodes=(node,),
        summary=f"exchanges gradients at {fastest:.3g} GB/s at most, whomever it works with",
        evidence="\n".join((*map(story, mine), *(f"without it: {story(one)}" for one in others), *_resent(mine))),
        cause=f"{reason}; every step waits for the slowest node",
        fix=(
            f"on {node}: cat /sys/class/net/{card}/speed; tc qdisc show dev {card}   "
            "then its cable, its port, and what else uses them",
            f"or train without it: take {node} out of {seen.survey.cluster.path}",
        ),
        blast_radius="nothing as long as it only looks; the hostfile",
    )


def _link(deep: Deep, pair: Group, why: str) -> Finding:
    lossy = list(_resent([pair]))
    elsewhere = "; each of them is faster with other nodes" if len(deep.addresses) > 2 else ""
    return Finding(
        id="net.loss" if lossy else "net.linkspeed",
        status="warn",
        nodes=pair.nodes,
        summary=f"between {' and '.join(pair.nodes)} an all-reduce reaches {pair.busbw or 0:.3g} GB/s",
        evidence="\n".join((story(pair), *lossy)),
        cause=why + elsewhere,
        fix=tuple(
            f"on {node}: ip route get {deep.addresses.get(other, other)}   then the cable and switch on that way"
            for node, other in (pair.nodes, pair.nodes[::-1])
        ),
        blast_radius=_ONLY_LOOKS,
    )


def _resent(groups: Iterable[Group]) -> Iterator[str]:
    """Nodes that had to send much again while they were measured."""
    most: dict[str, float] = {}
    for one in groups:
        for node, share in one.resent.items():
            most[node] = max(share, most.get(node, 0.0))
    for node, share in most.items():
        if share > _LOST:
            yield f"{node} sent {share:.1%} of its TCP segments again"


def _together(deep: Deep, pairs: Pairs) -> Iterator[Finding]:
    """Each pair is well, and all at once are not."""
    figures = [one.busbw for one in pairs.values() if one.busbw]
    together = [one for one in deep.groups if one.kind == "all" and one.busbw is not None]
    if len(together) < 2 or not figures:
        return
    middle = statistics.median(figures)
    if not all(acceptance.poor(one, middle, deep.backend) for one in together):
        return
    most = max(one.busbw or 0.0 for one in together)
    yield Finding(
        id="net.linkspeed",
        status="warn",
        nodes=together[0].nodes,
        summary=f"all nodes together reach {most:.3g} GB/s, pairs of them {middle:.3g} GB/s",
        evidence="\n".join(map(story, (*together, *(one for one in deep.groups if one.kind == "part")))),
        cause="what joins them, a switch or its uplink, carries less than all of them at once",
        fix=("plug the nodes of a run into one switch, or give its uplink more lines",),
        blast_radius="the network",
    )


def fallen(seen: Examination) -> Iterator[Finding]:
    """Clearly less than earlier looks have measured, each time that it was tried."""
    deep = seen.deep
    if deep is None:
        return
    _, known = acceptance.judged(deep)
    between: dict[str, tuple[str, ...]] = {}  # line of evidence -> nodes
    for (kind, nodes), figures in acceptance.attempts(deep.groups).items():
        before = deep.before.get(facts.key(kind, nodes, deep.backend), ())
        usual = acceptance.fallen(max(figures), before, deep.backend)
        if usual is None or len(figures) < 2 or nodes in known:
            continue
        line = f"{' - '.join(nodes)}: now {_list(figures)} GB/s, before {_list(before)} GB/s"
        if kind == "node":
            yield _behind("run.straggler", nodes, [line], seen)
        else:
            between[line] = nodes
    if between:
        concerned = {node for nodes in between.values() for node in nodes}
        yield _behind("net.linkspeed", tuple(n for n in seen.nodes if n in concerned), list(between), seen)


def _behind(identity: str, nodes: tuple[str, ...], lines: list[str], seen: Examination) -> Finding:
    return Finding(
        id=identity,
        status="warn",
        nodes=nodes,
        summary="gradients are exchanged clearly slower than they used to be",
        evidence="\n".join(lines),
        cause="something has changed since: a cable, a port, a switch, or somebody uses the same link",
        fix=(
            "clusterft doctor   names links that were negotiated lower",
            f"or take it for usual from now on: rm ~/.clusterft/{seen.survey.cluster.name}/baseline.json",
        ),
        blast_radius="what clusterft remembers of this cluster",
    )


def _list(figures: tuple[float, ...]) -> str:
    return ", ".join(f"{one:.3g}" for one in figures)


def inside(seen: Examination) -> Iterator[Finding]:
    """run.straggler: the cards of one node exchange less than such cards do, twice."""
    deep = seen.deep
    if deep is None:
        return
    for (kind, nodes), one in acceptance.top(deep.groups).items():
        tries = [other for other in deep.groups if (other.kind, other.nodes) == (kind, nodes)]
        expected = acceptance.inside_too_low(one, deep.cards)
        if kind == "node" and expected and len(tries) > 1:
            yield Finding(
                id="run.straggler",
                status="warn",
                nodes=nodes,
                summary=f"its cards exchange at {one.busbw or 0:.3g} GB/s, and such cards reach {expected:g} GB/s",
                evidence="\n".join(map(story, tries)),
                cause="NVLink is down, or not used between some of them",
                fix=(f"on {nodes[0]}: nvidia-smi nvlink --status; nvidia-smi topo -m",),
                blast_radius=_ONLY_LOOKS,
            )
