"""`down`: containers, image, keys and files of a cluster go from every node; what was there before stays.

Refuses to end a run that is under way unless told to. Says what goes and asks; where nobody can answer, it takes
what `up` makes anew, and refuses to take the logs of runs. A node that is not reached keeps what it has, and is
named.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from clusterft import places, provision
from clusterft.apply import record, settings
from clusterft.apply.supplying import image_name
from clusterft.board import Roster
from clusterft.checks import Survey, controller
from clusterft.engine import Engine, NoEngine
from clusterft.errors import Blocked, Interrupted, UsageError
from clusterft.events import Progress, Settled
from clusterft.findings import Finding, Outcome
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster
from clusterft.remote import Asker, Remote, Unreachable
from clusterft.remote.local import LocalRemote
from clusterft.runtime import docker

STAGES = ("reach", "containers", "image", "take back")
_SECONDS = 60.0
_OVER = ("created", "exited", "dead")
# Who holds the lock of a node: the run that its supervisor serves. Needs no tool beyond /proc.
_HOLDER = (
    "root=${3:-$HOME/.clusterft}; at=$root/$1/nodes/$2; "
    'cd -- "$at" 2>/dev/null || exit 0; lock=$(pwd -P)/active.lock; '
    '[ -s "$lock" ] || exit 0; ls -l /proc/[0-9]*/fd 2>/dev/null | grep -qF -- " -> $lock" && cat "$lock"; exit 0'
)

# What is to go from a node, if there is anything: a line that says so, then the names of runs.
_HELD = (
    'root=${3:-$HOME/.clusterft}; at=$root/$1/nodes/$2; [ -d "$at" ] || exit 0; echo held; '
    'for run in "$at/runs"/*/; do [ ! -d "$run" ] || { run=${run%/}; printf "%s\\n" "${run##*/}"; }; done'
)
_NAMED = 5  # runs, before the rest is only counted

Show = Callable[[Progress | Settled, Roster], None]


class Consent(Asker, Protocol):
    """Who decides whether it goes."""

    @property
    def present(self) -> bool:
        """Whether somebody can answer."""

    def goes(self, shown: Iterable[str]) -> bool:
        """Whether what is shown may be taken away."""


class Teardown:
    """One `down`."""

    def __init__(self, cluster: Cluster, show: Show, consent: Consent, *, now: bool, yes: bool = False) -> None:
        self._cluster = cluster.mustered()
        self._show = show
        self._now = now
        self._yes = yes
        self._consent = consent
        self._where = settings.cluster_places(cluster.name)
        self._before = settings.load(self._where) or settings.Settings()
        self._turn = threading.RLock()
        self._engines: dict[str, Engine] = {}
        self.roster = Roster(tuple(node.name for node in cluster.nodes), STAGES)

    def run(self) -> tuple[str, ...]:
        """All of it; what changed on the controller."""
        with Fleet(self._cluster, self._where.known_hosts, key=self._where.key, asker=self._consent) as fleet:
            missed = tuple(controller.unreached(Survey(self._cluster, {}, tuple(fleet.unreached), {})))
            for name in self.roster.up:
                why = next((finding for finding in missed if name in finding.nodes), None)
                self._see(Settled(name, "reach", why or ()))
            self._nothing_trains(fleet)
            found = self._at_rest(fleet)
            self._agreed(fleet, found)
            self._settle("containers", fleet.each(lambda name, _: self._remove(name, found[name])))
            self._image(fleet)
            for name in self.roster.rows.keys() - set(self.roster.up):
                fleet.leave(name)  # a node that could not be rid of its containers keeps its keys, too
            self._settle("take back", dict(provision.take_back(fleet, self._see)))
        # What could not be taken back must be found again by the next `down`.
        if self.roster.failures:
            return ()
        record.forget_boxes(self._cluster.name)
        return (*self._own_image(), *settings.forget(self._where))

    def _nothing_trains(self, fleet: Fleet) -> None:
        """A run without containers has its files and its lock among those that are to go."""

        def holder(name: str, remote: Remote) -> str:
            return remote.run(("sh", "-c", _HOLDER, "sh", *self._place(name)), seconds=_SECONDS).out.strip()

        holders = {name: run for name, run in fleet.each(holder).items() if isinstance(run, str) and run}
        if holders:
            raise _under_way({name: f"{name}: {run}" for name, run in holders.items()}, holders.values())

    def _place(self, name: str) -> tuple[str, str, str]:
        """The cluster, the node, and where this controller keeps things if it is the node."""
        local = any(node.name == name and node.transport == "local" for node in self._cluster.nodes)
        return self._cluster.name, name, str(places.controller_home()) if local else ""

    def _own_image(self) -> tuple[str, ...]:
        """The name that it had in the engine here; the layers stay as that engine's build cache."""
        tag = self._ours()
        if tag is None or LocalRemote().run(("docker", "image", "rm", tag), seconds=_SECONDS).code != 0:
            return ()
        return (f"image {tag} removed",)

    def _ours(self) -> str | None:
        """The image, if the name is of our making: what a user named is a user's to remove."""
        tag = self._before.tag
        return tag if tag and self._before.id and tag.startswith(image_name(self._before.id)) else None

    def _agreed(self, fleet: Fleet, found: dict[str, tuple[docker.Found, ...] | Unreachable]) -> None:
        """Somebody said that all this may go; else nothing does."""
        if self._yes:
            return

        def held(name: str, remote: Remote) -> tuple[str, ...]:
            done = remote.run(("sh", "-c", _HELD, "sh", *self._place(name)), seconds=_SECONDS)
            return tuple(done.out.splitlines())

        told = {name: lines for name, lines in fleet.each(held).items() if isinstance(lines, tuple) and lines}
        runs = tuple(dict.fromkeys(run for _, *names in told.values() for run in names))
        boxes = tuple(one.run for listed in found.values() if isinstance(listed, tuple) for one in listed)
        if not self._consent.present:
            if runs:
                what = f"the logs that nodes keep of {_counted(runs)} would go, and nobody can be asked"
                again = "clusterft down --now --yes" if self._now else "clusterft down --yes"
                raise UsageError(what, remedy=f"{again}   takes them too")
        elif (told or boxes) and not self._consent.goes(self._shown(tuple(told), runs, boxes)):
            raise Interrupted("nothing was taken down")

    def _shown(self, nodes: tuple[str, ...], runs: tuple[str, ...], boxes: tuple[str, ...]) -> Iterator[str]:
        """What goes, and what does not."""
        where, image = ", ".join(nodes) or "the nodes", f", image {tag}" if (tag := self._ours()) else ""
        yield f"From {where} go the keys and files of cluster {self._cluster.name}{image}"
        if boxes:
            yield f"  containers of {_counted(boxes)}"
        if runs:
            yield f"  logs that they keep of {_counted(runs)}"
        yield "What the shared dir has of runs stays: their records, checkpoints and copies of logs."

    def _at_rest(self, fleet: Fleet) -> dict[str, tuple[docker.Found, ...] | Unreachable]:
        """The containers of each node; none of them runs, or it may be ended."""
        found = fleet.each(self._find)
        running = {
            name: one
            for name, listed in found.items()
            if isinstance(listed, tuple)
            for one in listed
            if one.state not in _OVER
        }
        if running and not self._now:
            shown = {
                name: f"{name}: {one.run}, container {one.name}, {one.state}" for name, one in running.items()
            }
            raise _under_way(shown, (one.run for one in running.values()), now="; --now ends them")
        return found

    def _find(self, name: str, remote: Remote) -> tuple[docker.Found, ...]:
        """Our containers there, running or not; none where there is no engine that we could have used."""
        engine = self._engine(remote)
        if engine is None:
            return ()
        self._engines[name] = engine
        return docker.find(engine, cluster=self._cluster.name, owner=docker.owner(remote))

    def _engine(self, remote: Remote) -> Engine | None:
        try:
            return Engine(remote, docker.command(remote))
        except NoEngine as why:
            if why.id not in ("dk.perm", "dk.absent") and self._before.tag is not None:
                raise  # it may hold containers of ours
            return None

    def _remove(self, name: str, found: tuple[docker.Found, ...] | Unreachable) -> Outcome:
        if isinstance(found, Unreachable):
            raise found
        try:
            for one in found:
                docker.remove(self._engines[name], one.id)
        except docker.EngineSaidNo as error:
            return Finding("dk.leftover", "fail", (name,), "a container is left", error.what)
        return tuple(f"container {one.name} of run {one.run} removed" for one in found)

    def _image(self, fleet: Fleet) -> None:
        tag = self._ours()
        if tag is None:
            return

        def drop(name: str, remote: Remote) -> Outcome:
            if name not in self._engines:
                return ()
            done = remote.run((*self._engines[name].command, "image", "rm", tag), seconds=_SECONDS)
            return (f"image {tag} removed",) if done.code == 0 else ()

        self._settle("image", fleet.each(drop))

    def _settle(self, stage: str, outcomes: dict[str, Outcome] | dict[str, Outcome | Unreachable]) -> None:
        for name, outcome in outcomes.items():
            if name in self.roster.up:
                lost = isinstance(outcome, Unreachable)
                self._see(Settled(name, stage, outcome.finding(name) if lost else outcome))  # type: ignore[union-attr, arg-type]

    def _see(self, event: Progress | Settled) -> None:
        with self._turn:
            self.roster.see(event)
            self._show(event, self.roster)


def _counted(runs: Iterable[str]) -> str:
    """How many, and the first of them by name."""
    names = sorted(set(runs))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)} run{'s' * (len(names) != 1)}: {', '.join(names[:_NAMED])}{more}"


def _under_way(shown: dict[str, str], runs: Iterable[str], now: str = "") -> Blocked:
    finding = Finding(
        "dk.leftover",
        "fail",
        tuple(shown),
        "a run of this cluster is under way",
        evidence="\n".join(shown.values()),
        fix=tuple(f"clusterft stop {run}" for run in dict.fromkeys(runs)),
    )
    return Blocked(f"nothing was taken down{now}", (finding,), effect="blocks")
