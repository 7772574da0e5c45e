"""LaunchPlan: everything that will be put on each node and started there, decided before anything is touched.

Pure: no clock, no randomness, no environment; what depends on those comes in through Request. Holds the names of
secrets, never their values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from clusterft import places
from clusterft.checks import Survey
from clusterft.errors import ClusterftError, UsageError
from clusterft.hosts import Node
from clusterft.places import NodePlaces, RunPlaces
from clusterft.plan import container, engine, environment, network, program
from clusterft.plan.container import ContainerPlan, Labels, Person
from clusterft.plan.part import Part, Runtime
from clusterft.plan.program import Prep
from clusterft.plan.summary import summary
from clusterft.spec import JobSpec
from clusterft_trainer import assignment
from clusterft_trainer.assignment import Assignment, Member, Survival, Term

_PORTS = 64  # for the rendezvous of one attempt after the other; as many again for the supervisors' own meeting
_STOP_SECONDS = 60  # when an engine shuts down: time to reach the next step's end and save
_MASK = "***"


@dataclass(frozen=True, slots=True)
class Request:
    """What a plan is made from, beside the job and the survey."""

    run: str
    roots: Mapping[str, PurePosixPath]  # node -> its ~/.clusterft, absolute
    python: str | None  # that of plain processes, where the job names none
    token: str = field(repr=False)  # by which the supervisors of the run know each other
    tag: str | None = None  # what every node's engine calls the image
    code: str | None = None  # digest of a script's folder
    first_attempt: int = 0  # a resumed run counts on
    preflight: bool = True
    unset: tuple[str, ...] = ()  # secrets that have no value where the command was typed
    prep: Prep | None = None  # data is prepared, and nothing trained
    ports: tuple[int, int] | None = None  # first_port and gang_port of a gang that is there, which a spare joins


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to be put where a part lies, before the start."""

    path: PurePosixPath
    text: str = field(repr=False)
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node's part."""

    node: Node
    machine_rank: int
    address: str
    interface: str | None
    python: str
    directory: PurePosixPath  # of this run: in the container, or on the node
    files: tuple[PlannedFile, ...]
    assignment: Assignment = field(repr=False)
    container: ContainerPlan | None = None

    @property
    def part(self) -> Part:
        """How it is addressed once it runs."""
        runtime: Runtime = "docker" if self.container else "process"
        return Part(self.node.name, self.machine_rank, runtime, str(self.directory), self.python)

    @property
    def first(self) -> Term:
        """The first attempt, if all nodes take part and its port is free."""
        told = self.assignment
        return assignment.term(
            told.members, told.machine_rank, told.first_attempt, told.first_port, str(self.directory)
        )

    @property
    def command(self) -> tuple[str, ...]:
        """What the first attempt starts."""
        return tuple(self.first.fill(word) for word in self.assignment.argv)

    @property
    def env(self) -> dict[str, str]:
        """What the first attempt's ranks find in their environment, but for secrets."""
        return {name: self.first.fill(value) for name, value in self.assignment.env.items()}

    @property
    def attempt_files(self) -> tuple[PlannedFile, ...]:
        """What the first attempt finds beside it."""
        here = PurePosixPath(self.first.here)
        return tuple(
            PlannedFile(here / name, self.first.fill(text)) for name, text in self.assignment.files.items()
        )

    def supervisor(self, verb: str, *rest: str) -> tuple[str, ...]:
        """The command that runs, starts, follows or stops this node's part."""
        return self.part.supervisor(verb, *rest)


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """The whole start of one run."""

    run: str
    cluster: str
    summary: str  # of the job, in a line
    config_digest: str
    runtime: Runtime
    launcher: str
    rendezvous: str
    address: str  # of the head, as the others know it
    port: int  # the first that the rendezvous tries
    gang_port: int  # where the supervisors meet
    world_size: int
    places: RunPlaces
    secrets: tuple[str, ...]
    unset: tuple[str, ...]  # of the secrets
    nodes: tuple[NodePlan, ...]
    prep: Prep | None = None  # None: it trains

    @property
    def head(self) -> NodePlan:
        """The node of rank 0."""
        return self.nodes[0]

    @property
    def parts(self) -> tuple[Part, ...]:
        """How each node's part is addressed once it runs."""
        return tuple(node.part for node in self.nodes)

    @property
    def survival(self) -> Survival:
        """How the gang lives through what happens to it."""
        return self.head.assignment.survival

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `--dry-run --json`, and the plan inside run.json: as the first attempt fills it in."""
        return {
            "run": self.run,
            "cluster": self.cluster,
            "job": self.summary,
            **({"prep": self.prep.to_dict()} if self.prep else {}),
            "config_digest": self.config_digest,
            "runtime": self.runtime,
            "launcher": self.launcher,
            "rendezvous": self.rendezvous,
            "master": {"address": self.address, "port": self.port},
            "gang": {"address": self.address, "port": self.gang_port},
            "world_size": self.world_size,
            "run_dir": str(self.places.dir),
            "first_attempt": self.head.assignment.first_attempt,
            "preflight": self.head.assignment.preflight,
            "survival": asdict(self.survival),
            "secrets": dict.fromkeys(self.secrets, _MASK),
            "unset_secrets": list(self.unset),
            "nodes": [self._node_dict(node) for node in self.nodes],
        }

    def _node_dict(self, node: NodePlan) -> dict[str, Any]:
        token = node.assignment.token
        return {
            "node": node.node.name,
            "machine_rank": node.machine_rank,
            "slots": node.node.slots,
            "transport": node.node.transport,
            "address": node.address,
            "interface": node.interface,
            "directory": str(node.directory),
            "python": node.python,
            "container": node.container and {"name": node.container.name, "request": node.container.to_dict()},
            "argv": list(node.command),
            "env": node.env | dict.fromkeys(self.secrets, _MASK),
            "files": {
                str(file.path): file.text.replace(token, _MASK) for file in (*node.files, *node.attempt_files)
            },
        }


@dataclass(frozen=True, slots=True)
class _Gang:
    """What all nodes' parts have in common."""

    spec: JobSpec
    survey: Survey
    request: Request
    run: RunPlaces
    members: tuple[Member, ...]
    addresses: Mapping[str, network.Address]
    first_port: int
    gang_port: int
    digest: str


def build(spec: JobSpec, survey: Survey, request: Request) -> LaunchPlan:
    """Decide the start of one run; UsageError when the job cannot run on these nodes."""
    nodes = survey.cluster.active
    _suits(spec, survey, request)
    addresses = network.solve(survey)
    first_port, gang_port = request.ports or _ports(spec, survey)
    gang = _Gang(
        spec=spec,
        survey=survey,
        request=request,
        run=RunPlaces(PurePosixPath(spec.shared), request.run),
        members=tuple(
            Member(node.name, rank, node.slots, addresses[node.name].ip) for rank, node in enumerate(nodes)
        ),
        addresses=addresses,
        first_port=first_port,
        gang_port=gang_port,
        digest=config_digest(spec, request.code),
    )
    world = sum(node.slots for node in nodes)
    return LaunchPlan(
        run=request.run,
        cluster=survey.cluster.name,
        summary=summary(spec, world, request.prep),
        config_digest=gang.digest,
        runtime=spec.runtime,
        launcher=program.STARTER if request.prep else spec.launcher,
        rendezvous="none" if request.prep else spec.rendezvous,
        address=gang.members[0].address,
        port=gang.first_port,
        gang_port=gang.gang_port,
        world_size=world,
        places=gang.run,
        secrets=spec.secrets,
        unset=request.unset,
        nodes=tuple(_node_plan(gang, rank) for rank in range(len(nodes))),
        prep=request.prep,
    )


def _ports(spec: JobSpec, survey: Survey) -> tuple[int, int]:
    taken = survey.facts[survey.cluster.active[0].name].listening
    return network.free_port(spec.port, taken, _PORTS), network.free_port(spec.port + _PORTS, taken, _PORTS)


def config_digest(spec: JobSpec, code: str | None) -> str:
    """Of what a run computes, whatever it is called and wherever it runs."""
    program = spec.model_dump(mode="json", include={"train", "script"})
    if spec.script:
        program["script"] |= {"path": str(spec.script.inside), "code": code}
    return hashlib.sha256(json.dumps(program, sort_keys=True).encode()).hexdigest()[:16]


def _suits(spec: JobSpec, survey: Survey, request: Request) -> None:
    if not request.token:
        raise ClusterftError("a plan was asked for without the token of its gang")
    nodes, where = survey.cluster.active, str(survey.cluster.path)
    if request.prep is None:
        engine.fits(spec, nodes, where)
    if request.prep is None and spec.min_nodes is not None and spec.min_nodes > len(nodes):
        raise UsageError(
            f"min_nodes is {spec.min_nodes}, and the hostfile has {len(nodes)} active nodes",
            where=where,
            remedy=f"min_nodes: {len(nodes)}   or fewer",
        )
    if spec.runtime == "docker" and request.tag is None:
        raise UsageError(f"cluster {survey.cluster.name} has no image yet", remedy="run: clusterft up")


def _node_plan(gang: _Gang, rank: int) -> NodePlan:
    spec, node = gang.spec, gang.survey.cluster.active[rank]
    contained = spec.runtime == "docker"
    own = NodePlaces(gang.request.roots[node.name], gang.survey.cluster.name, node.name)
    directory = places.CONTAINER if contained else own.run(gang.request.run)
    python = _python(gang)
    site = environment.Site(node, gang.addresses[node.name], python, own, gang.run)
    told = _assignment(gang, rank, site, directory)
    part = Part(node.name, rank, spec.runtime, str(directory), python)
    return NodePlan(
        node=node,
        machine_rank=rank,
        address=site.address.ip,
        interface=site.address.interface,
        python=python,
        directory=directory,
        files=_files(spec, told, directory),
        assignment=told,
        container=_container(gang, rank, part) if contained else None,
    )


def _python(gang: _Gang) -> str:
    given = gang.spec.python or ("python3" if gang.spec.runtime == "docker" else gang.request.python)
    if given is None:
        raise ClusterftError("a plan of plain processes was asked for without a python")
    return given


def _files(spec: JobSpec, told: Assignment, directory: PurePosixPath) -> tuple[PlannedFile, ...]:
    files = (PlannedFile(directory / "assignment.json", told.to_json(), 0o600),)
    if spec.train is None:
        return files
    config = json.dumps(spec.train.model_dump(mode="json"), indent=2) + "\n"
    return (*files, PlannedFile(directory / "config.json", config))


def _assignment(gang: _Gang, rank: int, site: environment.Site, directory: PurePosixPath) -> Assignment:
    spec, request, node = gang.spec, gang.request, site.node
    ranks = _program(gang, rank, site, directory)
    contained = spec.runtime == "docker"
    return Assignment(
        run=request.run,
        cluster=gang.survey.cluster.name,
        node=node.name,
        machine_rank=rank,
        slots=node.slots,
        members=gang.members,
        gang_port=gang.gang_port,
        token=request.token,
        first_port=gang.first_port,
        ports=spec.port + _PORTS - gang.first_port,
        argv=ranks.argv,
        env=environment.ranks(spec, gang.survey, site),
        work_dir=str(ranks.starts_in),
        run_dir=str(gang.run.dir),
        log_dir=str(directory / "logs"),
        lock_file=None if contained else str(site.places.lock),
        secrets_file=str(directory / "secrets.json") if spec.secrets else None,
        files=ranks.files,
        kind=ranks.kind,
        contained=contained,
        preflight=request.preflight,
        first_attempt=request.first_attempt,
        survival=Survival(
            restarts=spec.restarts,
            min_nodes=1 if request.prep else spec.min_nodes,
            hang_after=spec.hang_after,
            first_step_after=spec.first_step_after,
            patience=spec.patience,
            stagger=spec.stagger_seconds,
        ),
    )


def _program(gang: _Gang, rank: int, site: environment.Site, directory: PurePosixPath) -> program.Program:
    spec, request, slots = gang.spec, gang.request, site.node.slots
    where = program.Site(site.python, directory, gang.run, request.code)
    if request.prep:
        return program.preparing(request.prep, where, slots)
    return program.of(spec, engine.Seat(request.run, slots, site.address.ip, head=rank == 0), where)


def _container(gang: _Gang, rank: int, part: Part) -> ContainerPlan:
    spec, survey, node = gang.spec, gang.survey, gang.survey.cluster.active[rank]
    facts = survey.facts[node.name]
    who: Person = container.person(survey.facts[survey.cluster.active[0].name], spec.user)
    return ContainerPlan(
        name=container.name(node),
        image=str(gang.request.tag),
        command=part.supervisor("run"),
        labels=Labels(
            cluster=survey.cluster.name,
            run=gang.request.run,
            node=node.name,
            machine_rank=rank,
            owner=facts.uid or 0,
            attempt=gang.request.first_attempt,
            config_digest=gang.digest,
        ),
        person=who,
        gpus=container.cards(node, facts, spec.resources.device),
        binds=spec.binds,
        propagation=container.propagation(facts, spec.binds),
        devices=container.devices(facts),
        env={"HOME": str(container.HOME), "USER": who.name, "LANG": "C.UTF-8"},
        shm=spec.resources.shm,
        restart="on-failure",
        stop_seconds=_STOP_SECONDS,
    )
