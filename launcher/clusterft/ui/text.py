"""Plain-text views that need no terminal library: errors, findings, plans. Pure: values in, lines out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from clusterft import commands
from clusterft.errors import Blocked, ClusterftError, InvalidFile, RunFailed, UsageError
from clusterft.findings import Finding
from clusterft.plan import LaunchPlan, NodePlan
from clusterft.plan.container import ContainerPlan
from clusterft.spec.amounts import told

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
        yield f"  {commands.shown(problem.remedy)}"


def _mistake(problem: UsageError) -> Iterator[str]:
    yield f"{problem.where}  {problem.what}" if problem.where else problem.what
    if problem.excerpt:
        yield problem.excerpt
    if problem.remedy:
        yield f"  {commands.shown(problem.remedy)}"


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
            yield f"  fix:  {commands.shown(step)}"


def plan(planned: LaunchPlan) -> Iterator[str]:
    """What would be put on each node and started there, as the first attempt fills it in."""
    count = f"{planned.world_size} ranks on {len(planned.nodes)} nodes"
    yield f"run {planned.run} · {count} of cluster {planned.cluster}"
    yield f"  job       {planned.summary}"
    if planned.prep:
        yield f"  runtime {planned.runtime}; ranks meet nobody, and claim their work in {planned.places.shared}"
    else:
        meeting = f"rendezvous {planned.rendezvous} at {planned.address}:{planned.port}"
        yield f"  runtime {planned.runtime}, launcher {planned.launcher}, {meeting}"
    yield f"  supervisors meet at {planned.address}:{planned.gang_port}; {_survival(planned)}"
    yield f"  results in {planned.places.dir}"
    for name in planned.secrets:
        yield f"  secret    {name}=***" + "   (it has no value in this shell)" * (name in planned.unset)
    for node in planned.nodes:
        yield ""
        yield from _node(planned, node)


def _survival(planned: LaunchPlan) -> str:
    known = planned.survival
    enough = "1 node is enough" if known.min_nodes == 1 else f"{known.min_nodes} nodes are enough"
    nodes = "all nodes are needed" if known.min_nodes is None else enough
    return f"{known.restarts} restarts, {nodes}, no step for {told(known.hang_after)} is a hang"


def _node(planned: LaunchPlan, node: NodePlan) -> Iterator[str]:
    interface = f" over {node.interface}" if node.interface else ""
    slots = f"{node.node.slots} slot{'s' * (node.node.slots != 1)}"
    yield f"node {node.node.name} · machine_rank {node.machine_rank} · {slots} · {node.address}{interface}"
    if node.container:
        yield from _container(node.container)
    yield "  command   " + shlex.join(node.command)
    yield f"  starts in {node.assignment.work_dir}"
    for name, value in sorted((node.env | dict.fromkeys(planned.secrets, "***")).items()):
        yield f"  env       {name}={value}"
    for file in (*node.files, *node.attempt_files):
        yield f"  file      {file.path}  ({file.mode:o})"
        if file.path.name == "accelerate.yaml":
            yield from (f"            | {line}" for line in file.text.splitlines())


def _container(box: ContainerPlan) -> Iterator[str]:
    yield f"  container {box.name} of image {box.image}, as {box.person} ({box.person.name})"
    shm = "the node's" if box.shm is None else f"{box.shm / 1e9:g} GB of its own"
    yield f"  engine    restart {box.restart}, {box.stop_seconds} s to stop, shared memory {shm}, host network"
    for mount in box.binds:
        yield f"  mount     {mount.path}" + "   (read-only)" * mount.read_only
    if box.gpus:
        yield "  cards     " + ", ".join(box.gpus)
    for device in box.devices:
        yield f"  device    {device}"
