"""Crew: how a program of `agent` is carried on each node, and that none of them outlives doctor.

In a container of the run's image where that is there, as the run's user; else with the node's own Python; else not
at all, and the probe that asks makes do with a shell. Refuses to know what a program does.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Literal

from clusterft import agent
from clusterft.checks.engines import containers
from clusterft.facts.health import confines
from clusterft.fleet import Fleet
from clusterft.plan.container import Fittings
from clusterft.remote import Remote, Unreachable
from clusterft.remote.stream import Stream

_BOOT = "import sys; exec(compile(sys.stdin.buffer.read(int(sys.argv[1])), sys.argv[2], 'exec'))"
_BARE = Fittings()
_NONE: Mapping[str, str] = MappingProxyType({})
_GONE_SECONDS = 10.0  # for containers to be taken away
_LINE = 8 << 20  # bytes of one answer


@dataclass(frozen=True, slots=True)
class Way:
    """How a node runs a program."""

    kind: Literal["image", "python", "none"]
    argv: tuple[str, ...] = ()  # up to and without the interpreter's own arguments
    words: str = ""  # of none: why
    docker: tuple[str, ...] = ()  # how the engine is spoken to, if there is one


class Silent(Exception):
    """A program said nothing more, or nothing in time; the words say which."""


class Talk:
    """One program at work on one node."""

    def __init__(self, node: str, stream: Stream, release: str = "") -> None:
        self.node = node
        self.release = release  # the container's name
        self._stream = stream
        self._rest = b""

    def tell(self, body: object) -> None:
        """One JSON line."""
        try:
            self._stream.sendall((json.dumps(body) + "\n").encode())
        except (OSError, Unreachable) as error:
            raise Silent(f"it reads nothing more: {error}; {self._stream.complaint()}") from None

    def hear(self, seconds: float) -> dict[str, Any]:
        """Its next line; Silent when none comes in time."""
        deadline = time.monotonic() + seconds
        while True:
            line, found, rest = self._rest.partition(b"\n")
            if found:
                self._rest = rest
                return self._body(line)
            self._rest += self._more(deadline)

    def close(self) -> None:
        """It reads the end of its stdin, and ends."""
        self._stream.close()

    def _body(self, line: bytes) -> dict[str, Any]:
        try:
            body = json.loads(line)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise Silent(f"it said {line[:200].decode(errors='replace')!r}")
        return body

    def _more(self, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0 or len(self._rest) > _LINE:
            raise Silent("no answer in time")
        self._stream.settimeout(left)
        try:
            data = self._stream.recv(1 << 16)
        except TimeoutError:
            raise Silent("no answer in time") from None
        except (OSError, Unreachable) as error:
            raise Silent(f"the connection broke: {error}") from None
        if not data:
            words = self._stream.complaint()
            limit = confines.stopped(words, contained=bool(self.release))
            raise Silent(limit or f"it ended: {words or 'without a word'}")
        return data


def _fed(remote: Remote, argv: tuple[str, ...], source: bytes, *, contained: bool) -> Stream:
    """A program that has its text; Silent with the reason when it ended before it had read that."""
    try:
        stream = remote.stream(argv)
    except (OSError, Unreachable) as error:
        raise Silent(f"it could not be started: {error}") from None
    stream.settimeout(20.0)
    try:
        stream.sendall(source)
    except (OSError, Unreachable) as error:
        with contextlib.suppress(OSError, Unreachable):
            stream.settimeout(2.0)
            while stream.recv(1 << 16):  # what it complained of is whole once it has ended
                pass
        words = stream.complaint() or str(error)
        stream.close()
        raise Silent(confines.stopped(words, contained=contained) or f"it could not be started: {words}") from None
    return stream


def _finish(works: Iterable[Callable[[], object]]) -> None:
    for work in works:
        with contextlib.suppress(Silent):  # then what it would take away cannot be reached
            work()


class Crew:
    """The programs of one doctor. Leaving it ends them all, and takes their containers away."""

    def __init__(self, fleet: Fleet, ways: dict[str, Way]) -> None:
        self.fleet = fleet
        self.ways = ways
        self._word = secrets.token_hex(4)
        self._turn = threading.Lock()
        self._count = 0
        self._talks: list[Talk] = []
        self._endings: dict[str, list[Callable[[], object]]] = {}
        self._over = False
        self.left: list[str] = []  # what could not be taken away at the end, with the command that does it

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._turn:
            self._over = True
            talks, self._talks = self._talks, []
            endings, self._endings = self._endings, {}
        for talk in talks:
            talk.close()
        if endings:
            self.fleet.each(lambda node, _: _finish(endings.get(node, ())))
        self._clear(talks)

    def at_end(self, node: str, work: Callable[[], object]) -> None:
        """What is to be done on a node at the end, also if doctor is interrupted; it has a deadline itself."""
        with self._turn:
            if self._over:
                raise Silent("doctor is over")
            self._endings.setdefault(node, []).append(work)

    def start(
        self,
        node: str,
        program: str,
        arguments: tuple[str, ...] = (),
        *,
        owner: tuple[int, int] | None = None,
        fittings: Fittings = _BARE,
        env: Mapping[str, str] = _NONE,
    ) -> Talk:
        """Begin a program of `agent`; Silent if the node cannot.

        As whom, with what of the node and with which variables is for a container; elsewhere it means nothing.
        """
        way = self.ways.get(node)
        remote = self.fleet.remotes.get(node)
        if way is None or way.kind == "none" or remote is None:
            raise Silent(way.words if way and way.words else "not reached")
        source = agent.text(program).encode()
        with self._turn:
            if self._over:
                raise Silent("doctor is over")
            self._count += 1
            name = f"clusterft-doctor-{self._word}-{self._count}" if way.kind == "image" else ""
        carried = way.argv if way.kind == "python" else self._contained(way, name, owner, fittings, env)
        argv = (*carried, "-u", "-c", _BOOT, str(len(source)), program, *arguments)
        talk = Talk(node, _fed(remote, argv, source, contained=bool(name)), name)
        with self._turn:
            self._talks.append(talk)
            over = self._over
        if over:  # the user stopped doctor meanwhile, and nobody else ends this one
            talk.close()
            self._clear([talk])
            raise Silent("doctor is over")
        return talk

    @staticmethod
    def _contained(
        way: Way, name: str, owner: tuple[int, int] | None, fittings: Fittings, env: Mapping[str, str]
    ) -> tuple[str, ...]:
        run, image = way.argv[:-1], way.argv[-1]
        user = ("--user", f"{owner[0]}:{owner[1]}") if owner else ()
        told = tuple(word for key, value in env.items() for word in ("--env", f"{key}={value}"))
        named = ("--name", name, "--label", f"{containers.DOCTOR}={name}")
        return (*run, *named, *user, *fittings.words(), *told, "--entrypoint", "python3", image)

    def _clear(self, talks: list[Talk]) -> None:
        """A container ends with its stdin; one whose program sleeps in the kernel needs to be told."""
        by_node: dict[str, list[str]] = {}
        for talk in talks:
            if talk.release:
                by_node.setdefault(talk.node, []).append(talk.release)

        def remove(node: str, remote: Remote) -> None:
            if node in by_node:
                remote.run((*self.ways[node].docker, "rm", "-f", *by_node[node]), seconds=_GONE_SECONDS)

        for node, outcome in (self.fleet.each(remove) if by_node else {}).items():
            if isinstance(outcome, Unreachable) and node in by_node:
                again = " ".join((*self.ways[node].docker, "rm", "-f", *by_node[node]))
                self.left.append(f"a container of doctor may be left on {node} ({outcome.what}); there: {again}")
