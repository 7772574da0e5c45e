"""The parts of a run as containers: `docker` knows one container, here is which of them is a run's part and when.

A part is found by its labels, so that any controller can act on it. A container that ended with 0 is over for
good; one that ended with anything else is brought back by its engine, but for the few ways in which that gives it
up. Nothing is ended but by container id.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import TypeVar

from clusterft.engine import Engine
from clusterft.errors import ClusterftError
from clusterft.plan import NodePlan, Part
from clusterft.remote import Lines, Remote, Unreachable
from clusterft.runtime import docker
from clusterft.runtime.carrier import DOWN, Harvest
from clusterft.runtime.docker import Found, Placed, Seen
from clusterft.runtime.process import told
from clusterft_trainer import stream

_TOMBSTONE = "stopped"
_OBEYS = 75.0  # seconds for last words, logs and report from the second request to the engine's own KILL
_TICK = 0.5
_KEEP_SECONDS = 300.0  # a node's own logs, from one place of its disk to another
# $docker is one word or several; nothing in it is a pattern.
_FILE = 'set -f; docker=$1; $docker cp "$2:$3" - | tar -xOf - '
_LAST_LINE = _FILE + "| tail -n 1"
_REST = _FILE + '| tail -n "+$4"; printf "%s\\n" "$5"'
# Written whole or not at all; the engine's client may run as root, the file is the user's even so.
_KEEP = (
    'umask 077; set -f; docker=$1; case $4 in /*) at=$4 ;; *) at=$HOME/$4 ;; esac; mkdir -p "$at" || exit; '
    '$docker cp "$2:$3" - >"$at/$5.new" && mv "$at/$5.new" "$at/$5" && printf "%s\\n" "$at/$5" || '
    '{ rm -f "$at/$5.new"; exit 1; }'
)

T = TypeVar("T")


class Contained:
    """The parts of a run in containers."""

    def __init__(self, cluster: str, run: str) -> None:
        self._cluster = cluster
        self._run = run
        self._turn = threading.Lock()
        self._commands: dict[str, tuple[str, ...]] = {}  # node -> how its engine is reached
        self._owners: dict[str, int] = {}
        self._made: dict[str, str] = {}  # node -> the container that this very start has created
        self._attempts: dict[str, int] = {}  # node -> the attempt that it is to begin with

    def put(self, node: NodePlan, remote: Remote, secrets: dict[str, str]) -> None:
        """Create the container with its files; secrets join them here, and are nowhere before."""
        if node.container is None:
            raise ClusterftError(f"the plan has no container for {node.node.name}")
        placed = [Placed(file.path, file.text.encode("utf-8"), file.mode) for file in node.files]
        if secrets:
            text = json.dumps(secrets)
            placed.append(Placed(node.directory / "secrets.json", text.encode("utf-8"), 0o600))
        self._attempts[node.node.name] = node.container.labels.attempt
        with _about(node.node.name), self._engine(node.node.name, remote) as engine:
            self._made[node.node.name] = docker.create(engine, node.container, placed)

    def start(self, part: Part, remote: Remote) -> None:
        """Start it; CannotStart when it ends at once."""
        with _about(part.node), self._engine(part.node, remote) as engine:
            docker.start(engine, self._mine(engine, part, remote).id)

    def discard(self, part: Part, remote: Remote) -> None:
        """What this start has created, or may have without our hearing of it; never what another one runs."""
        with self._engine(part.node, remote) as engine:
            for one in self._all(engine, part, remote):
                unheard = part.node not in self._made and one.state == "created"
                ours = one.attempt == self._attempts.get(part.node)
                if one.id == self._made.get(part.node) or (unheard and ours):
                    docker.remove(engine, one.id)

    def follow(self, part: Part, remote: Remote, skip: int) -> Lines:
        """What the supervisor says from that line on: from itself, or from what a container that is over has kept.

        A container that is gone tells the same as a supervisor that vanished.
        """
        with self._engine(part.node, remote) as engine:
            one = self._find(engine, part, remote)
            seen = one and docker.look(engine, one.id)
            if one is None or seen is None:
                return _Text([stream.encode(stream.Vanished(time.time()))])
            if seen.over:
                words = (" ".join(engine.command), one.id, f"{part.directory}/stream.jsonl", str(skip + 1))
                last = stream.encode(stream.Vanished(time.time()))
                return remote.lines(("sh", "-c", _REST, "sh", *words, last), silence=None)
            if seen.state != "running":
                raise Unreachable(DOWN, f"its container is {_words(seen)}")
            argv = (*engine.command, "exec", one.id, *part.supervisor("follow", str(skip)))
        return remote.lines(argv)

    def stop(self, part: Part, remote: Remote, *, now: bool) -> bool:
        """Ask the supervisor inside; with `now`, the engine ends what does not obey."""
        with self._engine(part.node, remote) as engine:
            one = self._find(engine, part, remote)
            seen = one and docker.look(engine, one.id)
            if one is None or seen is None or seen.over:
                return False
            if seen.state == "running":
                argv = (*engine.command, "exec", one.id, *part.supervisor("stop", "2" if now else "1"))
                try:
                    told(remote, argv)
                except Unreachable:
                    if not now:
                        raise
            else:
                # What the supervisor finds when the engine brings it back, or nobody does.
                words = b"asked\n" * (2 if now else 1)
                docker.put(engine, one.id, Placed(PurePosixPath(part.directory, _TOMBSTONE), words, 0o666), (0, 0))
            if now:
                self._insist(engine, one.id)
            return True

    def alive(self, part: Part, remote: Remote) -> bool:
        """Whether its container runs, or will be brought back."""
        with self._engine(part.node, remote) as engine:
            one = self._find(engine, part, remote)
            seen = one and docker.look(engine, one.id)
            return seen is not None and seen.state not in docker.OVER

    def revive(self, part: Part, remote: Remote) -> bool:
        """Start a container that ended with an error and that its engine has given up, as after `docker kill`."""
        with self._engine(part.node, remote) as engine:
            one = self._find(engine, part, remote)
            seen = one and docker.look(engine, one.id)
            if one is None or seen is None or seen.state != "exited" or seen.over:
                return False
            docker.start(engine, one.id)
            return True

    def read(self, part: Part, remote: Remote, name: str) -> str:
        """A small file of the part's directory; empty where there is none."""
        with self._engine(part.node, remote) as engine:
            one = self._mine(engine, part, remote)
            return docker.read(engine, one.id, f"{part.directory}/{name}")

    def harvest(self, part: Part, remote: Remote, keep: str, *, kill: bool) -> Harvest:
        """Remove the container; what of its logs the shared dir did not take is saved on the node first."""
        with self._engine(part.node, remote) as engine:
            one = self._find(engine, part, remote)
            if one is None:
                return Harvest(removed=False)
            seen = docker.look(engine, one.id)
            if seen and seen.state not in docker.OVER:
                if not kill and self._last(engine, part, one, remote) is None:
                    raise docker.EngineSaidNo(
                        f"its container is {seen.state}, and has not said that it is over",
                        remedy=f"clusterft stop {self._run}",
                    )
                # Without a word: a head that was lost and is back would write down an end that is not the run's.
                docker.kill(engine, one.id)
            problem = self._unmirrored(engine, part, one, remote)
            if problem and docker.look(engine, one.id) is None:
                return Harvest(removed=False)  # another controller was faster
            kept = self._save(engine, part, one, remote, keep) if problem else ""
            docker.remove(engine, one.id)
            return Harvest(removed=True, kept=kept, problem=problem)

    def _unmirrored(self, engine: Engine, part: Part, one: Found, remote: Remote) -> str:
        """Why some of its logs are here alone; a part without a last word cannot say that all are elsewhere."""
        ended = self._last(engine, part, one, remote)
        return ended.problem if ended else "it ended without a last word"

    def _last(self, engine: Engine, part: Part, one: Found, remote: Remote) -> stream.Ended | None:
        """Its last word, if it has said it."""
        argv = ("sh", "-c", _LAST_LINE, "sh", " ".join(engine.command), one.id, f"{part.directory}/stream.jsonl")
        line = stream.decode(remote.run(argv, seconds=_KEEP_SECONDS).out.strip())
        return line if isinstance(line, stream.Ended) else None

    def _save(self, engine: Engine, part: Part, one: Found, remote: Remote, keep: str) -> str:
        """The stream and the logs as tar files in a directory of the node; where the logs are then."""
        where = ""
        for source, name in (("stream.jsonl", "stream.tar"), ("logs", "logs.tar")):
            inside = f"{part.directory}/{source}"
            argv = ("sh", "-c", _KEEP, "sh", " ".join(engine.command), one.id, inside, keep, name)
            done = remote.run(argv, seconds=_KEEP_SECONDS)
            if done.code == 0:
                where = (done.out.splitlines() or [""])[-1]
            # A part that never ran has no logs.
            elif "No such" not in done.err and "Could not find" not in done.err:
                raise docker.EngineSaidNo(
                    f"the logs of {part.node} cannot be saved to {keep}: {done.err.strip()}",
                    remedy=f"there: docker cp {one.name}:{inside} DIRECTORY, then docker rm {one.name}",
                )
        return where

    def _insist(self, engine: Engine, identity: str) -> None:
        """Until it has ended: by itself, or by the engine's KILL."""
        deadline = time.monotonic() + _OBEYS
        while time.monotonic() < deadline:
            seen = docker.look(engine, identity)
            if seen is None or seen.state in docker.OVER:
                return
            if seen.state == "restarting":
                break
            time.sleep(_TICK)
        docker.stop(engine, identity, seconds=1)

    # -- which container -----------------------------------------------------------------

    def _mine(self, engine: Engine, part: Part, remote: Remote) -> Found:
        one = self._find(engine, part, remote)
        if one is None:
            raise docker.EngineSaidNo(f"{part.node} has no container of run {self._run}")
        return one

    def _find(self, engine: Engine, part: Part, remote: Remote) -> Found | None:
        return next(iter(self._all(engine, part, remote)), None)

    def _all(self, engine: Engine, part: Part, remote: Remote) -> tuple[Found, ...]:
        owner = self._known(self._owners, part.node, lambda: docker.owner(remote))
        found = docker.find(engine, cluster=self._cluster, run=self._run, owner=owner)
        return tuple(one for one in found if one.node == part.node)

    def _engine(self, node: str, remote: Remote) -> Engine:
        command = self._known(self._commands, node, lambda: docker.command(remote))
        return Engine(remote, command)

    def _known(self, known: dict[str, T], node: str, ask: Callable[[], T]) -> T:
        """What does not change for as long as this controller lives is asked once."""
        with self._turn:
            if node in known:
                return known[node]
        found = ask()
        with self._turn:
            return known.setdefault(node, found)


@contextlib.contextmanager
def _about(node: str) -> Iterator[None]:
    """An engine's words do not say which node they are about."""
    try:
        yield
    except ClusterftError as error:
        error.where = error.where or node
        raise


class _Text:
    """Lines that were read already."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def code(self, seconds: float) -> int:
        """Nothing ran that could have failed."""
        return 0

    def complaint(self) -> str:
        """Nor complained."""
        return ""

    def close(self) -> None:
        """There is nothing to let go of."""
        self._lines = []


def _words(seen: Seen) -> str:
    """What a person reads while a node is not heard."""
    if seen.state == "exited":
        return f"down (exit code {seen.code}); its engine has not brought it back yet"
    return seen.state
