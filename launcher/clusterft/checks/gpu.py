"""Checks of the accelerators of each node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from clusterft.checks.survey import Survey
from clusterft.facts import NodeFacts
from clusterft.findings import Finding
from clusterft.hosts import Node

_LOOK = ("sudo dmesg | grep -i nvrm   (why the driver does not show all cards)",)
_MISMATCH = "driver/library version mismatch"

_WITHOUT_CARDS = ("or use no cards: resources: {device: cpu} in the job (clusterft up --job job.yaml)",)


def count(survey: Survey) -> Iterator[Finding]:
    """gpu.count: fewer cards than slots, named cards that are absent, or an unclear choice among unlike ones."""
    for node in survey.cluster.active:
        facts = survey.facts.get(node.name)
        if facts is None or _mismatched(facts):
            continue  # what the driver hides cannot be counted
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
            evidence=_seen(facts),
            fix=(
                *(_LOOK if _hidden(facts) else ()),
                f"correct slots= or gpus= in {survey.cluster.path}",
                *_WITHOUT_CARDS[bool(facts.gpus) :],
            ),
            blast_radius="the hostfile",
        )


def mismatch(survey: Survey) -> Iterator[Finding]:
    """gpu.mismatch: the driver's files were replaced under a kernel that still runs the old module."""
    for name, facts in survey.facts.items():
        if facts.nvidia and _mismatched(facts):
            yield upgraded(name, f"{facts.nvidia.words}\nloaded module: {facts.nvidia.module or 'unknown'}")


def upgraded(node: str, evidence: str) -> Finding:
    """gpu.mismatch, however it came to light."""
    return Finding(
        id="gpu.mismatch",
        status="fail",
        nodes=(node,),
        summary="the NVIDIA driver was upgraded, and the old module still runs",
        evidence=evidence,
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


def _seen(facts: NodeFacts) -> str:
    """The cards that are listed, and why others are not, as far as it shows."""
    lines = [f"card {card.index}: {card.name}, {card.memory or 'unknown'} MiB" for card in facts.gpus]
    if facts.nvidia and facts.nvidia.words:
        lines.append(facts.nvidia.words)
    if facts.nvidia and _hidden(facts):
        lines.append(f"NVIDIA cards on the PCI bus: {facts.nvidia.plugged}")
    return "\n".join(lines) or "nvidia-smi lists no card"


def _hidden(facts: NodeFacts) -> bool:
    """Whether cards are plugged in that the driver does not show."""
    return bool(facts.nvidia and facts.nvidia.plugged and facts.nvidia.plugged > len(facts.gpus))
