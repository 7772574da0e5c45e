"""Where things lie: on the controller, on a node, in the shared dir. Pure paths; nothing is created here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


def controller_home() -> Path:
    """`~/.clusterft`, or what $CLUSTERFT_HOME says."""
    return Path(os.environ.get("CLUSTERFT_HOME") or Path.home() / ".clusterft").absolute()


@dataclass(frozen=True, slots=True)
class ClusterPlaces:
    """What the controller keeps of one cluster."""

    home: Path
    cluster: str

    @property
    def dir(self) -> Path:
        """All of it; 0700."""
        return self.home / self.cluster

    @property
    def known_hosts(self) -> Path:
        """The pins: the host keys that this cluster's nodes must present."""
        return self.dir / "known_hosts"

    @property
    def key(self) -> Path:
        """The controller's own key to this cluster, made when no other one opens a node."""
        return self.dir / "id_ed25519"

    @property
    def hostfile(self) -> Path:
        """The hostfile as it was when `up` last succeeded."""
        return self.dir / "hostfile"

    @property
    def addresses(self) -> Path:
        """Where nodes are dialled, as `doctor --fix` has settled it."""
        return self.dir / "addresses.json"

    @property
    def settings(self) -> Path:
        """What `up` was told and what came of it: image, shared dir."""
        return self.dir / "settings.json"

    @property
    def baseline(self) -> Path:
        """What `doctor --deep` has measured before."""
        return self.dir / "baseline.json"


def default_cluster(home: Path) -> Path:
    """The file that names the cluster of the last `up`; no cluster's name begins with a dot."""
    return home / ".default"


@dataclass(frozen=True, slots=True)
class NodePlaces:
    """One node's directories; `root` is its `~/.clusterft`, as an absolute path on that node."""

    root: PurePosixPath
    cluster: str
    node: str

    @property
    def base(self) -> PurePosixPath:
        """Of this node alone: homes may be one NFS directory for all nodes."""
        return self.root / self.cluster / "nodes" / self.node

    @property
    def relay(self) -> PurePosixPath:
        """The forced command of the relay keys; one file for all nodes that share a home."""
        return self.root / self.cluster / "relay.sh"

    @property
    def relay_key(self) -> PurePosixPath:
        """This node's own relay key: made here, never leaves."""
        return self.base / "relay_ed25519"

    @property
    def known_hosts(self) -> PurePosixPath:
        """The host keys of the other nodes, from the controller's pins."""
        return self.base / "known_hosts"

    @property
    def ssh_config(self) -> PurePosixPath:
        """`ssh -F` this file reaches any other node's relay by its name."""
        return self.base / "ssh_config"

    @property
    def hostfile(self) -> PurePosixPath:
        """The hostfile for DeepSpeed: active nodes only."""
        return self.base / "hostfile"

    @property
    def lock(self) -> PurePosixPath:
        """Held by the run that uses the node."""
        return self.base / "active.lock"

    def run(self, run: str) -> PurePosixPath:
        """Config, supervisor files and logs of one run."""
        return self.base / "runs" / run


@dataclass(frozen=True, slots=True)
class RunPlaces:
    """One run's directories in the shared dir."""

    shared: PurePosixPath
    run: str

    @property
    def dir(self) -> PurePosixPath:
        """The run directory, the same on every node."""
        return self.shared / self.run

    def logs(self, attempt: int, node: str) -> PurePosixPath:
        """The mirror of one node's logs."""
        return self.dir / "logs" / f"attempt-{attempt}" / node

    def events(self, node: str) -> PurePosixPath:
        """What one node's supervisor said; one writer a file, since appends of several corrupt on NFS."""
        return self.dir / "events" / f"{node}.jsonl"


def code(shared: PurePosixPath, digest: str) -> PurePosixPath:
    """A shipped folder of a user's program, by its content: runs with the same code have one."""
    return shared / ".clusterft" / "code" / digest


# In a container: this run's files only, put in with the engine's archive API.
CONTAINER = PurePosixPath("/run/clusterft")


def scratch(uid: int, cluster: str) -> PurePosixPath:
    """Node-local room for what is under way: on the machine's own disk, also where homes are NFS."""
    return PurePosixPath(f"/var/tmp/clusterft-{uid}") / cluster
