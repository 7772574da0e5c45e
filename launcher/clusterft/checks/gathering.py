"""Findings of single nodes -> one finding per reason, with all its nodes. Owns no check; loses no evidence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from clusterft.findings import Finding


def gathered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings that differ by node and evidence alone become one, in the order in which reasons first came up."""
    groups: dict[Finding, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(replace(finding, nodes=(), evidence=""), []).append(finding)
    return tuple(_one(group) for group in groups.values())


def blocked_nodes(findings: Iterable[Finding]) -> frozenset[str]:
    """The nodes that cannot go on; a finding blocks those that it names, and no others."""
    return frozenset(node for finding in findings if finding.status == "fail" for node in finding.nodes)


def _one(group: list[Finding]) -> Finding:
    first, *others = group
    if not others:
        return first
    nodes = tuple(dict.fromkeys(node for finding in group for node in finding.nodes))
    said = {finding.evidence for finding in group}
    lines = (f"{', '.join(finding.nodes)}: {finding.evidence}" for finding in group if finding.evidence)
    return replace(first, nodes=nodes, evidence=first.evidence if len(said) == 1 else "\n".join(lines))
