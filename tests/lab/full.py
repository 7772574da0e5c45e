"""The full lab: nodes that are containers with an sshd and a Docker engine of their own.

Owns their network and their volumes, which all carry the lab's label, and which engine
each node has. Refuses to need root on this machine: all it asks of it is an engine.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, ClassVar, Self

from . import packages
from .base import Lab, in_parallel
from .engine import LABEL, docker, engine_available, ensure_engine
from .errors import LabError, LabUnavailable
from .full_node import HOMES, SHARED, FullNode
from .journal import Journal
from .node_image import node_image
from .proc import which
from .sshd import PATIENT
from .switch import Switch

_NEEDS = ("ssh", "ssh-keygen")
_HOME_MIB = 256
_MOST = 16


def full_available() -> LabUnavailable | None:
    """Why this machine cannot have full nodes, or None; looks only, changes nothing."""
    return engine_available() or packages.lacking(_NEEDS)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What shall differ from plain nodes; see `FullLab.up`."""

    homes: str = "own"
    bastion: bool = False
    max_startups: str = PATIENT
    mounts: tuple[str, ...] = ()
    hangs: bool = False
    shared_mib: int | None = None

    def __post_init__(self) -> None:
        # JSON gives a list back.
        object.__setattr__(self, "mounts", tuple(self.mounts))
        for path in self.mounts:
            if not path.startswith("/") or ":" in path or not Path(path).exists():
                raise LabError(f"mount {path!r}: an absolute path of this machine that exists, without a colon")
        if self.homes not in HOMES:
            raise LabError(f"homes {self.homes!r}: one of {', '.join(HOMES)}")
        if (self.homes == "squashed" or self.hangs) and not Path("/dev/fuse").exists():
            what = "a shared directory that hangs needs" if self.hangs else "squashed homes need"
            raise LabUnavailable(f"{what} FUSE, and there is no /dev/fuse", "load the fuse module")


class FullLab(Lab[FullNode]):
    """Full nodes on one network of this machine's engine."""

    weight: ClassVar[str] = "full"
    journal: Journal
    shared = SHARED

    def __init__(self, journal: Journal, subnet: str, made_of: Sequence[Sequence[str]], wishes: Wishes) -> None:
        """`made_of` holds the engine and the image of each node."""
        super().__init__(journal)
        self.wishes = wishes
        self.journal = journal
        self.prefix = f"cfl-{journal.id}"
        self.subnet = subnet
        base = subnet.rpartition(".")[0]
        self.nodes = [
            FullNode(f"n{i}", f"{base}.{10 + i}", engine, image, self)
            for i, (engine, image) in enumerate(made_of, 1)
        ]

    @classmethod
    def up(  # noqa: PLR0913  as many as there are wishes
        cls,
        count: int = 2,
        engine: str | Sequence[str] = "20.10",
        *,
        homes: str = "own",
        nat: Collection[str] = (),
        bastion: bool = False,
        max_startups: str = PATIENT,
        mounts: Collection[str] = (),
        hangs: bool = False,
        shared_mib: int | None = None,
    ) -> Self:
        """Bring up that many nodes; on any failure nothing of them stays.

        Of several engines (see `ENGINES`), each node gets the next in turn. `homes` is about
        /home/worker: "own", "shared" by all nodes, or "squashed", which is shared and
        closed to root. `nat` names nodes that others see under another address. With
        `bastion`, the controller reaches n1, and the rest through it. `mounts` are paths of
        this machine that every node shows at the same place, to read only. With `hangs`, the
        shared directory can be frozen on a node; `shared_mib` makes it a disk of that size.
        """
        if why := full_available():
            raise why
        if not 1 <= count <= _MOST:
            raise LabError(f"{count} full nodes: from 1 to {_MOST} fit into one lab")
        wishes = Wishes(homes, bastion, max_startups, tuple(mounts), hangs, shared_mib)
        packages.ensure(_NEEDS)
        ensure_engine()
        kinds = [engine] if isinstance(engine, str) else list(engine)
        images = {kind: node_image(kind) for kind in kinds[:count]}
        made_of = [(kind, images[kind]) for kind in islice(cycle(kinds), count)]
        with cls._begun() as journal:
            subnet = str(journal.claim_subnet(_taken()))
            journal.describe({"subnet": subnet, "made_of": made_of, "wishes": asdict(wishes)})
            lab = cls(journal, subnet, made_of, wishes)
            for name in nat:
                lab.node(name)
            lab._raise_up(nat)
        return lab

    @classmethod
    def attach(cls, journal: Journal) -> Self:
        """The lab that another process brought up."""
        facts: dict[str, Any] = journal.described()
        return cls(journal, facts["subnet"], facts["made_of"], Wishes(**facts["wishes"]))

    def _raise_up(self, nat: Collection[str]) -> None:
        self.access.make_secrets(f"clusterft-lab-{self.id}")
        label = f"{LABEL}={self.id}"
        self.journal.note("network", self.prefix)
        docker("network", "create", "--label", label, "--subnet", self.subnet, self.prefix)
        self._make_disks(label)
        neighbours = [f"{node.name}:{node.address}" for node in self.nodes]
        publics: dict[str, str] = {}

        def one(node: FullNode) -> None:
            publics[node.name] = node.create(self.prefix, neighbours)
            node.boot()
            if node.name in nat:
                node.behind_nat()
            if self.wishes.bastion and node is not self.nodes[0]:
                node.hide()

        in_parallel(one, self.nodes, width=4)
        self.access.write((node.endpoint(self.nodes[0]), publics[node.name]) for node in self.nodes)

    def _make_disks(self, label: str) -> None:
        """The shared volume, and a small disk for each home that survives reboots.

        An engine forgets a disk in memory when the last container that uses it stops,
        so one that does nothing else holds all of them.
        """
        shared = f"{self.prefix}-shared"
        self.journal.note("volume", shared)
        docker("volume", "create", "--label", label, *_disk(self.wishes.shared_mib), shared)
        if self.wishes.homes != "own":
            self.journal.note("volume", f"{self.prefix}-home")
            docker("volume", "create", "--label", label, f"{self.prefix}-home")
        homes = [f"{node.container}-home" for node in self.nodes]
        for home in homes:
            self.journal.note("volume", home)
            docker("volume", "create", "--label", label, *_disk(_HOME_MIB), home)
        holder = f"{self.prefix}-disks"
        self.journal.note("container", holder)
        mounts = [f"--volume={home}:/disks/{home}" for home in [shared, *homes]]
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
            self.nodes[0].image,
            "sleep",
            "infinity",
        )


def _disk(mib: int | None) -> list[str]:
    """The options of a volume of that size, which lies in memory; None: as large as the engine's disk."""
    return [] if mib is None else ["--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", f"o=size={mib}m"]


def _taken() -> set[str]:
    """Address ranges of the engine's networks and of this machine's."""
    networks = docker("network", "ls", "--quiet").split()
    form = "{{range .IPAM.Config}}{{println .Subnet}}{{end}}"
    # A network of another lab may go between the two calls; the others are still printed.
    words = docker("network", "inspect", "--format", form, *networks, check=False).split()
    routed = Switch.taken() if which("ip") else set()
    return routed | {word for word in words if ":" not in word}
