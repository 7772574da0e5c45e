"""Checks of the inventory itself: can every node be asked, and is each entry a machine of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations, zip_longest

from clusterft.checks.survey import Survey, Unreached
from clusterft.facts import NodeFacts
from clusterft.findings import Finding
from clusterft.hosts import Node


def unreached(survey: Survey) -> Iterator[Finding]:
    """ssh.*: one finding per reason, all nodes with it together, each in ssh's own words."""
    groups: dict[tuple[str, str], list[Unreached]] = defaultdict(list)
    for miss in survey.unreached:
        groups[miss.id, miss.cause].append(miss)
    for (identity, cause), misses in groups.items():
        yield Finding(
            id=identity,
            status="fail",
            nodes=tuple(miss.node for miss in misses),
            summary="cannot be asked over SSH",
            evidence="\n".join(f"{miss.node}: {miss.words}" for miss in misses),
            cause=cause,
            fix=_steps(misses),
        )


def _steps(misses: list[Unreached]) -> tuple[str, ...]:
    """What comes first for each of them, before what comes next for any."""
    in_turn = zip_longest(*(miss.fix for miss in misses), fillvalue="")
    return tuple(dict.fromkeys(step for steps in in_turn for step in steps if step))


def same_host_twice(survey: Survey, *, share_cards: bool) -> Iterator[Finding]:
    """ctl.same-host-twice: two entries with one boot id would fight over the same cards and ports."""
    machines: dict[str, list[Node]] = defaultdict(list)
    for node in survey.cluster.active:
        facts = survey.facts.get(node.name)
        if facts and facts.boot_id:
            machines[facts.boot_id].append(node)
    for boot_id, nodes in machines.items():
        clashing = [node for node in nodes if not _may_share(node, nodes, share_cards=share_cards)]
        if len(nodes) > 1 and clashing:
            names = tuple(node.name for node in nodes)
            yield Finding(
                id="ctl.same-host-twice",
                status="fail",
                nodes=names,
                summary="are one and the same machine",
                evidence=f"boot id {boot_id} on each",
                cause="the machine is listed under several names or addresses",
                fix=(f"delete all but one of {', '.join(names)} from {survey.cluster.path}",),
                blast_radius="the hostfile",
            )


def same_hostname(survey: Survey) -> Iterator[Finding]:
    """ctl.same-hostname: machines with one name, which some NCCL versions take for one machine."""
    named: dict[str, list[NodeFacts]] = defaultdict(list)
    for facts in survey.facts.values():
        if facts.hostname:
            named[facts.hostname].append(facts)
    for hostname, nodes in named.items():
        if len({facts.boot_id for facts in nodes if facts.boot_id}) > 1:
            yield Finding(
                id="ctl.same-hostname",
                status="warn",
                nodes=tuple(facts.node for facts in nodes),
                summary="are different machines with the same hostname",
                evidence=f"hostname {hostname} on each, boot ids differ",
                cause="machines were cloned from one image",
                fix=tuple(f"on {facts.node}: sudo hostnamectl set-hostname {facts.node}" for facts in nodes),
                needs_root=True,
                blast_radius="the machine's name",
            )


def _may_share(node: Node, nodes: list[Node], *, share_cards: bool) -> bool:
    """transport=local may repeat on purpose: without cards to share, or with cards that are set apart."""
    if node.transport != "local":
        return False
    if share_cards:
        return True
    cards = [set(each.gpus) for each in nodes]
    return all(cards) and all(not (a & b) for a, b in combinations(cards, 2))
