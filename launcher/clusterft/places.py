"""Where things lie: on the controller, on a node, in the shared dir. Pure paths; nothing is created here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


def controller_home() -> Path:
    """`~/.clusterft`, or what $CLUSTERFT_HOME says."""
    return Path(os.environ.get("CLUSTERFT_HOME") or Path.home() / ".clusterft").absolute()


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
