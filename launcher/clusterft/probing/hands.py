"""Hand: what carries out the steps of the storage proof on one node: a program of ours, or a shell.

Owns how a step is asked and how its answer reads; which steps, and in which order, is for `share`.
"""

from __future__ import annotations

import errno
import secrets
import shlex
import threading
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from clusterft.checks.examination import Wanted
from clusterft.facts import frames, probe
from clusterft.plan.container import Fittings
from clusterft.probing.crew import Crew, Silent, Talk
from clusterft.remote import Remote, Unreachable

Body = Mapping[str, Any]
_START = 11.0  # seconds that an engine may take to make a container
_SLACK = 2.0  # for the way there and back
_LEAVING = 3.0  # to take away what is left
_ERRORS = {
    "Permission denied": errno.EACCES,
    "Operation not permitted": errno.EPERM,
    "Read-only file system": errno.EROFS,
    "No space left": errno.ENOSPC,
    "quota exceeded": errno.EDQUOT,
    "Stale file handle": errno.ESTALE,
    "Stale NFS file handle": errno.ESTALE,
    "No such file": errno.ENOENT,
    "Not a directory": errno.ENOTDIR,
    "Transport endpoint is not connected": errno.ENOTCONN,
    "nput/output error": errno.EIO,
    "I/O error": errno.EIO,
}


class Hand(Protocol):
    """One node's part of the proof."""

    way: Literal["image", "python", "sh"]
    hello: Body

    def ask(self, step: str, seconds: float, **details: object) -> Body:
        """Its answer; Silent when there is none."""


class ProgramHand:
    """A program of `agent`, in a container or by the node's own Python."""

    def __init__(self, talk: Talk, way: Literal["image", "python"], seconds: float) -> None:
        self.way: Literal["image", "python", "sh"] = way
        self._talk = talk
        self.hello: Body = talk.hear(seconds)

    def ask(self, step: str, seconds: float, **details: object) -> Body:
        """The program gives up on a step by itself, and goes on."""
        self._talk.tell({"do": step, "seconds": seconds, **details})
        return self._talk.hear(seconds + _SLACK)


class ShellHand:
    """Plain sh, a command a step: it writes and reads, and knows nothing of locks or of time spent."""

    def __init__(self, remote: Remote, directory: str, word: str, name: str) -> None:
        self.way: Literal["image", "python", "sh"] = "sh"
        self.hello: Body = {}
        self._remote = remote
        self._place = f"{directory}/.clusterft/doctor-{word}"
        self._name = name
        self._made = False
        self._turn = threading.Lock()
        self._left = True  # nothing of it is there

    def ask(self, step: str, seconds: float, **details: object) -> Body:
        """An empty answer for what a shell cannot do; Silent once it has been told to leave."""
        with self._turn:
            if self._left and step != "make":
                raise Silent("it has ended")
            self._left = step == "end"
            return self._ask(step, seconds, details)

    def leave(self) -> None:
        """Take away what is there, if nobody has; a step at work is waited for, so that it adds nothing after."""
        mine = self._turn.acquire(timeout=_LEAVING)
        try:
            if not self._left:
                self._left = True
                self._ask("end", _LEAVING, {})
        finally:
            if mine:
                self._turn.release()

    def _ask(self, step: str, seconds: float, details: Body) -> Body:
        texts = {"make": self._make, "write": self._write, "see": self._see, "end": self._end}
        if step not in texts:
            return {}
        said = self._run(texts[step](details), seconds)
        if "ended" not in said:
            return {"hung": seconds} if said[:1] == ["began"] else {"errno": None, "words": " ".join(said)}
        lines = said[1:-1]
        if step == "see":
            return {"seen": {line.split()[1]: [float(line.split()[2]), False] for line in lines if _sight(line)}}
        if step == "make":
            self._made = "made" in lines
            lines = [line for line in lines if line != "made"]
        if lines and step != "end":
            return {"errno": error_number(lines[0]), "words": lines[0]}
        return {"place": self._place, "made": self._made}

    def _run(self, text: str, seconds: float) -> list[str]:
        word = secrets.token_hex(8)
        step = f"hear {seconds:.0f} sh -c {shlex.quote(f'echo began; {text}; echo ended')}"
        script = probe.framed(word, {"step": step}, {})
        try:
            done = self._remote.run(("sh",), stdin=script.encode(), seconds=seconds + _SLACK + 3)
            return frames.framed(done.out, word, ("step",))["step"].splitlines()
        except (Unreachable, frames.Unreadable) as error:
            raise Silent(str(error)) from None

    def _make(self, details: Body) -> str:
        own, place = shlex.quote(self._place.rpartition("/")[0]), shlex.quote(self._place)
        return f"[ -d {own} ] || {{ mkdir -- {own} && echo made; }}; [ -d {place} ] || mkdir -- {place}"

    def _write(self, details: Body) -> str:
        target = shlex.quote(f"{self._place}/{self._name}")
        # A shell's own printf calls every error of writing an I/O error; cat names it.
        nonce = shlex.quote(str(details["nonce"]))
        return f"printf %s {nonce} | cat >{target}.new && mv -f -- {target}.new {target}"

    def _see(self, details: Body) -> str:
        """Once a second, and the directory is listed, so that a name which was not there is looked for again."""
        wanted: Any = details["wanted"]
        cases = (
            "; ".join(
                f"case $got in *' {name} '*) ;; *) "
                f'[ "$(cat {shlex.quote(f"{self._place}/{name}")} 2>/dev/null)" = {shlex.quote(nonce)} ] && '
                f'{{ echo "seen {name} $n"; got="$got {name} "; }} ;; esac'
                for name, nonce in wanted.items()
            )
            or ":"
        )
        within = int(float(str(details["within"])))
        lists = f"ls -- {shlex.quote(self._place)} >/dev/null 2>&1"
        count = len(wanted)
        enough = f'[ "$(set -- $got; echo $#)" -ge {count} ] && break'
        turn = f"{lists}; {cases}; {enough}; [ $n -ge {within} ] && break; sleep 1; n=$((n + 1))"
        return f"n=0 got=''; while :; do {turn}; done"

    def _end(self, details: Body) -> str:
        own, place, name = self._place.rpartition("/")[0], shlex.quote(self._place), self._name
        files = shlex.quote(f"{self._place}/{name}")
        also = f"; rmdir -- {shlex.quote(own)}" if self._made else ""
        return f"{{ rm -f -- {files} {files}.new; rmdir -- {place}{also}; }} 2>/dev/null"


def take(crew: Crew, wanted: Wanted, node: str, word: str, name: str, inside: Fittings) -> Hand:
    """The best that a node has; Silent where it has nothing that answers. `inside`: what a container gets."""
    directory = wanted.shared or ""
    way = crew.ways[node]
    if way.kind == "none":
        hand = ShellHand(crew.fleet.remotes[node], directory, word, name)
        crew.at_end(node, hand.leave)
        return hand
    # Root does as the run's user would, where runs are contained; a container has been given the user.
    owner = wanted.owner if wanted.contained and way.kind == "python" else None
    words = tuple(str(part) for part in owner) if owner else ()
    talk = crew.start(node, "share", (directory, word, name, *words), owner=wanted.owner, fittings=inside)
    return ProgramHand(talk, "image" if way.kind == "image" else "python", _START)


def error_number(words: str) -> int | None:
    """From what a program says in plain English."""
    return next((number for text, number in _ERRORS.items() if text in words), None)


def _sight(line: str) -> bool:
    fields = line.split()
    return len(fields) == 3 and fields[0] == "seen" and fields[2].isdecimal()
