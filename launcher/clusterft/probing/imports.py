"""Has the job's Python on every node load torch, in a process of its own that is ended when it takes too long."""

from __future__ import annotations

import sys
from dataclasses import replace

from clusterft.facts import imports
from clusterft.facts.imports import Imports, Interpreter
from clusterft.fleet import Fleet
from clusterft.remote import Remote, Unreachable
from clusterft.spec import JobSpec

_LOOK_SECONDS = 6.0
_TRAINER = ("accelerate", "deepspeed", "diffusers", "transformers", "safetensors", "pydantic", "numpy", "PIL")
_FINDING = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD")


def needed(job: JobSpec) -> tuple[str, ...]:
    """The packages without which no rank of this job starts."""
    launching = () if job.launcher == "torchrun" else (job.launcher,)
    return tuple(dict.fromkeys(("clusterft_trainer", "torch", *launching, *(_TRAINER if job.train else ()))))


def look(fleet: Fleet, job: JobSpec, loaded: frozenset[str] = frozenset()) -> dict[str, Imports | Unreachable]:
    """What each reached node's Python says; on the nodes that are `loaded` torch has just come up."""
    python = job.python or sys.executable
    env = {name: value for name, value in job.env.items() if name in _FINDING}

    def one(name: str, remote: Remote) -> Imports:
        command = imports.argv(python, needed(job), env, load=name not in loaded)
        done = remote.run(command, seconds=imports.SECONDS)
        found = imports.parse(python, done.code, done.out, done.err)
        if found.python or found.late or done.code not in imports.NO_PYTHON:
            return found
        return replace(found, place=_place(remote, python))

    return fleet.each(one)


def _place(remote: Remote, python: str) -> Interpreter | None:
    """What lies there instead."""
    try:
        return imports.place(remote.run(imports.where(python), seconds=_LOOK_SECONDS).out)
    except Unreachable:
        return None
