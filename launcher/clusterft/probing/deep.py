"""Collectives and cards at work, in the run's image: `doctor --deep`.

Owns what is tried in which order, and its deadlines. Refuses to load nodes on which a run is going on, or cards
that somebody uses.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from clusterft.checks import Survey
from clusterft.checks.examination import Wanted
from clusterft.checks.work import acceptance
from clusterft.checks.work.acceptance import Yardstick
from clusterft.errors import UsageError
from clusterft.facts import deep as facts
from clusterft.facts.deep import Card, Deep, Direct, Group, Kind, Saving
from clusterft.hosts import Node
from clusterft.plan import environment, network
from clusterft.probing import occupied, rounds, site
from clusterft.probing.bench import Bench, Seat, Task
from clusterft.probing.crew import Crew

Show = Callable[[str], None]
_WHOLE = 540.0  # seconds
_GROUP = {"gloo": 30.0, "nccl": 60.0}
_CARD = 60.0
_SAVING = 120.0
_PATIENCE = {"gloo": 12.0, "nccl": 45.0}  # seconds after which torch itself gives up, and says why
_EACH = 0.5  # seconds more for each rank: many of them may share a machine's cores
_LONG = 100.0  # of a checkpoint, in which ranks import DeepSpeed while others wait
_MOST = {"gloo": 1 << 25, "nccl": 1 << 30}  # bytes of an all-reduce
_SLOTS = 4  # processes of a node that has no cards: they prove the way, and need cores
_PORTS = range(96, 128)  # of the range that a run may use, the end that it comes to last
_ENOUGH = 60.0  # seconds, with less than which nothing more is begun
_CONFIRM = 8  # bad pairs that are tried again; of more, the rest is not chance either


def run(
    crew: Crew,
    survey: Survey,
    wanted: Wanted,
    show: Show,
    before: Mapping[str, tuple[float, ...]] | None = None,
) -> Deep:
    """All of it; `before` is what earlier runs have measured."""
    backend: facts.Backend = "nccl" if wanted.device == "cuda" else "gloo"
    refused = occupied.reason(crew, survey, wanted)
    if refused:
        return Deep(backend, refused=refused)
    able, missing = site.able(crew, survey, wanted)
    nodes = tuple(node for node in survey.cluster.active if node.name in able)
    some = replace(survey, cluster=replace(survey.cluster, nodes=nodes))
    try:
        addresses = network.solve(some) if nodes else {}
    except UsageError as error:
        return Deep(backend, missing=dict.fromkeys(survey.facts, str(error)))
    show("deep: starting torch on every node")
    talks, broken = site.opened(crew, some, wanted)
    try:
        here = site.Site(wanted, tuple(node for node in nodes if node.name in talks), addresses, survey)
        done = _Course(Bench(talks), here, show, dict(before or {})).go() if talks else Deep(backend)
    finally:
        for talk in talks.values():
            talk.close()
    return replace(done, missing={**missing, **broken, **done.missing})


@dataclass(slots=True)
class _Course:
    """One look from its first process to its last."""

    bench: Bench
    site: site.Site
    show: Show
    before: dict[str, tuple[float, ...]]
    groups: list[Group] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    direct: list[Direct] = field(default_factory=list)
    savings: dict[str, Saving] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _port: int = 0
    _until: float = field(default_factory=lambda: time.monotonic() + _WHOLE)

    def go(self) -> Deep:
        """Everything, the cheapest first."""
        directory = ""
        self._work()
        self._inside()
        if len(self._here) > 1:
            self._pairs()
            self._together()
        if self.site.wanted.shared:
            directory = self._checkpoint(self.site.wanted.shared)
        return Deep(
            backend=self.site.backend,
            groups=tuple(self.groups),
            cards=tuple(self.cards),
            direct=tuple(self.direct),
            savings=self.savings,
            directory=directory,
            before=self.before,
            addresses={name: address.ip for name, address in self.site.addresses.items()},
            interfaces={name: known for name, one in self.site.addresses.items() if (known := one.interface)},
            wires={name: speed for name, speed in self.site.wires.items() if speed},
            equal=self.site.equal,
            missing=dict(self.bench.gone),
            notes=tuple(self.notes),
        )

    # -- the steps -----------------------------------------------------------------

    def _work(self) -> None:
        """Every slot at work by itself."""
        self.show("deep: every slot at work")
        pause = self.site.wanted.job.stagger_seconds if self.site.wanted.job else 0.0
        tasks = []
        for node in self._here:
            seats = tuple(self._seat(node, slot, {"wait": slot * pause}) for slot in self._slots(node))
            tasks.append(Task("card", seats, self._seconds(_CARD + pause * node.slots)))
        for task in self.bench.run(tasks):
            self.cards += [facts.card(one) for one in task]

    def _inside(self) -> None:
        """All ranks of each node; two cards that do not find each other are tried without direct copies."""
        self.show("deep: collectives inside each node")
        names = [(node.name,) for node in self._here if len(self._slots(node)) > 1]
        found = self._measure("node", names)
        if not self.site.cuda:
            return
        low = [one.nodes for one in found if acceptance.inside_too_low(one, self.cards)]
        self._measure("node", low)
        for group in found:
            if group.busbw is None and group.hung:
                self.direct.append(self._directly(group.nodes[0]))

    def _directly(self, name: str) -> Direct:
        tries = []
        for env in ({}, {"NCCL_P2P_DISABLE": "1"}):
            task = self._collective((name,), count=2, env=env)
            (said,) = self.bench.run([task])
            tries.append(facts.group("node", (name,), said))
        return Direct(name, tries[0].busbw is not None, tries[1].busbw is not None, tries[0].words)

    def _pairs(self) -> None:
        """Every pair of few nodes; of many, two rounds and what is still unsure after them."""
        names = [node.name for node in self._here]
        if len(names) <= rounds.FEW:
            for turn, pairs in enumerate(rounds.every(names), 1):
                self.show(f"deep: pairs, round {turn}")
                self._measure("pair", pairs)
        else:
            self.show("deep: pairs, round 1")
            first = rounds.neighbours(names)
            speeds = {n: one.busbw or 0.0 for one in self._measure("pair", first) for n in one.nodes}
            self.show("deep: pairs, round 2")
            self._measure("pair", rounds.mixed(names, speeds, first))
        self._confirm()
        unsure = acceptance.blame(self._tried(), self._bad()).unsure
        well = [name for name in names if not any(name in pair for pair in self._bad())]
        again = [rounds.in_order(names, (one, well[i % len(well)])) for i, one in enumerate(unsure) if well]
        fresh = [pair for pair in again if pair not in self._tried()]
        for pairs in rounds.disjoint(fresh):
            self._measure("pair", pairs)
            self._confirm()

    def _confirm(self) -> None:
        """What looks bad is tried once more: only what is bad twice is believed."""
        once = [pair for pair in self._bad() if sum(one.nodes == pair for one in self.groups) == 1]
        for pairs in rounds.disjoint(once[:_CONFIRM]):
            self.show("deep: once more")
            self._measure("pair", pairs)

    def _together(self) -> None:
        """All nodes; if that is bad though the pairs are well, the culprits are searched for by halves."""
        names = tuple(node.name for node in self._here)
        if len(names) < 3:
            return
        bad = acceptance.blame(self._tried(), self._bad())
        well = tuple(name for name in names if name not in bad.nodes)
        if bad.links or len(well) < 2:
            return  # it cannot come to anything, and says nothing that the pairs have not said
        self.show("deep: all nodes together")
        for _ in range(2):
            if not all(map(self._poor, self._measure("all", [well]))):
                return
        if not bad.nodes and any(one.kind == "all" for one in self.groups):
            self._search(well)

    def _search(self, names: tuple[str, ...]) -> None:
        """log2 n rounds; where both halves are well, each link between them."""
        if len(names) == 2:
            self._measure("pair", [names])
            return self._confirm()
        self.show(f"deep: searching among {len(names)} nodes")
        parts = [half for half in rounds.halves(names) if len(half) > 1]
        poor = [one.nodes for one in self._measure("part", parts) if self._poor(one)]
        for nodes in poor:
            self._search(nodes)
        if poor:
            return
        for pairs in rounds.across(*rounds.halves(names)):
            fresh = [p for pair in pairs if (p := rounds.in_order(names, pair)) not in self._tried()]
            self._measure("pair", fresh)
            self._confirm()
            if self._bad() or self._left < _ENOUGH:
                return

    def _checkpoint(self, shared: str) -> str:
        """One rank a node saves and loads through the shared dir."""
        nodes = self._able_to_meet()
        if not nodes:
            return ""
        self.show("deep: a checkpoint through the shared dir")
        place = f"{shared.rstrip('/')}/.clusterft/deep-{secrets.token_hex(4)}"
        seconds = self._seconds(_SAVING)
        task = self._collective(tuple(node.name for node in nodes), count=1, kind="checkpoint", seconds=seconds)
        task = replace(task, seats=tuple(replace(one, given={**one.given, "litter": place}) for one in task.seats))
        (said,) = self.bench.run([task])
        self.savings = {one.node: facts.saving(one) for one in said}
        sweeps = [Task("sweep", (Seat(node.name, 0, {"path": place}),), 10.0) for node in self._here]
        self.bench.run(sweeps)
        return place

    # -- how -----------------------------------------------------------------------

    @property
    def _here(self) -> tuple[Node, ...]:
        gone = self.bench.gone
        return tuple(node for node in self.site.nodes if node.name not in gone)

    @property
    def _left(self) -> float:
        return self._until - time.monotonic()

    def _seconds(self, most: float) -> float:
        return max(5.0, min(most, self._left - 10.0))

    def _able_to_meet(self) -> tuple[Node, ...]:
        """Without those for whom all would wait in vain."""
        lost = [pair for pair, one in acceptance.best(self.groups).items() if one.busbw is None]
        bad = acceptance.blame(self._tried(), lost)
        out = {*bad.nodes, *(pair[-1] for pair in bad.links)}
        return tuple(node for node in self._here if node.name not in out)

    def _slots(self, node: Node) -> range:
        return range(node.slots if self.site.cuda else min(node.slots, _SLOTS))

    def _tried(self) -> list[tuple[str, ...]]:
        return [one.nodes for one in self.groups if one.kind == "pair"]

    def _bad(self) -> list[tuple[str, ...]]:
        """Pairs that no try has shown to be well."""
        against = self._yardstick()
        best = acceptance.best(self.groups)
        return [pair for pair, one in best.items() if one.busbw is None or acceptance.slow(one, against)]

    def _yardstick(self) -> Yardstick:
        return acceptance.yardstick(self.groups, self.site.backend, self.site.wires, equal=self.site.equal)

    def _poor(self, group: Group) -> bool:
        middle = self._yardstick().middle
        return group.busbw is None or acceptance.poor(group, middle, self.site.backend)

    def _measure(self, kind: Kind, members: Sequence[tuple[str, ...]], *, again: bool = False) -> list[Group]:
        """Groups side by side. One that a lost node was in counts for nothing; what has fallen is tried again."""
        if not members or self._left < _ENOUGH:
            if members and not self.notes:
                self.notes.append("deep: the time was up before everything was tried")
            return []
        count = None if self.site.cuda or kind == "node" else 1
        results = self.bench.run([self._collective(nodes, count=count) for nodes in members])
        gone = self.bench.gone
        found = [facts.group(kind, nodes, said) for nodes, said in zip(members, results, strict=True)]
        found = [one for one in found if not set(one.nodes) & set(gone)]
        self.groups += found
        fallen = [one.nodes for one in found if self._fallen(kind, one) and not again]
        if fallen:
            self.show("deep: once more")
            self._measure(kind, fallen, again=True)
        return found

    def _fallen(self, kind: Kind, group: Group) -> bool:
        """Clearly less than earlier runs have measured."""
        earlier = self.before.get(facts.key(kind, group.nodes, self.site.backend), ())
        return group.busbw is not None and bool(acceptance.fallen(group.busbw, earlier, self.site.backend))

    def _collective(
        self,
        names: Iterable[str],
        *,
        count: int | None,
        env: Mapping[str, str] | None = None,
        kind: str = "collective",
        seconds: float = 0.0,
    ) -> Task:
        """So many ranks on each of these nodes, that meet on a port of their own."""
        nodes = [node for node in self.site.nodes if node.name in set(names)]
        places = [(node, slot) for node in nodes for slot in self._slots(node)[:count]]
        more = _EACH * len(places)
        until = seconds or self._seconds(_GROUP[self.site.backend] + more)
        together = {
            "world": len(places),
            "address": self.site.addresses[nodes[0].name].ip,
            "port": self._fresh(nodes[0].name),
            "patience": _LONG if seconds else _PATIENCE[self.site.backend] + more,
            "most": _MOST[self.site.backend],
        }
        seats = tuple(
            self._seat(node, slot, {**together, "rank": rank}, env) for rank, (node, slot) in enumerate(places)
        )
        return Task(kind, seats, until)

    def _seat(
        self, node: Node, slot: int, given: Mapping[str, object], env: Mapping[str, str] | None = None
    ) -> Seat:
        wanted = self.site.wanted
        own = {
            **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LOCAL_RANK": str(slot)},
            **environment.interface(self.site.addresses[node.name]),
            **environment.visible(node, wanted.device, contained=wanted.contained),
        }
        theirs = wanted.job.env if wanted.job else {}
        return Seat(
            node.name,
            slot,
            {"cuda": self.site.cuda, "card": slot, **given},
            {**own, **theirs, **(env or {})},
        )

    def _fresh(self, name: str) -> int:
        """A port of the run's own range on which nobody listens; each group has another."""
        turn, self._port = self._port % len(_PORTS), self._port + 1
        first = self.site.wanted.port + _PORTS[turn]
        return network.free_port(first, self.site.survey.facts[name].listening, len(_PORTS) - turn)
