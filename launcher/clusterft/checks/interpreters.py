"""A job's Python that does not run on a node: what lies in its place, and how it is made anew. Pure."""

from __future__ import annotations

import re
from shlex import quote

from clusterft.facts.imports import Imports, Interpreter
from clusterft.findings import Finding

_ALONE = "with runtime: process ranks run in the node's own Python"
_PACKAGE = "'clusterft[trainer]'"


def found(node: str, one: Imports, usual: str) -> Finding:
    """run.import, of an interpreter that could not be started; `usual` is the Python of the other nodes."""
    cause, fix = _of(node, one, usual) if one.place else ("", ())
    told = _told(one.place) if one.place else ""
    steps = tuple(f"or on {node}: {step[3:]}" if step.startswith("or ") else f"on {node}: {step}" for step in fix)
    return Finding(
        id="run.import",
        status="fail",
        nodes=(node,),
        summary=f"the job's Python, {one.command}, does not run",
        evidence="\n".join(line for line in (one.error, told) if line),
        cause=f"{_ALONE}, and {cause}" if cause else "",
        fix=(*steps, f"or, {another(node)}") if steps else (another(node),),
        needs_root=any("sudo" in step for step in steps),
        blast_radius="that Python",
    )


def another(node: str) -> str:
    """What else helps, whatever is wrong with this one."""
    return f"in job.yaml: python: of an interpreter that {node} has, with clusterft[trainer]"


def _told(place: Interpreter) -> str:
    """What was found there."""
    leads = f"{place.path} leads to {place.end}" if place.end != place.path else place.path
    if place.state == "unknown":
        return "no directory of PATH has a program of that name"
    words = {
        "program": "which is there, and may be run",
        "closed": "which is there, and may not be run by this user",
        "directory": "which is a directory",
        "hidden": f"and {place.above} may not be entered by this user",
        "dangling": "which is not there",
        "absent": f"which is not there; {place.above} is",
    }
    around = f"\n{place.venv} is an environment" if place.venv else ""
    made = f", made with Python {place.made}" if place.venv and place.made else ""
    return f"{leads}, {words[place.state]}{around}{made}"


def _of(node: str, one: Imports, usual: str) -> tuple[str, tuple[str, ...]]:
    place = one.place
    if place is None:
        return "", ()
    if place.state == "unknown":
        return f"{node} has no {one.command} on its PATH", ()
    if place.state == "closed":
        return f"{place.end} may not be run by this user, or from its mount", _opened(place.end)
    if place.state == "hidden":
        return f"{place.above} may not be entered", (f"sudo chmod a+x {quote(place.above)}",)
    if place.state == "program":
        return _lacks(place, one.error, usual)
    if place.state == "dangling":
        again = f"or put back {place.end}{_package(place.end)}"
        return f"{place.path} is a link that leads to nothing: {place.end} is gone", (*_anew(place, usual), again)
    what = "a directory lies in its place" if place.state == "directory" else "it is not there"
    return what, _anew(place, usual)


def _opened(end: str) -> tuple[str, ...]:
    """Modes, or the option of a mount from which nothing may be run."""
    at = quote(end)
    return (
        f"sudo chmod a+rx {at}",
        f"if findmnt -no OPTIONS -T {at} says noexec: sudo mount -o remount,exec $(findmnt -no TARGET -T {at})",
    )


def _lacks(place: Interpreter, error: str, usual: str) -> tuple[str, tuple[str, ...]]:
    """A program that is there: what it needs is not, or it has ended of its own with these words."""
    end = quote(place.end)
    if "shared librar" in error:
        return "a library of Python's own is not there", _anew(place, usual)
    if "Exec format error" in error:
        return f"{place.end} is no program for this machine", (f"file -L {end}; uname -m", *_anew(place, usual))
    if "No such file" not in error or not error.startswith("env:"):
        return f"{place.end} is there, and ends with those words", (f"head -n 20 {end}   (if it is a script)",)
    if place.begins:
        return f"{place.end} is a script for {place.begins}, which is not there", _anew(place, usual)
    return f"{place.end} is there, and what loads it (its ld-linux) is not", (f"file -L {end}; uname -m",)


def _anew(place: Interpreter, usual: str) -> tuple[str, ...]:
    """The environment; of a place that never was one, it is made where the job looks for it."""
    root = place.venv or _root(place.path)
    if place.conda or not root:
        return (f"make {place.path} anew{', as on the other nodes' if usual else ''}",)
    made = re.match(r"\d+\.\d+", place.made)
    python = f"python{usual or (made[0] if made else '3')}"
    note = f"   ({python}, as the other nodes have it)" if usual else ""
    clear = "--clear " if place.venv else ""
    return (
        f"{python} -m venv {clear}{quote(root)}{note}",
        f"{quote(f'{root}/bin/python')} -m pip install {_PACKAGE}",
    )


def _root(path: str) -> str:
    """Of the usual DIRECTORY/bin/python; empty for a system's own, which no environment replaces."""
    match = re.fullmatch(r"(/.+)/bin/python[0-9.]*", path)
    return match[1] if match and match[1] not in ("/usr", "/usr/local", "/opt", "/snap") else ""


def _package(end: str) -> str:
    match = re.fullmatch(r"/usr/bin/(python3\.\d{1,2})", end)
    return f": sudo apt-get install {match[1]}   (or what the system calls it)" if match else ""
