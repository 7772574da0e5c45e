"""Plain-text views that need no terminal library: errors, findings, plans. Pure: values in, lines out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from clusterft.errors import Blocked, ClusterftError, InvalidFile, RunFailed, UsageError
from clusterft.findings import Finding
from clusterft.plan import LaunchPlan

_MARKS = {"fail": "✗", "warn": "!", "unknown": "?", "skipped": "·", "ok": "✓"}


def error(problem: ClusterftError) -> Iterator[str]:
    """What is wrong, where, and what mends it."""
    if isinstance(problem, InvalidFile):
        for each in problem.problems:
            yield from _mistake(each)
        if len(problem.problems) > 1:
            yield f"{len(problem.problems)} mistakes; nothing was started"
        return
    if isinstance(problem, UsageError):
        yield from _mistake(problem)
        return
    if isinstance(problem, Blocked):
        yield from findings(problem.findings, effect=problem.effect)
    where = f"{problem.where}: " if problem.where else ""
    label = f" ({problem.failure})" if isinstance(problem, RunFailed) else ""
    yield f"✗ {where}{problem.what}{label}"
    if problem.remedy:
        yield f"  {problem.remedy}"


def _mistake(problem: UsageError) -> Iterator[str]:
    yield f"{problem.where}  {problem.what}" if problem.where else problem.what
    if problem.excerpt:
        yield problem.excerpt
    if problem.remedy:
        yield f"  {problem.remedy}"


def findings(found: tuple[Finding, ...], *, effect: str = "blocks training") -> Iterator[str]:
    """The findings above ok, those that block first; `effect` is what a failed check means here."""
    order = {"fail": 0, "warn": 1, "unknown": 2, "skipped": 3, "ok": 4}
    effects = {"fail": effect, "warn": "warning", "unknown": "not readable"}
    for finding in sorted(found, key=lambda f: order[f.status]):
        nodes = " ".join(finding.nodes)
        yield f"{_MARKS[finding.status]} {finding.id:<22} {nodes:<24} {effects.get(finding.status, '')}".rstrip()
        yield f"  {finding.summary}"
        for line in finding.evidence.splitlines():
            yield f"    {line}"
        if finding.cause:
            yield f"  because {finding.cause}"
        for step in finding.fix:
            yield f"  fix:  {step}"


def plan(planned: LaunchPlan) -> Iterator[str]:
    """What would be put on each node and started there."""
    count = f"{planned.world_size} ranks on {len(planned.nodes)} nodes"
    yield f"run {planned.run} · {count} of cluster {planned.cluster}"
    yield f"  runtime {planned.runtime}, launcher {planned.launcher}, rendezvous {planned.address}:{planned.port}"
    yield f"  results in {planned.places.dir}"
    if planned.secrets:
        yield "  secrets " + ", ".join(f"{name}=***" for name in planned.secrets)
    for node in planned.nodes:
        yield ""
        interface = f" over {node.interface}" if node.interface else ""
        yield f"node {node.node.name} · machine_rank {node.machine_rank} · {node.address}{interface}"
        yield "  command  " + shlex.join(node.assignment.argv)
        for name, value in sorted(node.assignment.env.items()):
            yield f"  env      {name}={value}"
        for file in node.files:
            yield f"  file     {file.path}  ({file.mode:o})"
            if file.path.name == "accelerate.yaml":
                yield from (f"           | {line}" for line in file.text.splitlines())
