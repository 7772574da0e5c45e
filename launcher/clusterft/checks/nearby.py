"""Checks of the folder on each node's own disk in which a run keeps copies of the cache (data.cache.local). Pure.

A folder that cannot be made or written ends the run; one without room, or on the share itself, only gains nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from shlex import quote

from clusterft.checks.sizes import about
from clusterft.checks.survey import Survey
from clusterft.facts.nearby import Nearby
from clusterft.findings import Finding
from clusterft.spec import JobSpec, mounts

_ID = "data.local-cache"


def found(
    job: JobSpec, survey: Survey, nearby: Mapping[str, Nearby | None], owner: tuple[int, int] | None
) -> Iterator[Finding]:
    """data.local-cache, on every node; `owner` is UID:GID of the run's processes, where that is known."""
    path = job.local_cache
    if path is None:
        return
    for name in survey.facts:
        one = nearby.get(name)
        if one is None:
            yield Finding(_ID, "unknown", (name,), f"{path}, where copies of the cache go, could not be looked at")
            continue
        why, fix = _unusable(job, path, one, owner)
        if why:
            yield _finding(name, "fail", f"copies of the cache cannot be kept in {path}: {why}", one, fix)
            continue
        yield from _of_no_use(job, survey, name, one)


def _unusable(job: JobSpec, path: str, one: Nearby, owner: tuple[int, int] | None) -> tuple[str, tuple[str, ...]]:
    """Why the run could not write there, and what lets it."""
    contained = job.runtime == "docker"
    given = f" && sudo chown {owner[0]}:{owner[1]} {quote(path)}" if owner else ""
    make = (f"sudo mkdir -p {quote(path)}{given}",)
    if not one.directory:
        return f"{one.above} is no directory", (f"another folder for data.cache.local than {path}",)
    over = [mount for mount in job.binds if mounts.covered(path, [mount])]
    if contained and over and max(over, key=lambda mount: len(mount.path)).read_only:
        return "the job mounts it read-only", ("mounts: in job.yaml, without :ro there",)
    if contained and not one.there and any(mount.path == path for mount in over):
        return "it is not there, and an engine mounts only what is", make
    able = one.open_to(*owner) if contained and owner else one.writable
    if not able:
        who = f"{owner[0]}:{owner[1]}, the run's user," if owner else "the SSH user"
        return f"{who} may not write in {one.above}", make
    return "", ()


def _of_no_use(job: JobSpec, survey: Survey, node: str, one: Nearby) -> Iterator[Finding]:
    path, facts = job.local_cache or "", survey.facts.get(node)
    cache = job.train.data.cache if job.train else None
    mount = one.mount(facts.mounts or ()) if facts else None
    if PurePosixPath(path).is_relative_to(job.shared) or (mount and mount.shared):
        what = f"{mount.source} on {mount.target} type {mount.fstype}" if mount else f"shared: {job.shared}"
        summary = f"{path}, where each node keeps copies of the cache, is no disk of the node's own"
        elsewhere = ("data.cache.local: a folder on a disk of the node, or leave it out",)
        yield _finding(node, "warn", summary, one, elsewhere, what)
        return
    wanted = cache.local_gigabytes << 30 if cache else 0
    if one.free_bytes + one.used_bytes < wanted:
        summary = f"{path} has less room than the copies of the cache may take: {about(wanted)}"
        fix = (
            f"train.data.cache.local_gigabytes: {max(1, (one.free_bytes + one.used_bytes) * 9 // 10 >> 30)}",
            f"or free room on {one.mounted_on}",
        )
        yield _finding(node, "warn", summary, one, fix)


def _finding(node: str, status: str, summary: str, one: Nearby, fix: tuple[str, ...], more: str = "") -> Finding:
    said = f"{one.mode} {one.owner[0]}:{one.owner[1]} {one.above}"
    room = f"{about(one.free_bytes)} free on {node}:{one.mounted_on}, {about(one.used_bytes)} in it already"
    return Finding(
        id=_ID,
        status="fail" if status == "fail" else "warn",
        nodes=(node,),
        summary=summary,
        evidence="\n".join(line for line in (said, room, more) if line),
        cause="train.data.cache.local names a folder of each node's own",
        fix=fix,
        needs_root=any(step.startswith("sudo ") for step in fix),
        blast_radius="job.yaml, and that folder",
    )
