"""Asks every node for the folder that the job's `data.cache.local` names. Touches nothing in it."""

from __future__ import annotations

from clusterft.facts import nearby
from clusterft.facts.nearby import Nearby
from clusterft.fleet import Fleet
from clusterft.remote import Remote, Unreachable
from clusterft.spec import JobSpec


def look(fleet: Fleet, job: JobSpec | None) -> dict[str, Nearby | None]:
    """What each reached node says, where the job names a folder; None of one that gave no whole answer in time."""
    path = job.local_cache if job else None
    if path is None:
        return {}

    def one(name: str, remote: Remote) -> Nearby | None:
        return nearby.parse(remote.run(nearby.argv(path), seconds=nearby.SECONDS).out)

    found = fleet.each(one)
    return {name: None if isinstance(said, Unreachable) else said for name, said in found.items()}
