"""From a job and connected nodes to a plan that may be carried out: surveyed, judged, planned.

The same for a run's first start, for one that goes on (`resume`) and for one whose head was lost. Refuses what a
check blocks; who goes without preflight still gets no plan for a node that nobody has seen.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from clusterft import checks, facts, places, plan
from clusterft.apply import foresight, sameness, settings
from clusterft.apply.foresight import Site
from clusterft.checks import Survey
from clusterft.engine import Engine
from clusterft.errors import Blocked, ClusterftError
from clusterft.findings import Finding, blockers
from clusterft.fleet import Fleet
from clusterft.hosts import Node
from clusterft.plan import LaunchPlan, Prep
from clusterft.runtime import docker
from clusterft.spec import JobSpec

_SHARED_BYTES = 128 * 2**20  # until the trainer's estimate says more
_LOCAL_BYTES = 64 * 2**20  # logs and files of a run


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be planned, beside the job."""

    run: str
    code: str | None = None  # digest of a script's folder
    first_attempt: int = 0
    preflight: bool = True
    unset: tuple[str, ...] = ()  # secrets without a value here
    tag: str | None = None  # the image that the run has already; None: what the last `up` brought
    prep: Prep | None = None  # data is prepared, and nothing trained


@dataclass(frozen=True, slots=True)
class Prepared:
    """What looking, judging and planning came to."""

    plan: LaunchPlan
    found: tuple[Finding, ...]
    offsets: dict[str, float]  # node -> seconds that its clock is ahead of the controller's


def fresh_id(name: str) -> str:
    """The id of a new run: its name, the minute, and what tells it from another one of that minute."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M')}-{secrets.token_hex(2)}"


def prepare(job: JobSpec, fleet: Fleet, wanted: Wanted, nodes: Iterable[Node]) -> Prepared:
    """A plan of these nodes in this order; Blocked where a check says no."""
    survey = look(job, fleet, nodes)
    contained = job.runtime == "docker"
    demand = checks.Demand(job.resources.device, str(job.shared), _SHARED_BYTES, _LOCAL_BYTES, contained)
    found = checks.judge(survey, demand)
    _stop_at(found, survey, preflight=wanted.preflight)
    known = settings.load(settings.cluster_places(survey.cluster.name)) if contained else None
    tag = wanted.tag or (known.tag if known else None)
    if contained and tag:
        found += sameness.gate(survey, fleet, tag, known)
        _stop_at(found, survey, preflight=wanted.preflight)
    request = plan.Request(
        run=wanted.run,
        roots={node.name: _root(node, survey) for node in survey.cluster.active},
        token=secrets.token_hex(16),
        python=job.python or sys.executable,
        tag=tag if contained else None,
        code=wanted.code,
        first_attempt=wanted.first_attempt,
        preflight=wanted.preflight,
        unset=wanted.unset,
        prep=wanted.prep,
    )
    planned = plan.build(job, survey, request)
    found += () if wanted.prep else _foreseen(job, survey, fleet, planned)
    _stop_at(found, survey, preflight=wanted.preflight)
    offsets = {name: seen.clock_offset or 0.0 for name, seen in survey.facts.items()}
    return Prepared(planned, found, offsets)


def look(job: JobSpec, fleet: Fleet, nodes: Iterable[Node]) -> Survey:
    """The facts of these nodes, as if they were all of the cluster."""
    chosen = tuple(replace(node, spare=False) for node in nodes)
    names = {node.name for node in chosen}
    shared = str(job.shared)
    whole = fleet.survey(lambda node: (shared, _home(node)), names)
    return Survey(
        replace(whole.cluster, nodes=chosen),
        {name: seen for name, seen in whole.facts.items() if name in names},
        tuple(miss for miss in whole.unreached if miss.node in names),
        whole.contacts,
    )


def _stop_at(found: tuple[Finding, ...], survey: Survey, *, preflight: bool) -> None:
    blocking = blockers(found)
    if not blocking or not (preflight or survey.unreached):
        return
    count = len(blocking)
    raise Blocked(f"{count} check{'s' * (count > 1)} block{'s' * (count == 1)}; nothing was started", found)


def _foreseen(job: JobSpec, survey: Survey, fleet: Fleet, planned: LaunchPlan) -> tuple[Finding, ...]:
    """What the trainer's own estimate rules out, where slots are cards."""
    box, head = planned.head.container, planned.head.node
    gpus = survey.facts[head.name].gpus
    if job.train is None or job.resources.device != "cuda" or box is None or not gpus:
        return ()
    config = next(file.text for file in planned.head.files if file.path.name == "config.json")
    site = Site(len(planned.nodes), max(node.node.slots for node in planned.nodes), gpus[0].name)
    remote = fleet.remotes[head.name]
    with Engine(remote, docker.command(remote)) as engine:
        seen = foresight.look(engine, box, planned.head.python, config, site)
    return (seen,) if isinstance(seen, Finding) else checks.judge_foreseen(survey, seen, str(job.shared))


def _home(node: Node) -> str:
    """Where the node's own files go, for the question of room."""
    return str(places.controller_home()) if node.transport == "local" else facts.HOME


def _root(node: Node, survey: Survey) -> PurePosixPath:
    if node.transport == "local":
        return PurePosixPath(places.controller_home())
    home = survey.facts[node.name].home
    if not home:
        raise ClusterftError(f"the home directory of {node.name} could not be read")
    return PurePosixPath(home) / ".clusterft"
