"""Checks of the accelerators of each node."""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks.survey import Survey
from clusterft.findings import Finding


def count(survey: Survey) -> Iterator[Finding]:
    """gpu.count: fewer cards than slots, named cards that are absent, or an unclear choice among unlike ones."""
    for node in survey.cluster.active:
        facts = survey.facts.get(node.name)
        if facts is None:
            continue
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
            evidence="\n".join(have) or "nvidia-smi lists no card",
            fix=(f"correct slots= or gpus= of {node.name} in {survey.cluster.path}",),
            blast_radius="the hostfile",
        )
