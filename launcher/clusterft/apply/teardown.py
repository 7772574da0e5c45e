"""`down`: containers, image, keys and files of a cluster go from every node; what was there before stays.

Refuses to end a run that is under way unless told to. A node that is not reached keeps what it has, and is named.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from clusterft import provision
from clusterft.apply import record, settings
from clusterft.apply.bringup import OURS
from clusterft.board import Roster
from clusterft.checks import Survey, controller
from clusterft.engine import Engine, NoEngine
from clusterft.errors import Blocked
from clusterft.events import Progress, Settled
from clusterft.findings import Finding, Outcome
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster
from clusterft.remote import Asker, Remote, Unreachable
from clusterft.runtime import docker

STAGES = ("reach", "containers", "image", "take back")
_SECONDS = 60.0

Show = Callable[[Progress | Settled, Roster], None]


class Teardown:
    """One `down`."""

    def __init__(self, cluster: Cluster, show: Show, asker: Asker | None = None, *, now: bool) -> None:
        self._cluster = cluster.mustered()
        self._show = show
        self._now = now
        self._asker = asker
        self._where = settings.cluster_places(cluster.name)
        self._before = settings.load(self._where) or settings.Settings()
        self._turn = threading.RLock()
        self._engines: dict[str, Engine] = {}
        self.roster = Roster(tuple(node.name for node in cluster.nodes), STAGES)

    def run(self) -> tuple[str, ...]:
        """All of it; what changed on the controller."""
        with Fleet(self._cluster, self._where.known_hosts, key=self._where.key, asker=self._asker) as fleet:
            missed = tuple(controller.unreached(Survey(self._cluster, {}, tuple(fleet.unreached), {})))
            for name in self.roster.up:
                why = next((finding for finding in missed if name in finding.nodes), None)
                self._see(Settled(name, "reach", why or ()))
            self._containers(fleet)
            self._image(fleet)
            self._settle("take back", dict(provision.take_back(fleet, self._see)))
        # What could not be taken back must be found again by the next `down`.
        if self.roster.failures:
            return ()
        record.forget_boxes(self._cluster.name)
        return settings.forget(self._where)

    def _containers(self, fleet: Fleet) -> None:
        found = fleet.each(self._find)
        running = {
            name: one
            for name, listed in found.items()
            if isinstance(listed, tuple)
            for one in listed
            if one.state == "running"
        }
        if running and not self._now:
            runs = dict.fromkeys(one.run for one in running.values())
            lines = "\n".join(f"{name}: {one.run}, container {one.name}" for name, one in running.items())
            finding = Finding(
                "dk.leftover",
                "fail",
                tuple(running),
                "a run of this cluster is under way",
                evidence=lines,
                fix=tuple(f"clusterft stop {run}" for run in runs),
            )
            raise Blocked("nothing was taken down; --now ends runs too", (finding,), effect="blocks")
        removed = fleet.each(lambda name, _: self._remove(name, found[name]))
        self._settle("containers", removed)

    def _find(self, name: str, remote: Remote) -> tuple[docker.Found, ...]:
        """Our containers there, running or not; none where there is no engine that we could have used."""
        engine = self._engine(remote)
        if engine is None:
            return ()
        self._engines[name] = engine
        return docker.find(engine, cluster=self._cluster.name)

    @staticmethod
    def _engine(remote: Remote) -> Engine | None:
        try:
            return Engine(remote, docker.command(remote))
        except NoEngine as why:
            if why.id not in ("dk.perm", "dk.absent"):
                raise  # it may hold containers of ours
            return None

    def _remove(self, name: str, found: tuple[docker.Found, ...] | Unreachable) -> Outcome:
        if isinstance(found, Unreachable):
            raise found
        for one in found:
            docker.remove(self._engines[name], one.id)
        return tuple(f"container {one.name} of run {one.run} removed" for one in found)

    def _image(self, fleet: Fleet) -> None:
        tag = self._before.tag
        if tag is None or not tag.startswith(OURS):
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
                self._see(Settled(name, stage, _finding(name, outcome)))

    def _see(self, event: Progress | Settled) -> None:
        with self._turn:
            self.roster.see(event)
            self._show(event, self.roster)


def _finding(name: str, outcome: Outcome | Unreachable) -> Outcome:
    if not isinstance(outcome, Unreachable):
        return outcome
    return Finding(outcome.id, "fail", (name,), "could not be asked", outcome.what, fix=outcome.fix)
