"""`push`: a file or a tree, the same on every node, over the relays that `up` has laid."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from clusterft import places, ship
from clusterft.apply import settings
from clusterft.board import Roster
from clusterft.checks import Survey, controller
from clusterft.errors import UsageError
from clusterft.events import Progress, Settled
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster
from clusterft.places import NodePlaces
from clusterft.remote import Asker
from clusterft.ship import Convoy, Pushed, Target

STAGES = ("reach", "push")

Show = Callable[[Progress | Settled, Roster], None]


class Pushing:
    """One `push`."""

    def __init__(self, cluster: Cluster, show: Show, asker: Asker | None = None) -> None:
        self._cluster = cluster.mustered()
        self._show = show
        self._asker = asker
        self._where = settings.cluster_places(cluster.name)
        if settings.load(self._where) is None:
            what = f"cluster {cluster.name} was not brought up from here"
            raise UsageError(what, remedy="run: clusterft up")
        self._turn = threading.RLock()
        self.roster = Roster(tuple(node.name for node in cluster.nodes), STAGES)

    def run(self, source: Path, to: PurePosixPath | None, *, full: bool) -> Pushed:
        """Bring it to every node that is reached; the roster knows the others."""
        with Fleet(self._cluster, self._where.known_hosts, key=self._where.key, asker=self._asker) as fleet:
            survey = fleet.survey(lambda node: ())
            missed = tuple(controller.unreached(survey))
            for name in self.roster.rows:
                why = next((finding for finding in missed if name in finding.nodes), None)
                self._see(Settled(name, "reach", why or ()))
            targets = {name: self._target(name, survey) for name in self.roster.up}
            done = ship.push(Convoy(fleet, targets, self._see), source, to, full=full)
        for name in targets:
            self._see(Settled(name, "push", done.outcomes.get(name, ())))
        return done

    def _target(self, name: str, survey: Survey) -> Target:
        known = survey.facts[name]
        at = NodePlaces(PurePosixPath(known.home or "/") / ".clusterft", self._cluster.name, name)
        return Target(places.scratch(known.uid or 0, self._cluster.name), at.ssh_config)

    def _see(self, event: Progress | Settled) -> None:
        with self._turn:
            self.roster.see(event)
            self._show(event, self.roster)
