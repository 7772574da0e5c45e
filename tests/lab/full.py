"""The full lab: nodes that are containers with an sshd and a Docker engine of their own.

Owns their network and their volumes, which all carry the lab's label, and which engine
each node has. Refuses to need root on this machine: all it asks of it is an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any, ClassVar, Self

from . import packages
from .access import Endpoint, make_key
from .base import Lab, in_parallel
from .engine import LABEL, docker, engine_available, ensure_engine
from .errors import LabError, LabUnavailable
from .full_node import SHARED, FullNode
from .journal import Journal
from .node_image import node_image
from .proc import which
from .switch import Switch

_NEEDS = ("ssh", "ssh-keygen")
_HOME_MIB = 256
_MOST = 16


def full_available() -> LabUnavailable | None:
    """Why this machine cannot have full nodes, or None; looks only, changes nothing."""
    return engine_available() or packages.lacking(_NEEDS)


class FullLab(Lab[FullNode]):
    """Full nodes on one network of this machine's engine."""

    weight: ClassVar[str] = "full"
    journal: Journal
    shared = SHARED

    def __init__(self, journal: Journal, subnet: str, images: Sequence[str]) -> None:
        super().__init__(journal)
        self.images = images
        self.journal = journal
        self.prefix = f"cfl-{journal.id}"
        self.subnet = subnet
        base = subnet.rpartition(".")[0]
        self.nodes = [FullNode(f"n{i}", f"{base}.{10 + i}", image, self) for i, image in enumerate(images, 1)]

    @classmethod
    def up(cls, count: int = 2, engine: str | Sequence[str] = "20.10") -> Self:
        """Bring up that many nodes; on any failure nothing of them stays.

        Of several engine versions, each node gets the next in turn.
        """
        if why := full_available():
            raise why
        if not 1 <= count <= _MOST:
            raise LabError(f"{count} full nodes: from 1 to {_MOST} fit into one lab")
        packages.ensure(_NEEDS)
        ensure_engine()
        versions = [engine] if isinstance(engine, str) else list(engine)
        kinds = {version: node_image(version) for version in versions[:count]}
        images = [kinds[version] for version in islice(cycle(versions), count)]
        with cls._begun() as journal:
            subnet = str(journal.claim_subnet(_taken()))
            journal.describe({"subnet": subnet, "images": images})
            lab = cls(journal, subnet, images)
            lab._raise_up()
        return lab

    @classmethod
    def attach(cls, journal: Journal) -> Self:
        """The lab that another process brought up."""
        facts: dict[str, Any] = journal.described()
        return cls(journal, facts["subnet"], facts["images"])

    def _raise_up(self) -> None:
        make_key(self.key, f"clusterft-lab-{self.id}")
        label = f"{LABEL}={self.id}"
        self.journal.note("network", self.prefix)
        docker("network", "create", "--label", label, "--subnet", self.subnet, self.prefix)
        self._make_disks(label)
        neighbours = [f"{node.name}:{node.address}" for node in self.nodes]
        publics: dict[str, str] = {}

        def one(node: FullNode) -> None:
            publics[node.name] = node.create(self.prefix, neighbours)
            node.boot()

        in_parallel(one, self.nodes, width=4)
        ends = [(Endpoint(n.name, n.address, n.port), publics[n.name]) for n in self.nodes]
        self.access.write(ends)

    def _make_disks(self, label: str) -> None:
        """The shared volume, and a small disk for each home that survives reboots.

        An engine forgets a disk in memory when the last container that uses it stops,
        so one that does nothing else holds all of them.
        """
        self.journal.note("volume", f"{self.prefix}-shared")
        docker("volume", "create", "--label", label, f"{self.prefix}-shared")
        homes = [f"{node.container}-home" for node in self.nodes]
        small = ["--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", f"o=size={_HOME_MIB}m"]
        for home in homes:
            self.journal.note("volume", home)
            docker("volume", "create", "--label", label, *small, home)
        holder = f"{self.prefix}-disks"
        self.journal.note("container", holder)
        mounts = [f"--volume={home}:/disks/{home}" for home in homes]
        docker(
            "run",
            "--detach",
            "--name",
            holder,
            "--label",
            label,
            "--network=none",
            "--init",
            *mounts,
            self.images[0],
            "sleep",
            "infinity",
        )


def _taken() -> set[str]:
    """Address ranges of the engine's networks and of this machine's."""
    networks = docker("network", "ls", "--quiet").split()
    form = "{{range .IPAM.Config}}{{println .Subnet}}{{end}}"
    # A network of another lab may go between the two calls; the others are still printed.
    words = docker("network", "inspect", "--format", form, *networks, check=False).split()
    routed = Switch.taken() if which("ip") else set()
    return routed | {word for word in words if ":" not in word}
