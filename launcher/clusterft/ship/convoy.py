"""The nodes of one shipment: how each is reached, where it keeps what arrives, and who hears how far it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

from clusterft.events import Progress
from clusterft.fleet import Fleet
from clusterft.remote import Remote, Unreachable
from clusterft.ship import scripts
from clusterft.ship.carry import Site
from clusterft.ship.route import Edge

T = TypeVar("T")
_CLOSE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Target:
    """A node that shall have it."""

    scratch: PurePosixPath  # places.scratch(uid, cluster)
    ssh_config: PurePosixPath  # NodePlaces.ssh_config: opens the relays of the others
    command: tuple[str, ...] = ("docker",)  # or ("sudo", "-n", "docker")


@dataclass(frozen=True, slots=True)
class Convoy:
    """`targets` in chain order; `cut`: pairs (who asks, who is asked) that are known not to reach each other."""

    fleet: Fleet
    targets: Mapping[str, Target]
    report: Callable[[Progress], None]
    cut: tuple[Edge, ...] = ()

    def each(self, work: Callable[[str, Remote], T]) -> dict[str, T | Unreachable]:
        """Do the same on every target that is reached, at once."""

        def only_targets(name: str, remote: Remote) -> T | None:
            return work(name, remote) if name in self.targets else None

        found = self.fleet.each(only_targets)
        return {name: result for name, result in found.items() if name in self.targets and result is not None}

    def site(self, node: str, session: str) -> Site:
        """The node's end of a session."""
        target = self.targets[node]
        return Site(self.fleet.remotes[node], target.scratch / session, target.ssh_config)

    def tell(self, stage: str) -> Callable[[str, int, int], None]:
        """(node, done, total) as Progress of a stage."""
        return lambda node, done, total: self.report(Progress(node, stage, "", done, total))

    def close(self, nodes: Collection[str], session: str, owner: str) -> None:
        """Take the session's directories away; a node that does not answer keeps its own for the next time."""

        def close_one(name: str, remote: Remote) -> bool:
            if name not in nodes:
                return False
            argv = scripts.sh(scripts.CLOSE, self.targets[name].scratch / session, owner)
            return remote.run(argv, seconds=_CLOSE_SECONDS).code == 0

        self.each(close_one)
