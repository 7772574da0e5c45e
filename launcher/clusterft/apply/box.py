"""`open` and its end: one idle container on every node, alike, each with an sshd that lets the others in.

Owns the start as one (all up, or none left) and the proof that every container reaches every other one by name.
The same containers, files and keys as a run has; only nobody has started a launcher yet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from clusterft.apply import record, settings
from clusterft.apply.settings import Settings
from clusterft.board import Roster
from clusterft.checks import Survey, controller
from clusterft.checks.gathering import gathered
from clusterft.engine import Engine
from clusterft.errors import Blocked, UsageError
from clusterft.events import Progress, Settled
from clusterft.facts import NodeFacts
from clusterft.findings import Finding, Outcome
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster
from clusterft.plan import container, network
from clusterft.plan.container import ContainerPlan, Labels, Person
from clusterft.provision import worlds
from clusterft.provision.worlds import Box, World
from clusterft.remote import Asker, Remote, Unreachable
from clusterft.runtime import docker
from clusterft.runtime.docker import Placed
from clusterft.runtime.process import CannotStart
from clusterft.spec import Mount, parse_mount

STAGES = ("reach", "container", "ssh")
_FIRST_PORT = 22022
_SSHD = ("/usr/sbin/sshd", "-D", "-e", "-f", str(worlds.SSHD_CONFIG))
# Plain `ssh NAME`, as a launcher says it, to all at once. A peer's sshd may have started just now: only a refusal
# is worth another try.
_GREET = (
    'for peer in "$@"; do ( n=0; while :; do n=$((n + 1)); '
    'said=$(ssh -n -o ConnectTimeout=5 "$peer" printf %s ok 2>&1) && [ "$said" = ok ] && exit 0; '
    "case $said in *efused*) [ $n -lt 15 ] && sleep 0.3 && continue ;; esac; "
    'printf \'%s: %s\\n\' "$peer" "$said"; exit 0; done ) & done; wait'
)
_GREET_SECONDS = 90.0

Show = Callable[[Progress | Settled, Roster], None]


@dataclass(frozen=True, slots=True)
class Opened:
    """A gang of idle containers."""

    run: str
    nodes: tuple[str, ...]
    port: int
    findings: tuple[Finding, ...] = field(default=())


class Opening:
    """One `open`."""

    def __init__(
        self, cluster: Cluster, run: str, mounts: tuple[str, ...], show: Show, asker: Asker | None = None
    ) -> None:
        self._cluster = cluster
        self._run = run
        self._mounts = tuple(_mountable(text) for text in mounts)
        self._asker = asker
        self._show = show
        self._where = settings.cluster_places(cluster.name)
        self._known = _brought_up(cluster)
        self._turn = threading.Lock()
        self._made: dict[str, tuple[Engine, str]] = {}
        self.roster = Roster(tuple(node.name for node in cluster.active), STAGES)

    def run(self) -> Opened:
        """Create, start, prove; when one node cannot, nothing is left on the others."""
        with Fleet(self._cluster, self._where.known_hosts, key=self._where.key, asker=self._asker) as fleet:
            survey = self._survey(fleet)
            person = container.person(survey.facts[self._cluster.active[0].name])
            port = network.free_port(_FIRST_PORT, _listening(survey))
            record.save_box(self._run, self._cluster)  # so that `stop` finds what a lost node keeps
            try:
                self._create(fleet, survey, person, port)
                self._settle("container", fleet.each(lambda name, _: self._start(name)))
                self._all_or_none()
                findings = self._prove(fleet)
            except BaseException:
                self._undo(fleet)
                raise
        return Opened(self._run, tuple(self.roster.rows), port, findings)

    def _survey(self, fleet: Fleet) -> Survey:
        survey = fleet.survey(lambda node: ())
        missed = tuple(controller.unreached(survey))
        if missed:
            raise Blocked("nothing was opened: all nodes have to be there", missed, effect="blocks")
        for name in self.roster.rows:
            self._see(Settled(name, "reach", ()))
        return survey

    # -- start ---------------------------------------------------------------------------

    def _create(self, fleet: Fleet, survey: Survey, person: Person, port: int) -> None:
        addresses = network.solve(survey)
        boxes = tuple(
            Box(node.name, at := addresses[node.name].ip, node.slots, _own(at, survey.facts[node.name]))
            for node in self._cluster.active
        )
        keys = worlds.fresh_keys(self.roster.rows, self._run)

        def one(name: str, remote: Remote) -> Outcome:
            facts = survey.facts[name]
            engine = Engine(remote, facts.docker.command if facts.docker and facts.docker.command else ("docker",))
            env = (
                docker.environment(engine, str(self._known.tag))
                | worlds.environment()
                | {"HOME": str(container.HOME)}
            )
            world = World(self._cluster.name, self._run, person, port, boxes, env)
            files = worlds.entries(world, keys)[name]
            placed = [Placed(PurePosixPath(file.path), file.data, file.mode) for file in files]
            self._made[name] = (engine, docker.create(engine, self._plan(name, facts, person, env), placed))
            return ()

        self._settle("container", fleet.each(lambda name, remote: _tried(name, lambda: one(name, remote))))
        self._all_or_none()

    def _plan(self, name: str, facts: NodeFacts, person: Person, env: Mapping[str, str]) -> ContainerPlan:
        rank, node = next((i, one) for i, one in enumerate(self._cluster.active) if one.name == name)
        shared = (Mount(self._known.shared),) if self._known.shared else ()
        binds = tuple({mount.path: mount for mount in (*self._mounts, *shared)}.values())
        return ContainerPlan(
            name=container.name(node),
            image=str(self._known.tag),
            command=_SSHD,
            labels=Labels(self._cluster.name, self._run, name, rank, facts.uid or 0),
            person=person,
            gpus=container.cards(node, facts),
            binds=binds,
            propagation=container.propagation(facts, binds),
            devices=container.devices(facts),
            env=dict(env),
        )

    def _start(self, name: str) -> Outcome:
        def start() -> Outcome:
            docker.start(*self._made[name])
            return ("container started",)

        return _tried(name, start)

    def _all_or_none(self) -> None:
        if self.roster.failures:
            found = gathered(self.roster.failures)
            raise Blocked("nothing was opened: a gang starts as one, or not at all", found, effect="blocks")

    def _undo(self, fleet: Fleet) -> None:
        """By label, not by what we remember: a creation may have succeeded without our hearing of it."""
        left = fleet.each(lambda name, remote: _removed(remote, self._cluster.name, self._run))
        if not any(isinstance(one, Finding | Unreachable) for one in left.values()):
            record.forget(self._run)

    # -- proof ---------------------------------------------------------------------------

    def _prove(self, fleet: Fleet) -> tuple[Finding, ...]:
        """Every container says hello to every other one, with the plain `ssh NAME` of a launcher."""

        def greet(name: str, remote: Remote) -> Outcome:
            engine, identity = self._made[name]
            peers = [peer for peer in self._made if peer != name]
            argv = (*engine.command, "exec", identity, "sh", "-c", _GREET, "sh", *peers)
            done = remote.run(argv, seconds=_GREET_SECONDS)
            said = (done.out + done.err).strip()
            if done.code:  # the script itself always ends well
                what = "no command can be started in its container"
                return Finding("dk.exec", "warn", (name,), what, evidence=f"exit code {done.code}: {said}")
            if not said:
                return ()
            return Finding(
                "net.container-ssh",
                "warn",
                (name,),
                "its container does not reach the others over SSH",
                evidence=said,
                cause="a firewall between the nodes, most likely",
                fix=("open the nodes' network for each other",),
            )

        found = {name: _heard(name, one) for name, one in fleet.each(greet).items()}
        for name, outcome in found.items():
            self._see(Settled(name, "ssh", () if isinstance(outcome, Finding) else outcome))
        return tuple(one for one in found.values() if isinstance(one, Finding))

    def _settle(self, stage: str, outcomes: Mapping[str, Outcome | Unreachable]) -> None:
        for name, outcome in outcomes.items():
            self._see(Settled(name, stage, _heard(name, outcome)))

    def _see(self, event: Progress | Settled) -> None:
        with self._turn:
            self.roster.see(event)
            self._show(event, self.roster)


def close(cluster: Cluster, run: str, asker: Asker | None = None) -> dict[str, int | Unreachable]:
    """End the containers of a run and take them away: how many there were on each node."""
    where = settings.cluster_places(cluster.name)

    def one(name: str, remote: Remote) -> int:
        found = _removed(remote, cluster.name, run)
        if isinstance(found, Finding):
            raise Unreachable(found.id, found.evidence, fix=found.fix)
        return found

    with Fleet(cluster.mustered(), where.known_hosts, key=where.key, asker=asker) as fleet:
        done: dict[str, int | Unreachable] = dict(fleet.each(one))
        for miss in fleet.unreached:
            done[miss.node] = Unreachable(miss.id, miss.words, fix=miss.fix)
    return done


def _removed(remote: Remote, cluster: str, run: str) -> int | Finding:
    """How many containers of a run went from a node; a Finding where the engine did not do it."""
    try:
        with Engine(remote, docker.command(remote)) as engine:
            found = docker.find(engine, cluster=cluster, run=run, owner=docker.owner(remote))
            for box in found:
                docker.stop(engine, box.id)
                docker.remove(engine, box.id)
    except docker.EngineSaidNo as error:
        return Finding("dk.leftover", "fail", (), "a container is left", error.what)
    return len(found)


def _tried(name: str, work: Callable[[], Outcome]) -> Outcome:
    """A node that cannot start its part is a finding, so that the others are still looked at."""
    try:
        return work()
    except (CannotStart, docker.EngineSaidNo, UsageError) as error:
        fix = (error.remedy,) if error.remedy else ()
        return Finding("dk.start", "fail", (name,), "its container cannot be had", error.what, fix=fix)


def _heard(name: str, outcome: Outcome | Unreachable) -> Outcome:
    """A node that is lost in the middle is one that failed."""
    return outcome.finding(name) if isinstance(outcome, Unreachable) else outcome


def _mountable(text: str) -> Mount:
    try:
        return parse_mount(text)
    except ValueError as error:
        raise UsageError(f"--mount {error}") from None


def _brought_up(cluster: Cluster) -> Settings:
    known = settings.load(settings.cluster_places(cluster.name))
    lacking = [node.name for node in cluster.active if known is None or node.name not in known.nodes]
    if known is None or known.tag is None or lacking:
        what = f"{', '.join(lacking)} not up" if known and known.tag else "no image yet"
        raise UsageError(f"cluster {cluster.name}: {what}", remedy="run: clusterft up")
    return known


def _own(address: str, facts: NodeFacts) -> str | None:
    """The address, if the node has it itself: then its sshd need not answer on the others."""
    return address if any(one.ip == address for one in facts.addresses or ()) else None


def _listening(survey: Survey) -> frozenset[int]:
    """What is taken on any node: containers share its network."""
    return frozenset().union(*(facts.listening or frozenset() for facts in survey.facts.values()))
