"""Checks of how much of a node's processors a login may use, and for how long; pure.

A quota at the top of the node's own hierarchy holds for containers too: the node is then a container itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks.examination import Examination
from clusterft.checks.system.confined import holding
from clusterft.facts.health.confines import Confines, Limit
from clusterft.findings import Finding
from clusterft.hosts import Node

_ID = "os.cpu-limit"
_EACH = 2  # a rank keeps one busy beside its card, and its loaders another one
_IDLE = 5  # SCHED_IDLE: only while nobody else wants to run
_FOR_GOOD = "for good: {setting}= by sudo systemctl edit user-UID.slice, or of the unit that has it"


def few(seen: Examination) -> Iterator[Finding]:
    """os.cpu-limit: less of the processors than two for each rank where the node has more, or not for long."""
    for node in seen.survey.cluster.active:
        health, facts = seen.health.get(node.name), seen.survey.facts.get(node.name)
        if health is None or facts is None:
            continue
        if health.confines.memory is None:
            yield Finding(_ID, "unknown", (node.name,), "the limits of a login could not be read")
            continue
        has = health.confines.online or facts.cores or 0
        need = min(_EACH * node.slots, has)
        told = min(holding(seen, health.confines.processors), key=lambda one: one.value, default=None)
        if told and told.value < need * 1000:
            yield _quota(node, told, has)
        if not seen.wanted.contained:
            yield from _of_logins(node, health.confines, has, need)


def _of_logins(node: Node, confines: Confines, has: int, need: int) -> Iterator[Finding]:
    """What every process inherits from the session in which it was started."""
    if confines.pinned and confines.pinned < need:
        yield _slow(
            node,
            f"its processes may run on {confines.pinned} of {has} processors",
            f"Cpus_allowed of a login: {confines.pinned} processors; online: {has}",
            "taskset in a startup file, CPUAffinity= of sshd's unit, or a cpuset above the SSH session",
            (
                f"on {node.name}: sudo taskset -acp 0-{has - 1} $(pgrep -o sshd)   (until it starts anew; "
                f"{_FOR_GOOD.format(setting='CPUAffinity')})",
                f"on {node.name}: grep -n taskset ~/.bashrc ~/.profile; cat /proc/self/cpuset",
            ),
        )
    if confines.nice > 0 or confines.policy == _IDLE:
        how = "are idle ones" if confines.policy == _IDLE else f"have nice {confines.nice}"
        yield _slow(
            node,
            f"its processes {how}: whatever else runs there goes first",
            f"of a login: nice {confines.nice}, policy {confines.policy}",
            "nice in a startup file, Nice= or CPUSchedulingPolicy= of sshd's unit, or `priority` in limits.d",
            (
                f"on {node.name}: sudo renice -n 0 -p $(pgrep -o sshd)   (until it starts anew; "
                f"{_FOR_GOOD.format(setting='Nice')})",
                f"on {node.name}: grep -n nice ~/.bashrc ~/.profile; "
                "grep -rn priority /etc/security/limits.conf /etc/security/limits.d",
            ),
        )
    if confines.cpu_seconds is not None:
        yield Finding(
            id=_ID,
            status="fail",
            nodes=(node.name,),
            summary=f"a process is killed once it has used {confines.cpu_seconds} s of processor time",
            evidence=f"Max cpu time (ulimit -t) of a login: {confines.cpu_seconds} s",
            cause="a ulimit -t in a startup file, or `cpu` in /etc/security/limits.d, as where people only log in",
            fix=(
                f"on {node.name}: grep -n 'ulimit.*-t' ~/.bashrc ~/.profile ~/.bash_profile /etc/profile; "
                "grep -rn '[[:space:]]cpu[[:space:]]' /etc/security/limits.conf /etc/security/limits.d",
                "remove that line, and log in again; or train on machines that are meant for it",
            ),
            blast_radius="limits of every login",
        )


def _quota(node: Node, told: Limit, has: int) -> Finding:
    top = told.path == "/"
    none = "-1" if told.name.endswith("us") else "max"  # how a cgroup writes that there is no quota
    return _slow(
        node,
        f"its processes may use {told.value / 1000:g} of {has} processors",
        f"{told.file}: {told.value / 1000:g} processors",
        "the container that the node is was given no more"
        if top
        else "a cgroup above the SSH session has a quota (CPUQuota of a slice or of sshd's unit)",
        (
            "rent or start it with more processors (docker run --cpus)"
            if top
            else f"on {node.name}: echo {none} | sudo tee {told.file}   "
            f"(until the next boot; {_FOR_GOOD.format(setting='CPUQuota')})",
        ),
    )


def _slow(node: Node, summary: str, evidence: str, cause: str, fix: tuple[str, ...]) -> Finding:
    return Finding(
        id=_ID,
        status="warn",
        nodes=(node.name,),
        summary=f"{summary}: all ranks will wait for {'its ranks' if node.slots > 1 else 'its rank'}",
        evidence=evidence,
        cause=cause,
        fix=fix,
        needs_root=True,
        blast_radius="limits of logins",
    )
