"""What is left on the nodes when a run is over: containers, volumes, processes, files. All of it is too much."""

from __future__ import annotations

from collections.abc import Iterable

from lab import FullNode

# Not below other filesystems, but the memory that processes share is one of those that matter.
_FIND = "find / /dev/shm /tmp -xdev -not -path '/var/log/*' 2>/dev/null || :"
_PROCESSES = "ps -eo pid,args | grep -v 'ps -eo' || :"


def files(node: FullNode) -> set[str]:
    """Every path on the node."""
    return set(node.inside(["sh", "-c", _FIND]).splitlines())


def left(node: FullNode, before: set[str], ours: Iterable[str]) -> list[str]:
    """What runs have left on a node, but for files in `ours`: clusterft's own directories and the test's."""
    own = tuple(ours)
    containers = node.inside(["docker", "ps", "--all", "--format", "{{.Names}} {{.Status}}"]).splitlines()
    volumes = node.inside(["docker", "volume", "ls", "--quiet"]).split()
    processes = node.inside(["sh", "-c", _PROCESSES]).splitlines()
    new = sorted(files(node) - before)
    return [
        *(f"container {one}" for one in containers),
        *(f"volume {one}" for one in volumes),
        *(f"process {one}" for one in processes if "python" in one or "clusterft" in one),
        *(f"file {one}" for one in new if not any(one == place or one.startswith(f"{place}/") for place in own)),
    ]
