"""The catalogue in words: every id, layer by layer, in order of dependency. An id is never renamed."""

from clusterft.checks.catalogue import (
    controller,
    data,
    docker,
    gpu,
    host,
    job,
    network,
    ours,
    rendezvous,
    ssh,
    storage,
)
from clusterft.checks.check import Entry

ALL: tuple[Entry, ...] = (
    *controller.ENTRIES,
    *ours.ENTRIES,
    *ssh.ENTRIES,
    *host.ENTRIES,
    *docker.ENTRIES,
    *gpu.ENTRIES,
    *network.ENTRIES,
    *rendezvous.ENTRIES,
    *storage.ENTRIES,
    *data.ENTRIES,
    *job.ENTRIES,
)
_BY_ID = {entry.id: entry for entry in ALL}

__all__ = ["ALL", "entry"]


def entry(identity: str) -> Entry | None:
    """What is told of an id; None for one that the catalogue does not know."""
    return _BY_ID.get(identity)
