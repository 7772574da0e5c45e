"""Finding a run again, from any controller that has the hostfile and the keys; and all runs of a cluster.

A run is its containers, its record in the shared dir and, on the controller that started it, a note. Each is
looked for in turn, since each may be out of reach: a share that hangs, a node that is off, another controller.
"""

from __future__ import annotations

import contextlib
import difflib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from clusterft.apply import occupancy, record, settings
from clusterft.apply.record import Entry, Note
from clusterft.engine import Engine, NoEngine
from clusterft.errors import ClusterftError, UsageError
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster
from clusterft.places import CONTAINER
from clusterft.plan import Part
from clusterft.remote import Asker, Remote, Unreachable
from clusterft.runtime import docker

_LIST_SECONDS = 20.0
_MARK = "@clusterft@"
# Each run of the shared dir: its record, its outcome and its last step where there is one. Nothing of it is code.
_LIST = (
    'cd -- "$1" 2>/dev/null || exit 0; '
    'for at in */run.json; do [ -f "$at" ] || continue; run=${at%/run.json}; '
    'printf "\\n%s run %s\\n" "$2" "$run"; cat -- "$at"; '
    'if [ -f "$run/outcome.json" ]; then printf "\\n%s outcome %s\\n" "$2" "$run"; '
    'cat -- "$run/outcome.json"; fi; '
    'if [ -f "$run/metrics.jsonl" ]; then printf "\\n%s step %s\\n" "$2" "$run"; '
    'tail -n 1 -- "$run/metrics.jsonl"; fi; '
    "done"
)


@dataclass(frozen=True, slots=True)
class Located:
    """A run as it was found, with the connections by which it was. To be used in a `with`."""

    run: str
    cluster: Cluster  # spares among its active nodes: they may have a part of the run
    fleet: Fleet
    run_dir: PurePosixPath
    record: dict[str, Any]  # run.json; empty where it cannot be read
    parts: tuple[Part, ...]
    containers: dict[str, str]  # node -> the engine's word for the state of the run's container there
    outcome: dict[str, Any] | None  # outcome.json: what the run came to, once it is over
    unread: str = ""  # why the record could not be read

    @property
    def entry(self) -> Entry:
        """The record; UsageError where it cannot be read."""
        if self.unread:
            raise UsageError(f"the record of {self.run} cannot be read: {self.unread}")
        return record.parse(json.dumps(self.record), str(self.run_dir / "run.json"))

    @property
    def state(self) -> str:
        """running, ok, stopped or failed; lost, where nobody wrote an end and nothing of it is left."""
        if self.outcome:
            return str(self.outcome["end"])
        known = str(self.record.get("state", "running"))
        dead = bool(self.parts) and self.parts[0].runtime == "docker" and not self.containers
        reached = self.fleet.remotes.keys() >= {part.node for part in self.parts}
        return "lost" if known == "running" and dead and reached else known

    def __enter__(self) -> Located:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.fleet.__exit__(kind, error, trace)


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of the history."""

    run: str
    cluster: str
    state: str  # running, ok, stopped, failed
    began: float
    ended: float | None
    nodes: tuple[str, ...]
    job: str  # in a line
    run_dir: str
    controller: str
    failure: str = ""
    cause: str = ""
    attempts: int | None = None
    restarts: int | None = None
    containers: dict[str, str] | None = None  # node -> state, of those that are there; without: "at work"
    step: int | None = None  # the last, where it trained
    loss: float | None = None
    parts: tuple[Part, ...] = ()  # of the gang as it is now


@dataclass(frozen=True, slots=True)
class Surroundings:
    """All runs of a cluster, with the connections by which they were found."""

    fleet: Fleet
    runs: tuple[Summary, ...]  # the newest first; those of which only containers are left are last

    def locate(self, run: str) -> Located:
        """One of them in full. Its connections are these, and stay open."""
        return again(self.fleet, run)


def locate(
    run: str | None, hosts: Path | None = None, cluster: str | None = None, asker: Asker | None = None
) -> Located:
    """Find a run (None: the one under way, else the newest); UsageError with the nearest ids if there is none."""
    note = record.find(run) if run else None
    fleet = _opened(_cluster(note, hosts, cluster), asker)
    try:
        return _Search(fleet, note).find(run)
    except BaseException:
        fleet.__exit__(None, None, None)
        raise


def again(fleet: Fleet, run: str) -> Located:
    """A run as it is now, over connections that are open; they stay their owner's."""
    return _Search(fleet, record.find(run)).find(run)


def history(
    hosts: Path | None = None, cluster: str | None = None, asker: Asker | None = None
) -> tuple[Summary, ...]:
    """All runs that a cluster's shared dir holds, the newest first."""
    with surroundings(hosts, cluster, asker) as found:
        return found.runs


@contextlib.contextmanager
def surroundings(
    hosts: Path | None = None, cluster: str | None = None, asker: Asker | None = None
) -> Iterator[Surroundings]:
    """Look at a cluster as a whole, and keep the connections."""
    with _opened(_cluster(None, hosts, cluster), asker) as fleet:
        yield Surroundings(fleet, _Search(fleet, None).summaries())


def _cluster(note: Note | None, hosts: Path | None, cluster: str | None) -> Cluster:
    if note and hosts is None and cluster in (None, note.cluster):
        return settings.of_run(note)
    return settings.find(hosts, cluster)


def _opened(meant: Cluster, asker: Asker | None) -> Fleet:
    """Open connections, to spares too."""
    where = settings.cluster_places(meant.name)
    fleet = Fleet(meant.mustered(), where.known_hosts, key=where.key, asker=asker)
    try:
        fleet.__enter__()
        if not fleet.remotes:
            miss = fleet.unreached[0]
            raise Unreachable(miss.id, f"no node of {meant.name} is reachable; {miss.node}: {miss.words}")
    except BaseException:
        fleet.__exit__(None, None, None)
        raise
    return fleet


class _Search:
    """One look at a cluster."""

    def __init__(self, fleet: Fleet, note: Note | None) -> None:
        self._fleet = fleet
        self._note = note
        self._cluster = fleet.cluster

    def find(self, run: str | None) -> Located:
        """Of the run that is meant."""
        found = self._containers(run)
        if run is None:
            run = self._newest(found)
            found = [one for one in found if one.run == run]
        run_dir, text, unread = self._record(run, found)
        if text is None and not found and not (self._note and unread):
            raise self._unknown(run)
        body: dict[str, Any] = json.loads(text) if text is not None else {}
        entry = record.parse(text, str(run_dir / "run.json")) if text is not None else None
        return Located(
            run=run,
            cluster=self._cluster,
            fleet=self._fleet,
            run_dir=run_dir,
            record=body,
            parts=entry.parts if entry else self._parts(found),
            containers={one.node: one.state for one in found},
            outcome=None if unread else self._outcome(run_dir),
            unread=unread,
        )

    def summaries(self) -> tuple[Summary, ...]:
        """Of all runs; those of which only containers are left are named too."""
        there: dict[str, dict[str, str]] = {}
        for one in self._containers(None):
            there.setdefault(one.run, {})[one.node] = one.state
        for node, run in occupancy.at_work(self._fleet).items():
            there.setdefault(run, {})[node] = "at work"
        known: dict[str, Summary] = {}
        for shared in self._shared_dirs():
            for name, (entry, told) in self._listed(shared).items():
                known[name] = _summary(entry, told, there.pop(name, {}))
        known |= {name: self._bare(name, containers) for name, containers in there.items()}
        return tuple(sorted(known.values(), key=lambda one: one.began, reverse=True))

    def _bare(self, run: str, containers: dict[str, str]) -> Summary:
        """A run of which nothing but containers is known: `open` made them, or the shared dir cannot be read."""
        runs = any(state not in docker.OVER for state in containers.values())
        state = "running" if runs else "lost"
        return Summary(
            run, self._cluster.name, state, 0.0, None, tuple(containers), "", "", "", containers=containers
        )

    def _containers(self, run: str | None) -> list[docker.Found]:
        """Those of the run on all nodes; a node without an engine has none."""

        def one(_: str, remote: Remote) -> tuple[docker.Found, ...]:
            try:
                with Engine(remote, docker.command(remote)) as engine:
                    return docker.find(engine, cluster=self._cluster.name, run=run, owner=docker.owner(remote))
            except (NoEngine, docker.EngineSaidNo):
                return ()

        found = self._fleet.each(one)
        return [each for listed in found.values() if isinstance(listed, tuple) for each in listed]

    def _record(self, run: str, found: list[docker.Found]) -> tuple[PurePosixPath, str | None, str]:
        """Where the run lies, its run.json if there is one, and why it could not be read."""
        places = [shared / run for shared in self._shared_dirs()]
        if self._note and not self._note.box:
            places.insert(0, PurePosixPath(self._note.run_dir))
        problem = ""
        for place in dict.fromkeys(places):
            try:
                text = record.read_file(self._fleet, place / "run.json")
            except ClusterftError as error:
                problem = problem or error.what
                continue
            if text is not None:
                return place, text, ""
        told = self._told(found)
        if told is not None and told not in places:
            text = record.read_file(self._fleet, told / "run.json")
            return told, text, "" if text is not None else f"there is no {told}/run.json"
        where = told or (places[0] if places else PurePosixPath("/") / run)
        return where, None, problem or ("" if not found else f"no {where}/run.json")

    def _told(self, found: list[docker.Found]) -> PurePosixPath | None:
        """The run directory as a container's own assignment has it."""
        for one in found:
            text = self._inside(one, "assignment.json")
            if text:
                return PurePosixPath(json.loads(text)["run_dir"])
        return None

    def _inside(self, one: docker.Found, name: str) -> str:
        try:
            with self._engine(one.node) as engine:
                return docker.read(engine, one.id, str(CONTAINER / name))
        except ClusterftError:
            return ""  # the next node's container has one too

    def _engine(self, node: str) -> Engine:
        remote = self._fleet.remotes[node]
        return Engine(remote, docker.command(remote))

    def _parts(self, found: list[docker.Found]) -> tuple[Part, ...]:
        """Without a record: from the note, else from what the containers are called."""
        if self._note and self._note.parts:
            return self._note.parts
        parts = []
        for one in found:
            with self._engine(one.node) as engine:
                seen = docker.look(engine, one.id)
            if seen and seen.argv and not one.idle:
                parts.append(Part(one.node, one.machine_rank, "docker", str(CONTAINER), seen.argv[0]))
        return tuple(sorted(parts, key=lambda part: part.machine_rank))

    def _outcome(self, run_dir: PurePosixPath) -> dict[str, Any] | None:
        try:
            text = record.read_file(self._fleet, run_dir / "outcome.json")
            return json.loads(text) if text else None
        except (ClusterftError, ValueError):
            return None  # the record says what is known

    def _shared_dirs(self) -> tuple[PurePosixPath, ...]:
        known = settings.load_if_sound(settings.cluster_places(self._cluster.name))
        ours = [note for note in record.notes() if note.cluster == self._cluster.name and not note.box]
        found = [known.shared] if known and known.shared else []
        found += [str(PurePosixPath(note.run_dir).parent) for note in ours]
        return tuple(PurePosixPath(path) for path in dict.fromkeys(found))

    def _listed(self, shared: PurePosixPath) -> dict[str, tuple[Entry, dict[str, Any]]]:
        """What the shared dir holds, from the first node that can list it."""
        for remote in list(self._fleet.remotes.values()):
            try:
                done = remote.run(("sh", "-c", _LIST, "sh", str(shared), _MARK), seconds=_LIST_SECONDS)
            except ClusterftError:
                continue  # another node may see it
            if done.code == 0:
                return _entries(done.out)
        return {}

    def _known(self, found: Iterable[docker.Found]) -> list[str]:
        """All ids, the newest last."""
        ids = {one.run: 0.0 for one in found}
        for shared in self._shared_dirs():
            ids |= {name: entry.began for name, (entry, _) in self._listed(shared).items()}
        ids |= {note.run: ids.get(note.run, 0.0) for note in record.notes() if note.cluster == self._cluster.name}
        return sorted(ids, key=lambda name: ids[name])

    def _newest(self, found: list[docker.Found]) -> str:
        """The run that is under way, else the newest of all."""
        under_way = Counter(one.run for one in found if one.state not in docker.OVER and not one.idle)
        if len(under_way) == 1:
            return next(iter(under_way))
        if under_way:
            raise UsageError("several runs are under way: say which", remedy=" or ".join(sorted(under_way)))
        known = self._known(found)
        if not known:
            raise UsageError(f"cluster {self._cluster.name} has no run yet", remedy="clusterft train job.yaml")
        return known[-1]

    def _unknown(self, run: str) -> UsageError:
        known = self._known(self._containers(None))
        near = difflib.get_close_matches(run, known, n=3) or known[-3:]
        return UsageError(
            f'cluster {self._cluster.name} has no run "{run}"',
            remedy="did you mean: " + ", ".join(near) if near else "",
        )


def _entries(out: str) -> dict[str, tuple[Entry, dict[str, Any]]]:
    """What _LIST printed; a record that cannot be read (of another version, or half of one) is passed over.

    With each record what else there is, by its kind: outcome, step.
    """
    found: dict[str, tuple[Entry, dict[str, Any]]] = {}
    for piece in out.split(f"\n{_MARK} ")[1:]:
        head, _, text = piece.partition("\n")
        kind, _, name = head.partition(" ")
        try:
            if kind == "run":
                found[name] = (record.parse(text, name), {})
            elif name in found:
                found[name][1][kind] = json.loads(text)
        except (ClusterftError, ValueError):
            continue
    return found


def _summary(entry: Entry, beside: Mapping[str, Any], containers: dict[str, str]) -> Summary:
    verdict, told, step = entry.verdict or {}, beside.get("outcome") or {}, beside.get("step") or {}
    return Summary(
        run=entry.run,
        cluster=entry.cluster,
        state=str(told.get("end") or entry.state),
        began=entry.began,
        ended=told.get("ended") or entry.ended,
        nodes=tuple(part.node for part in entry.parts),
        job=str(entry.plan.get("job", "")),
        run_dir=str(entry.run_dir),
        controller=entry.controller,
        failure=str(told.get("failure") or verdict.get("failure") or ""),
        cause=str(told.get("cause") or verdict.get("summary") or ""),
        attempts=told.get("attempts"),
        restarts=told.get("restarts"),
        containers=containers,
        step=step.get("step"),
        loss=step.get("loss"),
        parts=entry.parts,
    )
