"""A shared directory that is on no node, and was never to be mounted: its name is looked at first. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from clusterft.checks.survey import Survey
from clusterft.facts import Disk
from clusterft.findings import Finding


def found(survey: Survey, shared: str, where: str) -> Iterator[Finding]:
    """fs.not-shared, before a run: it is on none of several machines, or not on all; a run would make it on each.

    Below a share that all have mounted, the first run makes it; on one machine there is nobody to share with.
    """
    disks = {
        name: disk for name, facts in survey.facts.items() for disk in facts.disks if disk.directory == shared
    }
    missing = [name for name, disk in disks.items() if disk.above is not None]
    if not missing or len({facts.boot_id or name for name, facts in survey.facts.items()}) < 2:
        return
    nowhere = len(missing) == len(disks)
    if nowhere and all(disk.mount and disk.mount.shared for disk in disks.values()):
        return
    look = "clusterft doctor --only storage   says how it is mounted"
    for name in missing:
        yield Finding(
            id="fs.not-shared",
            status="fail",
            nodes=(name,),
            summary=summary(shared),
            evidence=f"the nearest directory above it is {disks[name].above}",
            cause=NOWHERE if nowhere else "other nodes have it",
            fix=(advice(shared, where, disks.values()), f"if it is right: {look}") if nowhere else (look,),
            blast_radius="job.yaml",
        )


NOWHERE = "no node has it, and nothing says that it was to be mounted"


def summary(shared: str) -> str:
    """The same from whoever finds it."""
    return f"{shared} does not exist"


def advice(shared: str, where: str, disks: Iterable[Disk]) -> str:
    """To correct the line that names it, by a name that is there and much like it; `where` is FILE:LINE:COLUMN."""
    near = next((name for disk in disks if (name := _near(shared, disk))), None)
    return f"correct shared: {f'at {where}' if where else 'in the job'}" + (
        f"   did you mean {near}?" if near else ""
    )


def _near(shared: str, disk: Disk) -> str | None:
    if disk.above is None or disk.directory != shared or not PurePosixPath(shared).is_relative_to(disk.above):
        return None
    first, *rest = PurePosixPath(shared).relative_to(disk.above).parts
    alike = difflib.get_close_matches(first, disk.beside, n=1)
    return str(PurePosixPath(disk.above, alike[0], *rest)) if alike else None
