"""The port matrix: every node dials every other one, in the network and on the addresses that a run uses.

Owns the order and the time of it: who opens what, two tries for all that fails, then what can be sent, in rounds
in which no node is in two pairs. A port that somebody has already is left to them. Judges nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from clusterft.checks import Survey, networks
from clusterft.checks.examination import Wanted
from clusterft.checks.ways import untried
from clusterft.facts import links as facts
from clusterft.facts.health import Health
from clusterft.facts.links import Dial, Flow, Kind, Links
from clusterft.probing import pairing
from clusterft.probing.at_once import begun
from clusterft.probing.crew import Crew, Silent
from clusterft.probing.dialler import Dialler, Forwarding, Peer, Program, Seen, lost
from clusterft.remote import Unreachable

_ALL = 21.0  # seconds for the whole of it
_FIRST, _AGAIN = 3.0, 4.0  # seconds for a connection; a lost packet is sent again after one, and after three
_BEGIN = 8.0  # seconds for programs to begin: a container takes some
_FLOW = 0.3  # seconds of sending, at most, in each direction of a pair
_FLOWS = 9.0  # seconds for all of that
_DOUBTFUL, _DOUBTS = 0.4, 4  # of the usual rate; and so many of these are measured again
_PINGS = 400  # small messages of a pair, one after the other
_BESIDE = (32768, 60999)  # where ports are taken from by most kernels, if one does not say

K = TypeVar("K")
T = TypeVar("T")


def look(crew: Crew, survey: Survey, wanted: Wanted, health: Mapping[str, Health] | None = None) -> Links:
    """All of it. With doctor's own facts of the nodes, nothing is measured where a run is, or may be, at work."""
    choice = networks.choose(survey)
    known = {name: place.ip for name, place in choice.places.items()}
    looking = _Look(crew, survey, wanted, known, quiet=_quiet(survey, health))
    notes = [_chosen(choice)] if choice.network and choice.others else []
    if len(looking.machines) < 2:
        boots = {facts.boot_id for facts in survey.facts.values()}
        alone = looking.machines if len(boots) > 1 or len(survey.facts) < len(survey.cluster.active) else ()
        return Links(
            addresses=known,
            missing=looking.missing(),
            machines=alone if len(survey.cluster.active) > 1 else (),
            unsent=dict.fromkeys(alone, "not measured: no other node was there to measure it with"),
            notes=tuple(notes),
        )
    try:
        looking.open()
        looking.dial()
        looking.again()
        elsewhere = looking.elsewhere()
        looking.flow()
    finally:
        looking.close()
    return Links(
        addresses=known,
        dials=tuple(looking.dials.values()),
        own=looking.own,
        flows=tuple(looking.flows),
        busy={name: dict(one.busy) for name, one in looking.programs.items() if one.busy},
        macs=looking.macs,
        unanswered=looking.unanswered,
        elsewhere=elsewhere,
        missing=looking.missing(),
        machines=looking.machines,
        mute=looking.mute(),
        unsent=looking.unsent(),
        notes=(*notes, *looking.notes()),
    )


@dataclass(slots=True)
class _Look:
    crew: Crew
    survey: Survey
    wanted: Wanted
    addresses: dict[str, str]
    quiet: dict[str, str] = field(default_factory=dict)  # node -> why nothing is sent there to be measured
    machines: tuple[str, ...] = ()
    programs: dict[str, Program] = field(default_factory=dict)
    diallers: dict[str, Dialler] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)  # node -> why it runs no program
    gone: dict[str, str] = field(default_factory=dict)  # node -> why it has no say
    dials: dict[tuple[str, str, int], Dial] = field(default_factory=dict)
    own: dict[str, Dial] = field(default_factory=dict)
    flows: list[Flow] = field(default_factory=list)
    macs: dict[str, dict[str, str]] = field(default_factory=dict)
    unanswered: dict[str, dict[str, str]] = field(default_factory=dict)
    until: float = 0.0
    word: str = ""

    def __post_init__(self) -> None:
        self.until = time.monotonic() + _ALL
        self.word = secrets.token_hex(16)
        seen: set[str] = set()
        for node in self.survey.cluster.active:  # one machine under two names would dial itself
            facts = self.survey.facts.get(node.name)
            if facts and node.name in self.addresses and (facts.boot_id or node.name) not in seen:
                seen.add(facts.boot_id or node.name)
                self.machines = (*self.machines, node.name)

    @property
    def rendezvous(self) -> tuple[int, ...]:
        """Where ranks meet, and where supervisors do."""
        first = self.wanted.port
        return tuple(port for port in (first, first + facts.SPAN) if port < 65536)

    def open(self) -> None:
        """A program on each node that can run one, on the same ports if they are free."""
        begun = _each(self.machines, lambda name: Program(self.crew, name), _BEGIN)
        for name, one in begun.items():
            if isinstance(one, Program):
                self.programs[name] = one
                self.diallers[name] = one
            else:
                self.without[name] = lost(one)
                remote = self.crew.fleet.remotes.get(name)
                if remote:
                    self.diallers[name] = Forwarding(remote, self.word)
        wide = any(":" in self.addresses[name] for name in self.machines)
        high = self._high()
        opened = _each(
            tuple(self.programs),
            lambda name: self.programs[name].listen(self.word, self.rendezvous, high, wide=wide),
        )
        for name, problem in opened.items():
            if problem is not None:
                self.without[name] = self.gone[name] = lost(problem)
                self.programs.pop(name)
                self.diallers.pop(name)

    def _high(self) -> list[int]:
        """Some ports that every node's kernel would give to a program that asks for any."""
        ranges = [one.range or _BESIDE for one in self.programs.values()]
        low = max((one[0] for one in ranges), default=_BESIDE[0])
        top = min((one[1] for one in ranges), default=_BESIDE[1])
        if top - low < 16:
            return []
        return [low + secrets.randbelow(top - low + 1) for _ in range(4)]

    def dial(self) -> None:
        """Everybody at once."""
        chosen = pairing.targets(self.machines)
        asked = {
            name: tuple(peer for to in (*chosen[name], name) if (peer := self._peer(to)) and peer.ports)
            for name in self.diallers
        }
        self._ask(asked, _FIRST, again=False)

    def again(self) -> None:
        """What did not come about, once more: one lost packet is no finding."""
        asked: dict[str, dict[str, list[int]]] = {}
        for one in (*self.dials.values(), *self.own.values()):
            if not one.reached or one.lost or one.stranger:
                asked.setdefault(one.source, {}).setdefault(one.target, []).append(one.port)
        before = dict(self.dials)
        self._ask(
            {
                name: tuple(Peer(to, self.addresses[to], tuple(ports)) for to, ports in peers.items())
                for name, peers in asked.items()
            },
            _AGAIN,
            again=True,
        )
        for key, now in self.dials.items():
            once = before.get(key)
            if once is None or not now.error or not once.error:
                continue
            if now.error == once.error:  # how soon it failed tells most the first time
                self.dials[key] = replace(now, seconds=min(now.seconds, once.seconds))
            elif now.error == "timed out":  # a kernel does not send a refusal to everybody who asks again
                self.dials[key] = replace(now, error=once.error, seconds=once.seconds)

    def _peer(self, to: str) -> Peer | None:
        """What can be dialled there without disturbing anybody."""
        program = self.programs.get(to)
        if program is None:
            listening = self.survey.facts[to].listening or frozenset()
            high = _BESIDE[0] + 7777
            free = tuple(port for port in (*self.rendezvous, high) if port not in listening)
            return Peer(to, self.addresses[to], free)
        own = tuple(port for port in self.rendezvous if port not in program.busy)
        return Peer(to, self.addresses[to], (*own, program.high) if program.high else own)

    def _ask(self, asked: dict[str, tuple[Peer, ...]], seconds: float, *, again: bool) -> None:
        able = tuple(name for name, peers in asked.items() if peers and name in self.diallers)
        left = max(1.0, self.until - time.monotonic())
        seen = _each(able, lambda name: self.diallers[name].dial(asked[name], seconds, again=again), left)
        for name, one in seen.items():
            if not isinstance(one, Seen):
                self.gone[name] = lost(one)
                self.diallers.pop(name)
                self.programs.pop(name, None)
                continue
            self.macs.setdefault(name, {}).update(one.macs)
            self.unanswered[name] = dict(one.unanswered)  # as it was last
            for said in one.dials:
                self._note(name, said)

    def _note(self, source: str, said: object) -> None:
        assert isinstance(said, dict)
        kind: Kind = "rendezvous" if said.get("port") in self.rendezvous else "high"
        one = facts.dial(source, kind, said, listened=said.get("to") in self.programs)
        if one.target == source:
            self._note_own(one)
        elif one.target in self.addresses:
            self.dials[source, one.target, one.port] = one

    def _note_own(self, one: Dial) -> None:
        """Of its own ports the high one alone: the others say no more of the way, which is the same."""
        if one.listened and one.kind == "high":
            self.own[one.source] = one

    def elsewhere(self) -> dict[str, str]:
        """Where the chosen addresses do not connect all: a network of all nodes that does, tried on one port."""
        lost = {(one.source, one.target) for one in self.dials.values() if one.kind == "high" and not one.reached}
        if not lost or time.monotonic() > self.until - 6.0:
            return {}
        nodes = [node for node in self.survey.cluster.active if node.name in self.machines]
        for whole in networks.shared(nodes, self.survey):
            places = {name: place.ip for name, place in whole.places.items()}
            if places == {name: self.addresses[name] for name in places}:
                continue
            asked = {
                name: tuple(
                    Peer(to, places[to], (self.programs[to].high,))
                    for source, to in sorted(lost)
                    if source == name and to in self.programs
                )
                for name in self.diallers
            }
            able = tuple(name for name, peers in asked.items() if peers)
            seen = _each(able, lambda name, asked=asked: self.diallers[name].dial(asked[name], 2.0, again=False))  # type: ignore[misc]
            if able and all(isinstance(one, Seen) and _well(one) for one in seen.values()):
                return places
        return {}

    def flow(self) -> None:
        """What can be sent, in each direction by itself, while there is time."""
        ready = (name for name in self.machines if name in self.programs and self.programs[name].high)
        able = tuple(name for name in ready if name not in self.quiet)
        plan = pairing.matchings(able) if len(able) > 1 else []
        seconds = min(_FLOW, _FLOWS / max(1, 4 * len(plan)))
        until = min(self.until - 2.0, time.monotonic() + _FLOWS)
        for pairs in plan:
            for turned in (False, True):
                if time.monotonic() > until:
                    return
                ways = [(pair[1], pair[0]) if turned else (pair[0], pair[1]) for pair in pairs]
                self._measured(tuple(way for way in ways if self._open(*way)), seconds)
        usual = sorted(one.rate for one in self.flows if one.rate)
        slow = [one for one in self.flows if (one.rate or 0) < usual[len(usual) // 2] * _DOUBTFUL] if usual else []
        for one in slow[:_DOUBTS]:  # once more, by itself: a machine may have been busy for a moment
            if time.monotonic() < until:
                self._measured(((one.source, one.target),), seconds)

    def _measured(self, ways: tuple[tuple[str, str], ...], seconds: float) -> None:
        """The better of what was measured, and all that was lost."""
        before = {(one.source, one.target): one for one in self.flows}
        for way, now in _each(ways, lambda way: self._measure(*way, seconds)).items():
            if isinstance(now, Flow):
                before[way] = facts.joined(before[way], now) if way in before else now
        self.flows = list(before.values())

    def _open(self, source: str, target: str) -> bool:
        """Whether it is worth measuring: not where large packets are lost, or nothing came about."""
        tried = self.dials.get((source, target, self.programs[target].high))
        back = self.dials.get((target, source, self.programs[source].high))
        return all(one is None or (one.reached and one.large is not None) for one in (tried, back))

    def _measure(self, source: str, target: str, seconds: float) -> Flow:
        there = self.programs[target]
        said = self.programs[source].measure(self.addresses[target], there.high, seconds, _PINGS)
        return facts.flow(source, target, said)

    def close(self) -> None:
        """No port stays open for longer than this."""
        for one in self.programs.values():
            one.close()

    def missing(self) -> dict[str, str]:
        """Nodes of which this tells nothing."""
        nowhere = {
            name: "its address towards the other nodes is not known"
            for name in self.survey.facts
            if name not in self.addresses
        }
        return {**nowhere, **self.gone}

    def mute(self) -> dict[str, str]:
        """Nodes from which nothing could be dialled, though others may have dialled them."""
        spoke = {one.source for one in self.dials.values()}
        found = {}
        for name in self.machines:
            if name not in spoke and name not in self.gone:
                dialler = self.diallers.get(name)
                refused = dialler.refused if isinstance(dialler, Forwarding) else ""
                reasons = [one for one in (self.without.get(name, ""), refused) if one]
                found[name] = ", and ".join(reasons) or "no other node was there to be dialled"
        return found

    def unsent(self) -> dict[str, str]:
        """Nodes with which nothing was measured."""
        sent = {name for one in self.flows for name in (one.source, one.target)}
        none = {name: f"not measured: no program runs there ({why})" for name, why in self.without.items()}
        return {name: why for name, why in (none | self.quiet).items() if name not in sent}

    def notes(self) -> Iterable[str]:
        """How it was looked, where that is not as usual."""
        forwarded = [name for name in self.without if name not in self.gone]
        if forwarded:
            why = "; ".join(f"{name}: {self.without[name]}" for name in forwarded)
            yield (
                f"ports: judged by what sshd on {', '.join(forwarded)} can reach, as no program runs there "
                f"({why}); their speed is not known"
            )
        if sampled := pairing.sampled(self.machines):
            yield sampled
        if len(self.programs) > pairing.FLOWS:
            yield f"speed and loss: of {len(self.programs)} nodes each was measured with the two beside it"


def _quiet(survey: Survey, health: Mapping[str, Health] | None) -> dict[str, str]:
    """Beside a run nothing is sent that it could feel; one that cannot be ruled out counts."""
    if health is None:
        return {}
    unread = "not measured: whether a run uses this link could not be read"
    return {
        name: untried.IN_USE if name in health else unread
        for name in survey.facts
        if name not in health or untried.at_work(health[name])
    }


def _well(seen: Seen) -> bool:
    return bool(seen.dials) and all(not one.get("error") and one.get("boot") for one in seen.dials)


def _chosen(choice: networks.Choice) -> str:
    """What training uses and why, and why not the rest, in a line."""
    interfaces = ", ".join(sorted({place.interface or "?" for place in choice.places.values()}))
    rest = "; ".join(f"{network} not: {why}" for network, why in list(choice.others.items())[:4])
    return f"training uses {choice.network} ({interfaces}): {choice.why}; {rest}"


def _each(keys: tuple[K, ...], work: Callable[[K], T], seconds: float = _ALL) -> dict[K, T | Exception]:
    """All at once; a node that is lost, or too late, is an outcome."""

    def one(key: K) -> T | Exception:
        try:
            return work(key)
        except (Silent, Unreachable, OSError, ValueError, TypeError, KeyError) as error:
            return error  # also of an answer that is not what a program of ours says

    found = begun(keys, one)(time.monotonic() + seconds)
    late = Silent(f"it did not answer within {seconds:.0f} s")
    return {key: found.get(key, late) for key in keys}
