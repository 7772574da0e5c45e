"""Checks of what clusterft itself keeps, here and on the nodes: private things that others may touch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from clusterft.checks.check import Check
from clusterft.checks.examination import Examination
from clusterft.checks.system import upkeep
from clusterft.findings import Finding

_FILES = 1024  # what systems give by default


def modes(seen: Examination) -> Iterator[Finding]:
    """ctl.modes: keys that ssh refuses to use, or directories that let others at them."""
    if seen.desk.loose:
        yield Finding(
            id="ctl.modes",
            status="fail" if any(one.path.endswith("id_ed25519") for one in seen.desk.loose) else "warn",
            nodes=(),
            summary="files of this cluster on this machine are open to others",
            evidence="\n".join(f"{one.mode:o} {one.path}, must be {one.wanted:o}" for one in seen.desk.loose),
            cause="copied from elsewhere, or restored from a backup without its modes",
            fix=tuple(f"chmod {one.wanted:o} {one.path}" for one in seen.desk.loose),
            blast_radius="these files",
        )
    for node, health in seen.health.items():
        keys, places = health.ours.open_keys or (), health.ours.open_places or ()
        if keys or places:
            yield Finding(
                id="ctl.modes",
                status="fail" if keys else "warn",
                nodes=(node,),
                summary="the node's relay key is open to others, so ssh refuses it"
                if keys
                else "directories of this cluster are open to others",
                evidence="\n".join(f"~/{path}" for path in (*keys, *places)),
                fix=tuple(
                    f"on {node}: chmod {mode} ~/{path}"
                    for mode, paths in (("600", keys), ("700", places))
                    for path in paths
                ),
                blast_radius="these files",
            )


def barred(seen: Examination) -> Iterator[Finding]:
    """fs.home and os.shm: places that clusterft and training write, and this user may not."""
    for node, health in seen.health.items():
        facts = seen.survey.facts.get(node)
        who = f"{facts.uid}:{facts.gid}" if facts and facts.uid is not None else "$(id -u):$(id -g)"
        shut = health.ours.barred or ()
        own = [path for path in shut if path not in ("/dev/shm", "/var/tmp")]
        if own:
            yield Finding(
                id="fs.home",
                status="fail",
                nodes=(node,),
                summary=f"{own[0]} cannot be written by the SSH user",
                evidence="\n".join(f"[ -w {path} ] says no" for path in own),
                cause="another user or root made it, or nobody may write there: ls -ld and findmnt -T tell",
                fix=tuple(f"on {node}: sudo chown {_depth(path)}{who} {shlex.quote(path)}" for path in own),
                needs_root=True,
                blast_radius="who owns these files",
            )
        for path, identity in (("/dev/shm", "os.shm"), ("/var/tmp", "fs.home")):
            if path in shut:
                yield Finding(
                    id=identity,
                    status="fail",
                    nodes=(node,),
                    summary=f"{path} cannot be written by the SSH user: loaders, NCCL and logs need it",
                    evidence=f"[ -w {path} ] says no",
                    cause="its mode is no longer 1777",
                    fix=(f"on {node}: sudo chmod 1777 {path}",),
                    needs_root=True,
                    blast_radius=f"who may write {path}",
                )


def _depth(path: str) -> str:
    """What is ours is given back whole; of a home only the directory itself, as it holds what others put there."""
    return "-R " if "/.clusterft" in path else ""


def few_files(seen: Examination) -> Iterator[Finding]:
    """os.nofile: fewer open files than a rank with loaders needs; a container has limits of its own."""
    for node, facts in seen.survey.facts.items():
        limit = facts.limits.nofile if facts.limits else None
        if limit is not None and limit < _FILES and not seen.wanted.contained:
            yield Finding(
                id="os.nofile",
                status="warn",
                nodes=(node,),
                summary=f"a process may have {limit} files open: a rank with its loaders and sockets needs more",
                evidence=f"Max open files {limit} (soft) of a login",
                fix=(f"on {node}: {upkeep.limit(facts, '- nofile 65536')}",),
                needs_root=True,
                blast_radius="limits of every login",
            )


CHECKS: tuple[Check, ...] = (
    Check(("ctl.modes",), modes, reads=("facts", "health")),
    Check(("fs.home", "os.shm"), barred, reads=("facts", "health")),
    Check(("os.nofile",), few_files),
)
