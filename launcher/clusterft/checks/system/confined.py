"""Checks of how much of a node a login may use, where ranks are processes of that login; pure.

A limit at the top of the node's own hierarchy holds for containers too: the node is then a container itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks.examination import Examination
from clusterft.checks.sizes import size
from clusterft.facts.health.confines import Limit
from clusterft.findings import Finding
from clusterft.hosts import Node

_GIB = 2**30
# Own figures: torch and its libraries take most of a gigabyte; whoever loads SDXL holds its weights for a moment.
_LEAST, _REAL = _GIB, 8 * _GIB
_ADDRESSES = 16 * _GIB  # torch, its threads and their heaps reserve some gigabytes; CUDA far more than a node has
_FEW, _ENOUGH = 128, 512  # processes and threads of a rank: its own, BLAS's, loaders, NCCL's


def memory(seen: Examination) -> Iterator[Finding]:
    """os.memory-limit: what a cgroup or `ulimit -v` leaves to a run, against what its ranks need."""
    for node in seen.survey.cluster.active:
        health, facts = seen.health.get(node.name), seen.survey.facts.get(node.name)
        if health is None or facts is None:
            continue
        if health.confines.memory is None:
            yield Finding("os.memory-limit", "unknown", (node.name,), "the limits of a login could not be read")
            continue
        told = min(holding(seen, health.confines.memory), key=lambda one: one.value, default=None)
        least, need = _LEAST * node.slots, (_REAL if _real(seen) else _LEAST) * node.slots
        if told and told.value < need and told.value < (facts.memory or told.value + 1):
            yield _little(seen, node, told, facts.memory, fail=told.value < least)
        if seen.wanted.contained:
            continue
        space, data = health.confines.address_space, health.confines.data
        if space is not None and (seen.wanted.device == "cuda" or space < _ADDRESSES):
            yield _addresses(node.name, space, "address space", "-v", "as")
        if data is not None and data < _ADDRESSES:
            yield _addresses(node.name, data, "data size", "-d", "data")


def processes(seen: Examination) -> Iterator[Finding]:
    """os.nproc: so few processes and threads that ranks with their loaders cannot be had."""
    for node in seen.survey.cluster.active:
        health, facts = seen.health.get(node.name), seen.survey.facts.get(node.name)
        if health is None or facts is None:
            continue
        if health.confines.processes is None:
            yield Finding("os.nproc", "unknown", (node.name,), "the limits of a login could not be read")
            continue
        told = [(one.value, one.file) for one in holding(seen, health.confines.processes)]
        own = health.confines.own_processes
        if own is not None and facts.uid != 0 and not seen.wanted.contained:
            told.append((own, "ulimit -u"))
        value, place = min(told, default=(None, ""))
        if value is None or value >= _ENOUGH * node.slots:
            continue
        raised = (
            f"on {node.name}: echo '{facts.user} - nproc unlimited' | sudo tee "
            "/etc/security/limits.d/90-clusterft-nproc.conf   (counts from the next login)"
            if place == "ulimit -u"
            else f"on {node.name}: echo max | sudo tee {place}   (until the next boot; {_for_good('TasksMax')})"
        )
        yield Finding(
            id="os.nproc",
            status="fail" if value < _FEW * node.slots else "warn",
            nodes=(node.name,),
            summary=f"a login may have {value} processes and threads: ranks with their loaders need more",
            evidence=f"{place}: {value}",
            cause="more end in `can't start new thread` or `Resource temporarily unavailable`",
            fix=(raised,),
            needs_root=True,
            blast_radius="limits of logins",
        )


def holding(seen: Examination, limits: tuple[Limit, ...]) -> list[Limit]:
    """Those that ranks are under: containers of an engine lie beside the logins, and share the top alone."""
    return [one for one in limits if one.path == "/" or not seen.wanted.contained]


def _real(seen: Examination) -> bool:
    """Whether weights of SDXL are loaded, as far as is known."""
    train = seen.wanted.job.train if seen.wanted.job else None
    return train is None or not train.model.startswith("builtin:")


def _little(seen: Examination, node: Node, told: Limit, has: int | None, *, fail: bool) -> Finding:
    shown = f"; the node has {size(has)}" if has else ""
    top = told.path == "/"
    return Finding(
        id="os.memory-limit",
        status="fail" if fail else "warn",
        nodes=(node.name,),
        summary=f"{'its processes' if top else 'processes of a login'} may use {size(told.value)} of its memory: "
        f"{'too little for' if fail else 'little for'} {node.slots} rank{'s' if node.slots > 1 else ''}",
        evidence=f"{told.file}: {size(told.value)}{shown}",
        cause="the container that the node is was given no more"
        if top
        else "a cgroup above the SSH session has a limit (MemoryMax of a slice or of sshd's unit); what goes "
        "beyond it is killed, though free shows room",
        fix=(
            "rent or start it with more memory (docker run --memory)"
            if top
            else f"on {node.name}: {_raise(told)}   (until the next boot; {_for_good('MemoryMax')})",
        ),
        needs_root=True,
        blast_radius="limits of logins",
    )


def _raise(told: Limit) -> str:
    return f"echo {'-1' if told.name.endswith('in_bytes') else 'max'} | sudo tee {told.file}"


def _for_good(setting: str) -> str:
    return f"for good: {setting}=infinity by sudo systemctl edit user-UID.slice, or of the unit that has it"


def _addresses(node: str, space: int, name: str, option: str, word: str) -> Finding:
    """By what /proc calls such a limit, the shell's option, and the word of limits.d."""
    return Finding(
        id="os.memory-limit",
        status="fail",
        nodes=(node,),
        summary=f"a process may have {size(space)} of addresses: torch and its threads need more",
        evidence=f"Max {name} (ulimit {option}) of a login: {size(space)}",
        cause=f"a ulimit {option} in ~/.bashrc, ~/.profile or /etc/security/limits.d ({word})",
        fix=(
            f"on {node}: grep -n 'ulimit.*{option}' ~/.bashrc ~/.profile ~/.bash_profile /etc/profile; "
            f"grep -rn '[[:space:]]{word}[[:space:]]' /etc/security/limits.conf /etc/security/limits.d",
            "remove that line, and log in again",
        ),
        blast_radius="limits of every login",
    )
