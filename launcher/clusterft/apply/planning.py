"""From a job and connected nodes to a plan that may be carried out: surveyed, judged, planned.

The same for a run's first start, for one that goes on (`resume`) and for one whose head was lost. Refuses what a
check blocks; who goes without preflight still gets no plan for a node that nobody has seen.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from clusterft import checks, facts, places, plan
from clusterft.apply import foresight, occupancy, sameness, settings
from clusterft.apply.foresight import Site
from clusterft.checks import RunRoom, Survey, run_room
from clusterft.checks.examination import Examination
from clusterft.checks.examination import Wanted as Asked
from clusterft.checks.run_room import Sizes
from clusterft.engine import Engine
from clusterft.errors import Blocked, ClusterftError
from clusterft.findings import Finding, blockers
from clusterft.fleet import Fleet
from clusterft.hosts import Node
from clusterft.plan import LaunchPlan, Prep, container
from clusterft.probing import confines, health, meeting, model, nearby, sources
from clusterft.remote import Unreachable
from clusterft.runtime import docker
from clusterft.spec import JobSpec
from clusterft_trainer.config import TrainConfig

_SHARED_BYTES = 128 * 2**20  # of any run; what its checkpoints take is added up by `run_room`
_LOCAL_BYTES = 64 * 2**20  # logs and files of a run
_DU = 'cd -- "$1" && for d in checkpoints export; do [ ! -d "$d" ] || du -sk "$d" | cut -f 1; done'
_DU_SECONDS = 20.0


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
    starts: bool = False  # it is about to be started: its nodes must be free, and reach where it will meet


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
    found, writing = _judged(job, fleet, wanted, survey)
    if wanted.starts:  # a lock is no check that could be left out: the start would fail, and leave a run behind
        found += occupancy.found(fleet, survey.cluster, wanted.run, contained=contained)
        _stop_at(found, survey, preflight=True)
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
    if wanted.starts and wanted.preflight:
        found += _met(job, fleet, survey, planned)
        _stop_at(found, survey, preflight=True)
    found += _foreseen(job, survey, fleet, planned, writing) if writing else ()
    _stop_at(found, survey, preflight=wanted.preflight)
    offsets = {name: seen.clock_offset or 0.0 for name, seen in survey.facts.items()}
    return Prepared(planned, found, offsets)


@dataclass(frozen=True, slots=True)
class _Writing:
    """What our trainer will write into the shared dir in this run."""

    train: TrainConfig
    survey: Survey
    shared: str
    there: int = 0  # bytes that the run's earlier attempts have left
    weights: Mapping[str, int] | None = None  # of the model, by part, where its files could be read

    def room(self, exact: Sizes | None = None) -> RunRoom:
        """By settings alone, or by the trainer's estimate."""
        slots = sum(node.slots for node in self.survey.cluster.active)
        return run_room.of(self.train, slots, exact, self.there, self.weights)

    def judged(self, exact: Sizes | None = None) -> tuple[Finding, ...]:
        """Against what is free."""
        return checks.judge_run_room(self.survey, self.shared, self.room(exact))


def _judged(
    job: JobSpec, fleet: Fleet, wanted: Wanted, survey: Survey
) -> tuple[tuple[Finding, ...], _Writing | None]:
    """What facts alone say; Blocked where they say no."""
    shared, contained = str(job.shared), job.runtime == "docker"
    writing = None if wanted.prep or job.train is None else _Writing(job.train, survey, shared)
    demand = checks.Demand(job.resources.device, shared, _SHARED_BYTES, _LOCAL_BYTES, contained=contained)
    demand = replace(demand, shared_at=job.where("shared"))
    if writing:
        demand = replace(demand, shared_files=writing.room().files)
    found = checks.judge(survey, demand)
    _stop_at(found, survey, preflight=wanted.preflight)
    if writing:
        head = fleet.remotes[next(node.name for node in survey.cluster.active if node.name in survey.facts)]
        writing = replace(writing, weights=model.weights(head, writing.train.model))
        if wanted.first_attempt:
            writing = replace(writing, there=_left(fleet, survey, job.shared / wanted.run))
        _stop_at(found + writing.judged(), survey, preflight=wanted.preflight)
    if job.local_cache:
        user = container.person(survey.facts[survey.cluster.active[0].name], job.user) if contained else None
        owner = (user.uid, user.gid) if user else None
        found += checks.judge_nearby(job, survey, nearby.look(fleet, job), owner)
        _stop_at(found, survey, preflight=wanted.preflight)
    # A run that goes on has its pictures' names in its own index, and perhaps all of them in a cache.
    if wanted.preflight and (wanted.prep or not wanted.first_attempt):
        named = sources.named(fleet, job, survey.cluster.active[0].name)
        found += checks.judge_sources(job, survey, sources.look(fleet, job), named)
        _stop_at(found, survey, preflight=wanted.preflight)
    return found, writing


def _met(job: JobSpec, fleet: Fleet, survey: Survey, planned: LaunchPlan) -> tuple[Finding, ...]:
    """Whether all nodes reach the head where supervisors and ranks will meet; firewalls are asked only if not."""
    ports = (planned.gang_port,) if planned.prep else (planned.port, planned.gang_port)
    box, device = planned.head.container, job.resources.device
    tag = box.image if box else None
    asked = Asked(device, box is not None, str(job.shared), port=job.port, tag=tag, job=job)
    links = meeting.look(fleet, survey, asked, ports)
    if links is None or all(one.reached and not one.stranger for one in links.dials):
        return ()
    told = health.ask(fleet, asked)
    known = {name: one for name, one in told.items() if name in survey.facts and not isinstance(one, Unreachable)}
    return checks.judge_meeting(Examination(asked, survey, health=known, links=links))


def _left(fleet: Fleet, survey: Survey, run_dir: Path) -> int:
    """Bytes of checkpoints and exports that a run has there already; what cannot be read counts as none."""
    head = next(node.name for node in survey.cluster.active if node.name in survey.facts)
    argv = ("sh", "-c", _DU, "sh", str(run_dir))
    words = fleet.remotes[head].run(argv, seconds=_DU_SECONDS).out.split()
    return 1024 * sum(int(word) for word in words if word.isdecimal())


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


def _foreseen(
    job: JobSpec, survey: Survey, fleet: Fleet, planned: LaunchPlan, writing: _Writing
) -> tuple[Finding, ...]:
    """What the trainer's own estimate rules out, where slots are cards; else what settings say of room."""
    box, head = planned.head.container, planned.head.node
    gpus = survey.facts[head.name].gpus
    if job.resources.device != "cuda" or box is None or not gpus:
        return writing.judged()
    config = next(file.text for file in planned.head.files if file.path.name == "config.json")
    site = Site(len(planned.nodes), max(node.node.slots for node in planned.nodes), gpus[0].name)
    remote = fleet.remotes[head.name]
    with Engine(remote, docker.command(remote)) as engine:
        seen = foresight.look(engine, box, planned.head.python, config, site)
    if isinstance(seen, Finding):
        return (seen, *writing.judged())
    limits = confines.look(fleet, contained=True)
    return checks.judge_foreseen(survey, seen, limits) + writing.judged(Sizes(seen.checkpoint, seen.export))


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
