"""Our own commands as we print them: each works when it is pasted, whichever way we were called.

Whoever writes a remedy writes the bare command, `clusterft up --forget-host-key n3`; whoever prints it asks here
for what is still missing: the name by which the program was found, and which cluster was meant. A verb that is
only spoken of stands in backticks, and stays as it is. Owns no remedy, and runs nothing.

How this process was called is the one thing kept here: it is as much of the process as its working directory.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Verbs that look for a cluster; the first ones find it by the run's id, where this controller has noted the run.
_BY_RUN = ("attach", "stop", "resume", "status", "logs")
_VERBS = (*_BY_RUN, "up", "down", "open", "ssh", "push", "train", "prep", "runs", "doctor")
_TAKE_JOB = ("up", "doctor")
# What says itself which cluster is meant, or needs none.
_PLAIN = ("--hosts", "--cluster", "--explain", "--list-checks", "--log")
# Not in a word, a path or backticks.
_COMMAND = re.compile(rf"(?<![\w`/.-])clusterft (?P<verb>{'|'.join(_VERBS)})(?![\w`-])(?P<next> (?:--run )?\S+)?")


@dataclass(frozen=True, slots=True)
class Call:
    """How we were called, as far as another command must be called the same way."""

    program: str = "clusterft"
    hosts: Path | None = None
    cluster: str | None = None
    job: Path | None = None
    no_image: bool = False
    noted: Callable[[str], bool] = lambda run: False  # whether a run's id alone finds its cluster from here

    def shown(self, text: str) -> str:
        """The text, with its commands completed."""
        return _COMMAND.sub(self._completed, text)

    def _completed(self, found: re.Match[str]) -> str:
        verb, follows = found["verb"], found["next"] or ""
        words = [self.program, verb]
        if follows.lstrip() in _PLAIN:
            return " ".join(words) + follows
        run = follows.split(" ")[-1].rstrip(".,;:)")
        by_run = verb in _BY_RUN or (verb == "doctor" and follows.startswith(" --run "))
        if not (by_run and self.noted(run)):
            words += ["--hosts", shlex.quote(str(self.hosts))] if self.hosts else []
            words += ["--cluster", shlex.quote(self.cluster)] if self.cluster else []
        if verb in _TAKE_JOB and self.job and follows != " --job":
            words += ["--job", shlex.quote(str(self.job))]
        if verb == "up" and self.no_image:
            words.append("--no-image")
        return " ".join(words) + follows


_call = Call()


@contextlib.contextmanager
def called(arguments0: str, noted: Callable[[str], bool]) -> Iterator[None]:
    """While one command line is served; `arguments0` is what the program was called."""
    global _call
    before, _call = _call, Call(program=_program(arguments0), noted=noted)
    try:
        yield
    finally:
        _call = before


def asked(parameters: Mapping[str, Any]) -> None:
    """What the command line said beside its verb."""
    global _call
    _call = replace(_call, job=parameters.get("job"), no_image=bool(parameters.get("no_image")))


def meant(hosts: Path | None, cluster: str | None) -> None:
    """Which cluster, by the command line, a job or a note; neither for the last one."""
    global _call
    _call = replace(_call, hosts=hosts, cluster=cluster)


def shown(text: str) -> str:
    """A text to print, with its commands as they work for who reads it."""
    return _call.shown(text)


def _program(arguments0: str) -> str:
    """Its path as it was typed, where the shell does not find it by its name."""
    by_path = Path(arguments0).name == "clusterft" and shutil.which("clusterft") is None
    return shlex.quote(arguments0) if by_path else "clusterft"
