"""Checks of the accelerators of each node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from clusterft.checks.survey import Survey
from clusterft.facts import NodeFacts
from clusterft.findings import Finding
from clusterft.hosts import Node

_MISMATCH = "driver/library version mismatch"


def count(survey: Survey) -> Iterator[Finding]:
    """gpu.count: fewer cards than slots, named cards that are absent, or an unclear choice among unlike ones."""
    for node in survey.cluster.active:
        facts = survey.facts.get(node.name)
        if facts is None or _mismatched(facts):
            continue  # what the driver hides cannot be counted
        have = [f"card {card.index}: {card.name}, {card.memory or 'unknown'} MiB" for card in facts.gpus]
        known = {str(card.index) for card in facts.gpus} | {card.uuid for card in facts.gpus}
        absent = [card for card in node.gpus if card not in known]
        if absent:
            summary = f"has no card {', '.join(absent)}"
        elif len(facts.gpus) < node.slots:
            summary = f"has {len(facts.gpus)} of {node.slots} cards"
        elif not node.gpus and node.slots < len(facts.gpus) and len({c.name for c in facts.gpus}) > 1:
            summary = f"has unlike cards, and slots={node.slots} does not say which to use"
        else:
            continue
        yield Finding(
            id="gpu.count",
            status="fail",
            nodes=(node.name,),
            summary=summary,
            evidence="\n".join(have) or _nothing(facts),
            fix=(f"correct slots= or gpus= in {survey.cluster.path}",),
            blast_radius="the hostfile",
        )


def mismatch(survey: Survey) -> Iterator[Finding]:
    """gpu.mismatch: the driver's files were replaced under a kernel that still runs the old module."""
    for name, facts in survey.facts.items():
        if facts.nvidia and _mismatched(facts):
            yield Finding(
                id="gpu.mismatch",
                status="fail",
                nodes=(name,),
                summary="the NVIDIA driver was upgraded, and the old module still runs",
                evidence=f"{facts.nvidia.words}\nloaded module: {facts.nvidia.module or 'unknown'}",
                cause="an upgrade without a reboot",
                fix=("sudo reboot",),
                needs_root=True,
                blast_radius="the whole machine",
            )


def mixed(survey: Survey) -> Iterator[Finding]:
    """gpu.mixed: cards or drivers that differ, where the slowest card sets the pace of all."""
    kinds: dict[str, str] = {}
    for node in survey.cluster.active:
        facts = survey.facts.get(node.name)
        if facts and facts.gpus:
            kinds[node.name] = _kinds(node, facts)
    if len(set(kinds.values())) < 2:
        return
    usual = Counter(kinds.values()).most_common(1)[0][0]  # of equals the first, which is the head's
    yield Finding(
        id="gpu.mixed",
        status="warn",
        nodes=tuple(name for name, kind in kinds.items() if kind != usual),
        summary="have other cards or another driver than the rest",
        evidence="\n".join(f"{name}: {kind}" for name, kind in kinds.items()),
        cause="the slowest card sets the pace, the smallest memory sets the batch",
        fix=("use equal cards (gpus= in the hostfile) and one driver version on all nodes",),
        blast_radius="the hostfile",
    )


def _kinds(node: Node, facts: NodeFacts) -> str:
    used = [card for card in facts.gpus if not node.gpus or str(card.index) in node.gpus or card.uuid in node.gpus]
    counted = Counter(f"{card.name}, {card.memory or 'unknown'} MiB, driver {card.driver}" for card in used)
    return "; ".join(sorted(counted))  # how many is for slots= to say


def _mismatched(facts: NodeFacts) -> bool:
    return bool(facts.nvidia and _MISMATCH in facts.nvidia.words.lower())


def _nothing(facts: NodeFacts) -> str:
    """Why no card is listed, as far as it shows."""
    if facts.nvidia is None:
        return "nvidia-smi lists no card"
    said = facts.nvidia.words or "nvidia-smi lists no card"
    return said if facts.nvidia.plugged is None else f"{said}\n{facts.nvidia.plugged} NVIDIA cards on the PCI bus"
