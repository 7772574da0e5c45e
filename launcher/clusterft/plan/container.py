"""ContainerPlan: one container of a run, decided before the engine is asked. Pure; speaks no SDK's language.

The container's name is fixed by node and cards: creating it is the lock that keeps two runs off the same cards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from clusterft.errors import ClusterftError
from clusterft.facts import NodeFacts, storage
from clusterft.hosts import Node
from clusterft.spec import Mount

_LOG_BYTES, _LOG_FILES = "50m", "3"  # what the engine keeps of a container's stdout
_STACK = 64 << 20  # bytes, as NVIDIA's own images are started; an unlimited stack makes NCCL's threads fail
_NO_LIMIT = -1
_INFINIBAND = "/dev/infiniband"


@dataclass(frozen=True, slots=True)
class Labels:
    """What an engine is asked by: the state of a run is its containers' labels."""

    cluster: str
    run: str
    node: str
    machine_rank: int
    owner: int  # who logs in on the node, by number: another person's cluster may have the same name
    attempt: int = 0  # the first one of this container
    config_digest: str = ""

    def to_dict(self) -> dict[str, str]:
        """As the engine keeps them."""
        return {
            "clusterft.cluster": self.cluster,
            "clusterft.run": self.run,
            "clusterft.node": self.node,
            "clusterft.machine-rank": str(self.machine_rank),
            "clusterft.owner": str(self.owner),
            "clusterft.attempt": str(self.attempt),
            "clusterft.config-digest": self.config_digest,
        }


@dataclass(frozen=True, slots=True)
class Person:
    """Who a container runs as: one numeric UID:GID on all nodes."""

    uid: int
    gid: int
    name: str

    def __str__(self) -> str:
        """As the engine is told."""
        return f"{self.uid}:{self.gid}"

    def passwd_line(self) -> str:
        """Without an entry, ssh, sshd and getpass refuse to work."""
        return f"{self.name}:x:{self.uid}:{self.gid}::{HOME}:/bin/bash\n"

    def group_line(self) -> str:
        """The same for the group."""
        return f"{self.name}:x:{self.gid}:\n"


HOME = PurePosixPath("/home/clusterft")


Propagation = Literal["rslave", "rprivate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fittings:
    """What a container gets of its node: one of a run, and the one that doctor opens as if it were of a run."""

    gpus: tuple[str, ...] = ()  # card numbers or UUIDs; ("all",) for every card
    binds: tuple[Mount, ...] = ()  # the same path inside as outside
    devices: tuple[str, ...] = ()
    shm: int | None = None  # bytes of its own; None: the node's
    # rslave: what the node mounts later (autofs, an NFS that comes back) is seen inside. An engine refuses that at
    # the start where the node's own mounts are private, as without systemd: there it is rprivate.
    propagation: Propagation = "rslave"

    def host(self) -> dict[str, Any]:
        """Their part of the engine's own create request (API 1.41)."""
        memory = {"IpcMode": "host"} if self.shm is None else {"IpcMode": "private", "ShmSize": self.shm}
        host: dict[str, Any] = {
            "NetworkMode": "host",
            **memory,
            "Init": True,
            # Not as Binds, with which an engine makes a directory that is not there.
            "Mounts": [self._bind(mount) for mount in self.binds],
            "Devices": [
                {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rwm"} for path in self.devices
            ],
            "Ulimits": self._limits(),
        }
        if self.gpus:
            cards = {"Count": -1} if self.gpus == ("all",) else {"DeviceIDs": list(self.gpus)}
            host["DeviceRequests"] = [{"Capabilities": [["gpu"]], **cards}]
        # Never the engine's default, which may be a driver whose server is gone: then no container starts.
        host["LogConfig"] = {"Type": "json-file", "Config": {"max-size": _LOG_BYTES, "max-file": _LOG_FILES}}
        return host

    def words(self) -> tuple[str, ...]:
        """The same for `docker run`, made of that very part: neither gets what the other does not."""
        host = self.host()
        words = [f"--network={host['NetworkMode']}", f"--ipc={host['IpcMode']}", "--init"]
        words += [f"--shm-size={host['ShmSize']}"] if "ShmSize" in host else []
        words += [f"--log-driver={host['LogConfig']['Type']}"]
        for name, value in host["LogConfig"]["Config"].items():
            words += ["--log-opt", f"{name}={value}"]
        for limit in host["Ulimits"]:
            words += ["--ulimit", f"{limit['Name']}={limit['Soft']}:{limit['Hard']}"]
        for device in host["Devices"]:
            words += ["--device", device["PathOnHost"]]
        for one in host["Mounts"]:
            fields = [f"type={one['Type']}", f"source={one['Source']}", f"target={one['Target']}"]
            fields += ["readonly"] if one.get("ReadOnly") else []
            words += ["--mount", _csv(*fields, f"bind-propagation={one['BindOptions']['Propagation']}")]
        for request in host.get("DeviceRequests", ()):
            cards = request.get("DeviceIDs")
            words += ["--gpus", _csv("device=" + ",".join(cards)) if cards else "all"]
        return tuple(words)

    def _bind(self, mount: Mount) -> dict[str, Any]:
        sealed = {"ReadOnly": True} if mount.read_only else {}
        return {
            "Type": "bind",
            "Source": mount.path,
            "Target": mount.path,
            **sealed,
            "BindOptions": {"Propagation": self.propagation},
        }

    def _limits(self) -> list[dict[str, Any]]:
        """InfiniBand pins memory; without it the limit stays, since not every engine may lift it."""
        memlock = [{"Name": "memlock", "Soft": _NO_LIMIT, "Hard": _NO_LIMIT}] if self.devices else []
        return [*memlock, {"Name": "stack", "Soft": _STACK, "Hard": _STACK}]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPlan(Fittings):
    """Everything about one container but the files that are put into it."""

    name: str
    image: str
    command: tuple[str, ...]
    labels: Labels
    person: Person
    env: dict[str, str] = field(default_factory=dict)
    # on-failure without a count, which an engine would forget when it restarts: how often is ours to decide.
    restart: Literal["no", "on-failure"] = "no"
    stop_seconds: int | None = None  # from the engine's TERM to its KILL; None: the engine's own 10

    def to_dict(self) -> dict[str, Any]:
        """The engine's own create request (API 1.41)."""
        host = {**self.host(), "RestartPolicy": {"Name": self.restart}}
        return {
            "Image": self.image,
            "Cmd": list(self.command),
            "Entrypoint": [],
            "User": str(self.person),
            "Env": [f"{name}={value}" for name, value in sorted(self.env.items())],
            "Labels": self.labels.to_dict(),
            "WorkingDir": str(HOME),
            **({} if self.stop_seconds is None else {"StopTimeout": self.stop_seconds}),
            "HostConfig": host,
        }


def _csv(*fields: str) -> str:
    """As the engine's command reads a list: what holds a comma or a quote stands in quotes."""
    return ",".join('"' + one.replace('"', '""') + '"' if set(one) & set(',"\n') else one for one in fields)


def name(node: Node) -> str:
    """The one name that the containers on these cards of this node can have."""
    cards = hashlib.sha256(",".join(sorted(node.gpus)).encode()).hexdigest()[:8] if node.gpus else "all"
    return f"clusterft-{node.name}-{cards}"


def cards(node: Node, facts: NodeFacts, device: Literal["cpu", "cuda"] = "cuda") -> tuple[str, ...]:
    """Which cards the container sees: the hostfile's, else all; none where there are none, or none are used."""
    if not facts.gpus or device == "cpu":
        return ()
    return node.gpus or ("all",)


def propagation(facts: NodeFacts, binds: Iterable[Mount]) -> Propagation:
    """For all of a container's mounts, as one of them that is refused ends it."""
    over = (storage.over(facts.mounts or (), mount.path) for mount in binds)
    return "rprivate" if any(one and one.target in facts.private_mounts for one in over) else "rslave"


def devices(facts: NodeFacts) -> tuple[str, ...]:
    """What a container needs of /dev besides its cards."""
    return (_INFINIBAND,) if facts.infiniband else ()


def person(head: NodeFacts, user: str | None = None) -> Person:
    """One numeric UID:GID on all nodes: the job's `UID:GID`, else the SSH user's on the head."""
    name = head.user if head.user and head.user.isidentifier() and head.user.isascii() else "clusterft"
    if user is not None:
        uid, _, gid = user.partition(":")
        return Person(int(uid), int(gid), name if int(uid) == head.uid else "clusterft")
    if head.uid is None or head.gid is None:
        raise ClusterftError(f"who the SSH user on {head.node} is could not be read")
    return Person(head.uid, head.gid, name)
