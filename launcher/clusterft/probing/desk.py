"""A look at the controller's own files of a cluster: what others may read there, or write."""

from __future__ import annotations

import stat
from pathlib import Path

from clusterft.facts.desk import Desk, OwnFile
from clusterft.places import ClusterPlaces

_OTHERS = 0o077


def look(where: ClusterPlaces) -> Desk:
    """What is not as `up` has made it; what is not there is not judged."""
    wanted = {where.dir: 0o700, where.key: 0o600, where.known_hosts: 0o600, where.settings: 0o600}
    found = (_loose(path, mode) for path, mode in wanted.items())
    return Desk(tuple(one for one in found if one))


def _loose(path: Path, wanted: int) -> OwnFile | None:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:  # not there, or not to be looked at, which whoever uses it is told
        return None
    # A pin that others may read gives nothing away; one that they may write lets them in between.
    others = 0o022 if path.name == "known_hosts" else _OTHERS
    return OwnFile(str(path), mode, wanted) if mode & others else None
