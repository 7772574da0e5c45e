"""Checks of the Python in which ranks without containers run: there, able to load torch, alike on all. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from shlex import quote

from clusterft.checks import interpreters
from clusterft.facts.imports import Imports
from clusterft.findings import Finding

_ID = "run.import"
_ALIKE = ("torch", "clusterft_trainer", "accelerate", "deepspeed")  # those whose ranks talk with each other
_FEW = 160  # characters of an error that a summary has room for


def found(nodes: Sequence[str], said: Mapping[str, Imports]) -> Iterator[Finding]:
    """run.import, on every node that answered."""
    well: dict[str, Imports] = {}
    for node in nodes:
        one = said.get(node)
        if one is None:
            continue
        python = one.command
        if one.late:
            yield Finding(_ID, "unknown", (node,), f"{python} did not load torch in time", one.error)
        elif not one.python:
            yield interpreters.found(node, one, _usual(said))
        elif one.absent:
            names = ", ".join(one.absent)
            yield _fail(node, f"the job's Python has no {names}", _told(one), _install(node, one))
        elif one.error and one.noexec:
            yield _sealed(node, one)
        elif one.error:
            summary = f"the job's Python cannot import torch: {_last(one.error)}"
            yield _fail(node, summary, f"{_told(one)}\n{one.error}", _again(node, one))
        else:
            well[node] = one
    yield from _unlike(well)


def _usual(said: Mapping[str, Imports]) -> str:
    """The Python of most nodes, such as 3.11; empty where none has answered."""
    versions = Counter(".".join(one.python.split(".")[:2]) for one in said.values() if one.python)
    return versions.most_common(1)[0][0] if versions else ""


def _unlike(well: Mapping[str, Imports]) -> Iterator[Finding]:
    """Versions that most nodes do not have."""
    for name in _ALIKE:
        versions = {node: dict(one.versions).get(name, "") for node, one in well.items()}
        usual, _ = Counter(versions.values()).most_common(1)[0] if versions else ("", 0)
        for node, version in versions.items():
            if version != usual:
                yield Finding(
                    id=_ID,
                    status="warn",
                    nodes=(node,),
                    summary=f"the job's Python has {name} {version or '?'}, and other nodes have {usual or '?'}",
                    evidence="\n".join(f"{each}: {name} {one or '?'}" for each, one in versions.items()),
                    cause="ranks of one run with different libraries wait for each other, or compute otherwise",
                    fix=(f"on {node}: {quote(well[node].command)} -m pip install '{_named(name)}=={usual}'",),
                    blast_radius="that Python",
                )


def _fail(node: str, summary: str, evidence: str, fix: tuple[str, ...]) -> Finding:
    return Finding(
        id=_ID,
        status="fail",
        nodes=(node,),
        summary=summary,
        evidence=evidence,
        cause="with runtime: process ranks run in the node's own Python, and this one cannot load what they need",
        fix=fix,
        blast_radius="that Python",
    )


def _told(one: Imports) -> str:
    return f"{one.command}: Python {one.python}; " + ", ".join(
        f"{name} {version}" for name, version in one.versions
    )


def _sealed(node: str, one: Imports) -> Finding:
    """A library is a program to the kernel: from such a mount none is loaded."""
    at = quote(one.noexec)
    return Finding(
        id=_ID,
        status="fail",
        nodes=(node,),
        summary=f"the job's Python cannot import torch: {one.noexec} is mounted noexec",
        evidence=f"{_told(one)}\n{one.error}",
        cause="no library may be loaded from a mount with that option",
        fix=(
            f"on {node}: sudo mount -o remount,exec $(findmnt -no TARGET -T {at})",
            f"on {node}: grep -n noexec /etc/fstab   and take it out of that line, for the next boot",
        ),
        needs_root=True,
        blast_radius="that mount",
    )


def _last(error: str) -> str:
    """An error's last line is where it says what is wrong."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[-1][:_FEW] if lines else "it said nothing"


def _install(node: str, one: Imports) -> tuple[str, ...]:
    what = "clusterft[trainer]" if "clusterft_trainer" in one.absent else " ".join(map(_named, one.absent))
    return (
        f"on {node}: {quote(one.command)} -m pip install {quote(what) if '[' in what else what}",
        f"or, {interpreters.another(node)}",
    )


def _again(node: str, one: Imports) -> tuple[str, ...]:
    """The very version that is there in pieces, so that nodes stay alike."""
    version = dict(one.versions).get("torch", "")
    pinned = f"torch=={version}" if version else "torch"
    return (
        f"on {node}: {quote(one.command)} -m pip install --force-reinstall --no-deps {pinned}",
        f"on {node}: {quote(one.command)} -c 'import torch'   then says nothing",
    )


def _named(module: str) -> str:
    return {"PIL": "pillow", "clusterft_trainer": "clusterft"}.get(module, module)
