"""doctor's look at a cluster: facts of all nodes, then what must be tried, each within its deadline.

Owns the order, the deadlines, and that whatever does not answer costs its own part alone. Changes nothing on any
node, and leaves nothing there; safe beside a run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from clusterft import facts, places
from clusterft.apply import baseline, settings
from clusterft.checks import Survey
from clusterft.checks.examination import Absence, Examination, Thing, Wanted
from clusterft.checks.work import measured
from clusterft.errors import ClusterftError
from clusterft.facts.box import Box
from clusterft.facts.deep import Deep
from clusterft.facts.health import Health
from clusterft.facts.rehearsal import Rehearsal
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster, Node
from clusterft.probing import (
    box,
    client,
    deep,
    desk,
    health,
    holdings,
    imports,
    links,
    model,
    nearby,
    rehearsing,
    share,
    sources,
    ways,
)
from clusterft.probing.at_once import begun
from clusterft.probing.crew import Crew
from clusterft.remote import Unreachable
from clusterft.spec import JobSpec

Depth = Literal["quick", "usual", "deep"]
_DEADLINES: Mapping[Thing, float] = {
    "health": 16.0,
    "links": 25.0,
    "share": 25.0,
    "box": 30.0,
    "imports": 46.0,
    "holdings": 25.0,
    "rehearsal": rehearsing.SECONDS,
    "deep": 600.0,
}
_QUICK = "not with --quick"
_DEEP = "only with --deep"

_AT_ONCE = 32  # nodes; what comes after them waits its turn

T = TypeVar("T")
Show = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Examined:
    """What was seen, how each node runs programs, and what the user should know of how it was looked."""

    seen: Examination
    seconds: float
    notes: tuple[str, ...] = ()
    broken: bool = False  # a part of the look ended by an error of ours


@dataclass(slots=True)
class _Gathered:
    """What the parts have come back with so far."""

    before: Mapping[str, tuple[float, ...]]  # what --deep has measured on other days
    done: dict[Thing, object] = field(default_factory=dict)
    absent: dict[Thing, dict[str, Absence]] = field(default_factory=dict)
    left: tuple[str, ...] = ()  # what doctor could not take away

    @property
    def bugs(self) -> tuple[str, ...]:
        """The parts that ended by an error of ours, in words."""
        found = ((thing, part) for thing, part in self.done.items() if isinstance(part, _Broke) and part.bug)
        return tuple(f"the look at {thing} broke, a bug of clusterft: {part.words}" for thing, part in found)


def examine(cluster: Cluster, fleet: Fleet, wanted: Wanted, depth: Depth, show: Show) -> Examined:
    """The whole look; `fleet` is connected. Raises only what is a bug or the user's Ctrl-C."""
    began = time.monotonic()
    known = settings.cluster_places(cluster.name)
    gathered = _Gathered(before=baseline.load(known) if depth == "deep" else {})
    show("asking every node")
    survey = _survey(fleet, wanted, gathered)
    wanted = replace(wanted, owner=wanted.owner or _owner(survey))
    own = begun(("desk",), lambda _: client.look(desk.look(known), cluster, fleet, survey))
    near = nearby.look(fleet, wanted.job)
    head = next((node.name for node in survey.cluster.active if node.name in survey.facts), None)
    read = _read(fleet, wanted.job, head, _waits(gathered)) if wanted.job and head else {}
    found = {} if depth == "quick" else ways.find(fleet, survey, wanted)
    here = own(None)["desk"]
    unasked: dict[Thing, str] = {} if wanted.job else {"job": "no job is given: --job job.yaml"}
    if depth == "quick":
        unasked |= dict.fromkeys(("links", "share", "box", "imports", "holdings", "rehearsal", "deep"), _QUICK)
    else:
        unasked |= {} if depth == "deep" else {"deep": _DEEP}
        unasked |= {} if wanted.shared else {"share": "no shared dir is known: give --job job.yaml"}
        unasked |= {} if wanted.contained and wanted.tag else {"box": "there is no image yet: clusterft up"}
        unasked |= _no_question(wanted)
        with Crew(fleet, found) as crew:
            _probe(crew, survey, wanted, unasked, gathered, show)
        gathered.left = tuple(crew.left)
    tried: Rehearsal | None = _of(gathered, "rehearsal", None)
    if tried is not None and tried.refused:
        unasked |= {"rehearsal": tried.refused}
    looked: Deep | None = _of(gathered, "deep", None)
    if looked is not None:
        baseline.remember(known, looked)
        unasked |= {"deep": looked.refused} if looked.refused else {}
    seen = Examination(
        wanted=wanted,
        survey=survey,
        desk=here,
        health=_of(gathered, "health", {}),
        links=_of(gathered, "links", None),
        share=_of(gathered, "share", None),
        boxes=_of(gathered, "box", {}),
        imports=_of(gathered, "imports", {}),
        holdings=_of(gathered, "holdings", {}),
        rehearsal=tried,
        deep=looked,
        nearby=near,
        **read,
        absent=gathered.absent,
        unasked=unasked,
    )
    return Examined(seen, time.monotonic() - began, _notes(gathered, looked), broken=bool(gathered.bugs))


def _waits(gathered: _Gathered) -> dict[str, frozenset[str]]:
    """Node -> the paths of the job that do not answer there: what touches them would wait, too."""
    looked: Mapping[str, Health] = _of(gathered, "health", {})
    found = {
        name: frozenset(path for path, answer in one.storage.paths.items() if answer == "waits")
        for name, one in looked.items()
    }
    return {name: paths for name, paths in found.items() if paths}


def _barred(gathered: _Gathered) -> dict[str, str]:
    """Node -> why no rank would start there; to try it would only take until its deadline."""
    boxes: Mapping[str, object] = _of(gathered, "box", {})
    shut = {
        name: "a container of the image does not start there"
        for name, one in boxes.items()
        if isinstance(one, Box) and one.refused
    }
    return shut | {
        name: f"{', '.join(sorted(paths))} does not answer there" for name, paths in _waits(gathered).items()
    }


def _read(fleet: Fleet, job: JobSpec, head: str, waits: Mapping[str, frozenset[str]]) -> dict[str, Any]:
    """What the job reads: whether it is there on all nodes, and how large its model is by its files on one."""
    path = job.train.model if job.train else None
    return {
        "sources": sources.look(fleet, job, waits),
        "named": sources.named(fleet, job, head, waits),
        "weights": model.weights(fleet.remotes[head], path) if path and path not in waits.get(head, ()) else None,
    }


def _no_question(wanted: Wanted) -> dict[Thing, str]:
    """What this job does not ask of its nodes."""
    job, found = wanted.job, dict[Thing, str]()
    if job is None or job.runtime != "process":
        found["imports"] = "only of a job with runtime: process" if job else "no job is given: --job job.yaml"
    if job is None or not job.own_paths:
        found["holdings"] = "the job reads from the shared dir alone" if job else "no job is given: --job job.yaml"
    if job is None:
        found["rehearsal"] = "no job is given: --job job.yaml"
    elif wanted.contained and not wanted.tag:
        found["rehearsal"] = "there is no image yet: clusterft up"
    return found


def _notes(gathered: _Gathered, looked: Deep | None) -> tuple[str, ...]:
    """What the parts say of how they looked, and the table of what was measured."""
    said = [note for part in gathered.done.values() for note in getattr(part, "notes", ())]
    return (*said, *(measured.lines(looked) if looked else ()), *gathered.left, *gathered.bugs)


def _survey(fleet: Fleet, wanted: Wanted, gathered: _Gathered) -> Survey:
    """The probe of `up` and doctor's own, at the same time on each node."""
    own = _begin("health", lambda: health.ask(fleet, wanted), gathered)
    shared = (wanted.shared,) if wanted.shared else ()
    survey = fleet.survey(lambda node: (*shared, _home(node)))
    own.join(_DEADLINES["health"] * _turns(survey))
    _lacking(gathered, survey, "health")
    gathered.absent["facts"] = {miss.node: Absence(miss.id) for miss in survey.unreached}
    return survey


def _probe(
    crew: Crew, survey: Survey, wanted: Wanted, unasked: Mapping[Thing, str], gathered: _Gathered, show: Show
) -> None:
    """What must be tried: side by side, but for what would disturb the others."""
    parts: dict[Thing, Callable[[], object]] = {
        "links": lambda: links.look(crew, survey, wanted, _of(gathered, "health", {})),
        "share": lambda: share.prove(crew, survey, wanted),
        "box": lambda: box.open_(crew, survey, wanted),
    }
    if (job := wanted.job) is not None:
        parts["holdings"] = lambda: holdings.count(crew.fleet, job.own_paths, job.weight_paths, _waits(gathered))
    show("trying ports, shared dir and containers")
    began = time.monotonic()
    threads = {thing: _begin(thing, work, gathered) for thing, work in parts.items() if thing not in unasked}
    for thing, thread in threads.items():
        thread.join(max(0.0, began + _DEADLINES[thing] * _turns(survey) - time.monotonic()))
        _lacking(gathered, survey, thing)
    if job is not None and "rehearsal" not in unasked:
        show("rehearsing the beginning of a run")
        turns = rehearsing.turns(len(survey.cluster.active))
        _alone(
            "rehearsal",
            lambda: rehearsing.rehearse(crew, survey, wanted, job, _barred(gathered)),
            gathered,
            survey,
            turns,
        )
    if job is not None and "imports" not in unasked:
        show("asking every node's Python what it has")
        tried: Rehearsal | None = _of(gathered, "rehearsal", None)
        up = frozenset(tried.tries) if tried else frozenset()
        _alone("imports", lambda: imports.look(crew.fleet, job, up), gathered, survey, _turns(survey))
    if "deep" not in unasked:
        show("collectives and cards at work: minutes")
        _alone("deep", lambda: deep.run(crew, survey, wanted, show, gathered.before), gathered, survey)


def _alone(thing: Thing, work: Callable[[], object], gathered: _Gathered, survey: Survey, turns: int = 1) -> None:
    """What keeps processors at work, so that whatever is timed beside it would be late."""
    _begin(thing, work, gathered).join(_DEADLINES[thing] * turns)
    _lacking(gathered, survey, thing)


def _turns(survey: Survey) -> int:
    """How many times a node's own deadline may pass before all have had their turn."""
    return -(-len(survey.cluster.active) // _AT_ONCE)


def _begin(thing: Thing, work: Callable[[], object], gathered: _Gathered) -> threading.Thread:
    thread = threading.Thread(target=_try, args=(thing, work, gathered), name=f"doctor-{thing}", daemon=True)
    thread.start()
    return thread


def _try(thing: Thing, work: Callable[[], object], gathered: _Gathered) -> None:
    """One part in its own thread: what it raises is why it is absent."""
    try:
        gathered.done[thing] = work()
    except Exception as error:  # noqa: BLE001 - the rest is still reported; the words are shown under the part's ids
        ours = isinstance(error, ClusterftError)  # which is said for the user, and no bug
        gathered.done[thing] = _Broke(str(error) if ours else f"{type(error).__name__}: {error}", bug=not ours)


@dataclass(frozen=True, slots=True)
class _Broke:
    words: str
    bug: bool


def _lacking(gathered: _Gathered, survey: Survey, thing: Thing) -> None:
    """Why a part has nothing of a node: an id for those that were not reached, words for the others."""
    reasons = {miss.node: Absence(miss.id) for miss in survey.unreached}
    done = gathered.done.get(thing)
    whole = "it did not end in time" if done is None else done.words if isinstance(done, _Broke) else ""
    for node in survey.cluster.active:
        if node.name in reasons:
            continue
        missing = _missing(done, node.name)
        if whole:
            reasons[node.name] = Absence("", whole)
        elif isinstance(missing, Unreachable):
            reasons[node.name] = Absence("", missing.what)
        elif missing:
            reasons[node.name] = Absence("", missing)
    gathered.absent[thing] = reasons


def _missing(done: object, node: str) -> str | Unreachable | None:
    """What a part says of a node that it has nothing of: by `missing`, or by an outcome in place of the thing."""
    if isinstance(done, dict):
        one = done.get(node, "it was not asked")
        return one if isinstance(one, (Unreachable, str)) else None
    missing: Mapping[str, str] = getattr(done, "missing", {})
    return missing.get(node)


def _of(gathered: _Gathered, thing: Thing, otherwise: T) -> T:
    """A part as it is, without the nodes that it has nothing of."""
    done = gathered.done.get(thing)
    if done is None or isinstance(done, _Broke):
        return otherwise
    if isinstance(done, dict):
        return {name: one for name, one in done.items() if not isinstance(one, (Unreachable, str))}  # type: ignore[return-value]
    return done  # type: ignore[return-value]


def _owner(survey: Survey) -> tuple[int, int] | None:
    """As whom a run's processes work: the SSH user of the head."""
    head = survey.facts.get(survey.cluster.active[0].name)
    return (head.uid, head.gid) if head and head.uid is not None and head.gid is not None else None


def _home(node: Node) -> str:
    return str(places.controller_home()) if node.transport == "local" else facts.HOME
