"""`up`: reach every node, judge it, give it its keys, give it the image; say at each node what changed or why not.

Owns the order of the stages and who is still in. A node that fails one is out of the next ones; the others go on,
and a rerun continues. What each stage does is known by its own room.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Literal, Protocol

from clusterft import checks, facts, places, provision, ship
from clusterft.apply import settings, supplying
from clusterft.apply.settings import Settings
from clusterft.apply.supplying import Supply, image_name
from clusterft.board import Muster, Roster, Standing
from clusterft.checks import Survey, UpDemand, controller
from clusterft.events import Progress, Settled, StageDone
from clusterft.facts import NodeFacts
from clusterft.findings import Finding, Outcome, blockers
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster, Node, deepspeed_hostfile
from clusterft.image import Made
from clusterft.places import NodePlaces
from clusterft.provision import Order
from clusterft.remote import Asker, Remote, keys
from clusterft.remote.hostkeys import Stranger
from clusterft.ship import Convoy, ImageParts, Origin, Target
from clusterft.spec import ImageSpec

_DROP_SECONDS = 60.0
STAGES = ("reach", "check", "keys", "image")

Seen = Progress | Settled | StageDone
Show = Callable[[Seen, Roster], None]


class Consent(Asker, Protocol):
    """Who decides what a machine may not: whom to trust."""

    def host_keys(self, shown: Iterable[str]) -> bool:
        """Whether machines that were never met are to be trusted with the keys shown."""

    def nat(self, node: str, peer: str) -> bool:
        """Whether a node's relay key is let in at a peer from a gateway's address."""


@dataclass(frozen=True, slots=True)
class Wants:
    """What `up` was told."""

    image: ImageSpec | None = None  # None: nodes are made reachable, and no more
    device: Literal["cpu", "cuda"] = "cuda"
    shared: str | None = None
    forget: tuple[str, ...] = ()  # nodes whose pinned host key is given up
    with_image: bool = True  # what the next `up` without a job is to do; --no-image is for this one alone


@dataclass(slots=True)
class _Found:
    """What the stages learn."""

    survey: Survey | None = None
    findings: tuple[Finding, ...] = ()
    cut: tuple[tuple[str, str], ...] = ()  # (who asks, who is asked): relays that do not work
    made: Made | None = None
    sent: int = 0
    parts: ImageParts | None = None
    changes: list[str] = field(default_factory=list)  # on the controller


class Bringup:
    """One `up`."""

    def __init__(
        self, cluster: Cluster, wants: Wants, consent: Consent, show: Callable[[Seen, Roster], None]
    ) -> None:
        self._given = cluster
        self._cluster = cluster.mustered()
        self._wants = wants
        self._consent = consent
        self._show = show
        self._where = settings.cluster_places(cluster.name)
        self._before = settings.load_if_sound(self._where)
        self._id = (self._before.id if self._before else "") or secrets.token_hex(4)
        self._found = _Found()
        self._turn = threading.RLock()
        self._tag = ""
        stages = STAGES if wants.image else STAGES[:-1]
        self.roster = Roster(tuple(node.name for node in cluster.nodes), stages)

    def run(self) -> Muster:
        """All of it; raises only what concerns every node, such as an image that cannot be built."""
        began = time.monotonic()
        where = self._where
        fleet = Fleet(self._cluster, where.known_hosts, key=where.key, asker=self._consent)
        for name in self._wants.forget:
            if fleet.forget(name):
                self._found.changes.append(f"pinned host key of {name} forgotten")
        with fleet:
            self._reach(fleet)
            self._check(fleet)
            self._give_keys(fleet)
            self._remember()  # also of an up whose image cannot be built: down must find what is there by now
            if self._wants.image:
                self._give_image(fleet, self._wants.image)
                self._remember()
                self._drop_last(fleet)
            standings = tuple(self._standing(node) for node in self._given.nodes)
        found = self._found
        tag = self._tag if found.made else None
        seconds = time.monotonic() - began
        return Muster(
            self._given.name,
            self.roster,
            standings,
            found.findings,
            tag,
            tuple(found.changes),
            seconds,
            found.sent,
        )

    # -- stages ------------------------------------------------------------------------

    def _reach(self, fleet: Fleet) -> None:
        """A connection to every node; who was never met is shown, and trusted only when somebody says so."""
        began = time.monotonic()
        while strangers := fleet.strangers:  # behind a bastion that is trusted now, more of them may wait
            if not self._consent.host_keys(_introduced(strangers)):
                break
            fleet.trust(strangers)
            names = dict.fromkeys(one.name for one in strangers)
            self._found.changes.append(f"host keys pinned: {', '.join(names)}")
        if fleet.adopt():
            self._found.changes.append("host keys pinned, as your known_hosts has them")
        missed = {finding.nodes: finding for finding in _unreached(self._cluster, fleet)}
        for name in self.roster.up:
            why = next((finding for nodes, finding in missed.items() if name in nodes), None)
            self._settle(name, "reach", why or ())
        self._stage(f"{_count(self.roster.up)} reached", began)

    def _check(self, fleet: Fleet) -> None:
        """Facts of all nodes in one round trip each, and what they rule out."""
        began = time.monotonic()
        wanted = (self._wants.shared,) if self._wants.shared else ()
        survey = fleet.survey(lambda node: (*wanted, facts.HOME))
        found = tuple(_or_without(finding) for finding in checks.judge_up(survey, self._demand()))
        self._found.survey, self._found.findings = survey, (*found, *self._left_behind())
        worst = {node: finding for finding in reversed(blockers(found)) for node in finding.nodes}
        for name in self.roster.up:
            self._settle(name, "check", worst.get(name, ()))
        self._stage(f"{_count(survey.facts)} checked", began)

    def _left_behind(self) -> Iterable[Finding]:
        """Who was up and is no longer in the hostfile keeps what it was given, and nobody would ever say so."""
        before = self._before.nodes if self._before else ()
        gone = tuple(name for name in before if name not in self.roster.rows)
        if gone:
            yield Finding(
                "ctl.left-behind",
                "warn",
                gone,
                "was up and is no longer in the hostfile; its keys and its image stay there",
                fix=("put its line back, then: clusterft down", "take the line out again, then: clusterft up"),
            )

    def _demand(self) -> UpDemand:
        wants = self._wants
        if wants.image is None:  # reachable, and no more: what a training needs is not asked for
            return UpDemand(device="cpu", with_docker=False, shared=wants.shared)
        return UpDemand(device=wants.device, shared=wants.shared)

    def _give_keys(self, fleet: Fleet) -> None:
        """The host-to-host world, proven for every pair."""
        began = time.monotonic()
        if not self.roster.up:
            return
        survey = self._survey
        members = provision.members(survey, self._host_keys(fleet))
        order = Order(
            {name: member for name, member in members.items() if name in self.roster.up},
            hostfile=deepspeed_hostfile(self._given.active),
            controller_key=self._controller_key(fleet),
            controller_for=fleet.by_password,
            accept_nat=self._consent.nat,
        )
        done = provision.apply(fleet, order, self._tell)
        for name in self.roster.up:
            self._settle(name, "keys", done.outcomes.get(name, _homeless(name)))
        self._found.cut = tuple(done.proof.refused)
        self._found.findings += done.proof.findings
        self._stage(f"{_count(self.roster.up)} with keys", began)

    def _give_image(self, fleet: Fleet, spec: ImageSpec) -> None:
        """One image, made once, proven in a container, brought to every node that is still in."""
        if not self.roster.up:
            return
        began = time.monotonic()
        supply = Supply(spec, self._id, self._tell)
        made = supply.make(self._source(fleet, spec), tried=self._before.tried if self._before else None)
        self._found.made, self._tag = made, supply.tag
        self._found.findings += supply.findings
        self._found.changes += [f"image {tag} built" for tag in made.built]
        self._stage(f"image {self._tag}", began)
        began = time.monotonic()
        targets = {name: self._target(name) for name in self.roster.up}
        if spec.registry:
            commands = {name: target.command for name, target in targets.items()}
            self._found.findings += supply.by_registry(fleet, commands, spec.registry)
        convoy = Convoy(fleet, targets, self._tell, self._found.cut)
        known = self._before.parts if self._before else None
        shipment = ship.image(convoy, self._tag, supply.source, known)
        for name in targets:
            self._settle(name, "image", shipment.outcomes.get(name, ()))
        for name, words in shipment.whole.items():
            self._tell(Progress(name, "image", f"took all layers: {words}"))
        self._found.parts, self._found.sent = shipment.parts, shipment.sent
        up = tuple(name for name in targets if name in self.roster.up)
        sent = f", {shipment.sent / 1e6:.1f} MB sent from here" if shipment.sent else ""
        self._stage(f"image proven on {_count(up)}{sent}", began)

    def _source(self, fleet: Fleet, spec: ImageSpec) -> Origin:
        """The engine that has, or builds, the image."""
        if spec.build_on == "controller":
            return supplying.here()
        head = self._given.active[0].name
        if head not in self.roster.up:
            raise supplying.no_head(head)
        return Origin(fleet.remotes[head], self._docker(head), head)

    def _drop_last(self, fleet: Fleet) -> None:
        """The image of the last `up` has had its day; where a container still uses it, the engine keeps it."""
        last = self._before.tag if self._before else None
        if last is None or last == self._tag or not last.startswith(f"{image_name(self._id)}:"):
            return

        def drop(name: str, remote: Remote) -> bool:
            if name not in self.roster.up:
                return False
            return remote.run((*self._docker(name), "image", "rm", last), seconds=_DROP_SECONDS).code == 0

        for name, gone in fleet.each(drop).items():
            if gone is True:
                self._settle(name, "image", (f"image {last} removed",))

    # -- what the stages need ------------------------------------------------------------

    @property
    def _survey(self) -> Survey:
        assert self._found.survey is not None  # _check comes before whatever asks
        return self._found.survey

    def _facts(self, name: str) -> NodeFacts:
        return self._survey.facts[name]

    def _host_keys(self, fleet: Fleet) -> dict[str, tuple[str, ...]]:
        return {name: (f"{key.kind} {key.base64}",) for name, key in fleet.host_keys.items()}

    def _controller_key(self, fleet: Fleet) -> str | None:
        """The cluster's own key, made when a password was all that opened a node."""
        here = self._where.key.exists()
        if not here and not fleet.by_password:
            return None
        if not here:
            self._found.changes.append("a key of the cluster's own made: only a password opened a node")
        return keys.make(self._where.key)

    def _docker(self, name: str) -> tuple[str, ...]:
        found = self._facts(name).docker
        return found.command if found and found.command else ("docker",)

    def _target(self, name: str) -> Target:
        known = self._facts(name)
        places_ = NodePlaces(PurePosixPath(known.home or "/") / ".clusterft", self._given.name, name)
        return Target(places.scratch(known.uid or 0, self._given.name), places_.ssh_config, self._docker(name))

    # -- what is said and kept -------------------------------------------------------------

    def _remember(self) -> None:
        """For the commands that come after; nothing is kept of an `up` that reached nobody."""
        if not self.roster.up:
            return
        found, before = self._found, self._before or Settings()
        now = Settings(
            image=self._wants.image.model_dump(mode="json") if self._wants.image else before.image,
            id=self._id,
            tag=self._tag if found.made else before.tag,
            tried=found.made.identity.config_digest if found.made else before.tried,
            parts=found.parts or before.parts,
            device=self._wants.device,
            shared=self._wants.shared or before.shared,
            nodes=self.roster.up,
            with_image=self._wants.with_image,
        )
        found.changes += settings.remember(self._where, self._given)
        if settings.save(self._where, now) and "settings kept" not in found.changes:
            found.changes.append("settings kept")

    def _settle(self, node: str, stage: str, outcome: Outcome) -> None:
        self._see(Settled(node, stage, outcome))

    def _tell(self, progress: Progress) -> None:
        self._see(progress)

    def _stage(self, name: str, began: float) -> None:
        self.roster.controller = ""
        self._show(StageDone(name, time.monotonic() - began), self.roster)

    def _see(self, event: Progress | Settled) -> None:
        with self._turn:  # the rooms report from threads of their own
            self.roster.see(event)
            self._show(event, self.roster)

    def _standing(self, node: Node) -> Standing:
        known = self._found.survey.facts.get(node.name) if self._found.survey else None
        if known is None:
            return Standing(node.name, spare=node.spare)
        made = self._found.made if node.name in self.roster.up else None
        return Standing(
            node=node.name,
            address=node.addr or self._survey.contacts.get(node.name) or known.login_address or "",
            gpus=_cards(known),
            driver=known.gpus[0].driver if known.gpus else "",
            image=self._tag.rpartition(":")[2] if made else "",
            shared=_share(known, self._wants.shared),
            spare=node.spare,
        )


def _unreached(cluster: Cluster, fleet: Fleet) -> Iterable[Finding]:
    return controller.unreached(Survey(cluster, {}, tuple(fleet.unreached), {}))


def _or_without(finding: Finding) -> Finding:
    """Docker is what one kind of run needs: where it does not work, the other kind is named too."""
    if finding.status != "fail" or not finding.id.startswith("dk."):
        return finding
    step = (
        "or train without Docker: runtime: process in the job, and a Python with clusterft[trainer] at one path "
        "on all nodes; then: clusterft up --job job.yaml"
    )
    return replace(finding, fix=(*finding.fix, step))


def _homeless(name: str) -> Finding:
    return Finding(
        "fs.home", "fail", (name,), "the SSH user's home directory could not be read", fix=("ls -ld ~",)
    )


def _introduced(strangers: Iterable[Stranger]) -> Iterable[str]:
    for one in strangers:
        who = "bastion" if one.bastion else " ".join(one.nodes)
        yield f"{who}  {one.name}  {one.key.kind} {one.key.fingerprint}"


def _count(nodes: Sized) -> str:
    return f"{len(nodes)} node{'s' * (len(nodes) != 1)}"


def _cards(known: NodeFacts) -> str:
    kinds = Counter(card.name.removeprefix("NVIDIA ") for card in known.gpus)
    return ", ".join(f"{count} x {name}" for name, count in kinds.items())


def _share(known: NodeFacts, shared: str | None) -> str:
    disk = next((disk for disk in known.disks if disk.directory == shared), None)
    if disk is None:
        return ""
    kind = f"{disk.mount.fstype} " if disk.mount else ""
    return f"{kind}{disk.device}"
