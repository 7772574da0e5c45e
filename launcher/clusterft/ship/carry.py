"""Carrying blobs to all nodes at once: the threads and channels around the routing core.

Owns what is under way: one channel that says a node is alive, one for each blob that a node takes. What a node
says goes into `route`; what `route` wants is started or ended. Refuses to wait for a node that fell silent: it is
lost, the others go on. What is done with the blobs on a node is the caller's `finish`.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from clusterft import relay
from clusterft.findings import Finding, Outcome
from clusterft.remote import Remote, Stream, Unreachable
from clusterft.ship import scripts, words
from clusterft.ship.route import CONTROLLER, Fetch, Route, Stop

SILENCE_SECONDS = 12.0  # a node that is well speaks every second
_TURN = 0.2
_CHUNK = 1 << 17
_SEND_SECONDS = 60.0  # a receiver that takes nothing for so long; the route has given up on it before


class Supply(Protocol):
    """Blobs that the controller has."""

    def read(self, digest: str, offset: int, count: int) -> bytes:
        """Some bytes of a blob."""


@dataclass(frozen=True, slots=True)
class Site:
    """A node's end of a shipment."""

    remote: Remote
    session: PurePosixPath  # the session's directory; its last part is the session's word in a request
    ssh_config: PurePosixPath  # opens the relays of the other nodes


@dataclass(eq=False, slots=True)
class _Job:
    """One blob on its way to one node; what a job that is no longer the current one says is ignored."""

    fetch: Fetch
    close: Callable[[], None] | None = None
    over: bool = False  # nobody listens any more


@dataclass(frozen=True, slots=True)
class _Heard:
    """A node said something; job is None for its sign of life and for what became of its finish."""

    node: str
    job: _Job | None
    word: str
    rest: str = ""
    outcome: Outcome | BaseException | None = None


class Carrier:
    """One shipment. `finish` is run, in a thread of its own, for each node that has all it needs."""

    def __init__(
        self,
        sites: Mapping[str, Site],
        route: Route,
        supply: Supply,
        owner: str,
        finish: Callable[[str], Outcome],
        progress: Callable[[str, int, int], None],
    ) -> None:
        self._sites, self._route, self._supply, self._owner = sites, route, supply, owner
        self._finish, self._progress = finish, progress
        self._heard: queue.SimpleQueue[_Heard] = queue.SimpleQueue()
        self._jobs: dict[tuple[str, str], _Job] = {}
        self._last: dict[str, float] = {}
        self._troubles: dict[str, str] = {}  # node -> what its last failed way said
        self._finishing: set[str] = set()
        self._outcomes: dict[str, Outcome] = {}
        self._closers: list[Callable[[], None]] = []
        self.sent = 0  # bytes that left the controller

    def run(self) -> dict[str, Outcome]:
        """Carry everything; an outcome for every node of the route."""
        now = time.monotonic()
        for node in self._route.live():
            self._last[node] = now
            self._spawn(self._watch, node)
        try:
            while set(self._route.live()) - set(self._outcomes):
                self._turn()
        finally:
            for job in self._jobs.values():
                self._end(job)
            for close in self._closers:
                threading.Thread(target=close, daemon=True).start()
        return self._outcomes

    # -- one turn ------------------------------------------------------------------

    def _turn(self) -> None:
        now = time.monotonic()
        for action in self._route.next(now):
            self._act(action)
        with contextlib.suppress(queue.Empty):
            self._take(self._heard.get(timeout=_TURN))
            while True:
                self._take(self._heard.get_nowait())
        now = time.monotonic()
        for node in self._route.live():  # also one that is done: others may be taking from it
            if now - self._last[node] > SILENCE_SECONDS:
                self._lose(node, words.silent(node, self._state(node), SILENCE_SECONDS))
            elif self._route.complete(node) and node not in self._finishing:
                self._finishing.add(node)
                self._spawn(self._do_finish, node)
        for node in set(self._route.stuck()) & set(self._open()):
            self._lose(node, words.no_way(node, self._state(node), self._troubles.get(node, "")))

    def _open(self) -> list[str]:
        return [node for node in self._route.live() if node not in self._outcomes]

    def _act(self, action: Fetch | Stop) -> None:
        old = self._jobs.pop((action.node, action.blob), None)
        if old:
            self._end(old)
        if isinstance(action, Fetch):
            job = _Job(action)
            self._jobs[action.node, action.blob] = job
            self._spawn(self._send if action.source == CONTROLLER else self._pull, job)

    def _take(self, heard: _Heard) -> None:
        node, now = heard.node, time.monotonic()
        self._last[node] = now
        if heard.word == "finished":
            if isinstance(heard.outcome, BaseException):
                raise heard.outcome
            if heard.outcome is not None:
                self._settle(node, heard.outcome)
        elif heard.word == "gone":
            self._lose(node, words.gone(node, self._state(node), heard.rest))
        elif heard.word == "usurped" and not heard.job:
            self._lose(node, words.usurped(node))
        elif heard.job and not heard.job.over:
            self._blob_word(heard.job, heard.word, heard.rest, now)

    def _blob_word(self, job: _Job, word: str, rest: str, now: float) -> None:
        node, blob = job.fetch.node, job.fetch.blob
        if word in ("from", "at") and rest.isdecimal():
            self._route.grew(node, blob, int(rest), now)
            self._progress(node, self._route.have(node), self._route.total(node))
        elif word == "good":
            job.over = True
            self._route.arrived(node, blob)
            self._progress(node, self._route.have(node), self._route.total(node))
        elif word == "spoiled":
            job.over = True
            self._route.spoiled(node, blob, now)
        elif word == "full":
            self._lose(node, words.full(node, self._state(node)))
        elif word in ("short", "ended", "usurped"):
            job.over = True
            self._troubles[node] = f"from {job.fetch.source or 'the controller'}: {rest or word}"
            self._route.broke(node, blob, now)

    def _lose(self, node: str, finding: Finding) -> None:
        if node not in self._outcomes:
            self._settle(node, finding)
        self._route.lose(node)

    def _settle(self, node: str, outcome: Outcome) -> None:
        self._outcomes[node] = outcome

    def _state(self, node: str) -> str:
        return words.state(self._route.have(node), self._route.total(node))

    def _end(self, job: _Job) -> None:
        job.over = True
        if job.close:
            # Not here: closing a channel of a machine that is gone may wait for it.
            threading.Thread(target=job.close, daemon=True).start()

    # -- threads ---------------------------------------------------------------------

    def _spawn(self, work: Callable[..., None], *what: object) -> None:
        threading.Thread(target=work, args=what, name="ship", daemon=True).start()

    def _watch(self, node: str) -> None:
        site = self._sites[node]
        try:
            lines = site.remote.lines(scripts.sh(scripts.WATCH, site.session, self._owner))
            self._closers.append(lines.close)
            for word, rest in scripts.said(lines):
                self._heard.put(_Heard(node, None, word, rest))
        except (Unreachable, OSError) as error:
            self._heard.put(_Heard(node, None, "gone", str(error)))
        else:
            self._heard.put(_Heard(node, None, "gone", "the connection ended"))

    def _do_finish(self, node: str) -> None:
        outcome: Outcome | BaseException
        try:
            outcome = self._finish(node)
        except Unreachable as error:
            outcome = words.unreachable(node, error)
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            outcome = error
        self._heard.put(_Heard(node, None, "finished", outcome=outcome))

    def _argv(self, fetch: Fetch) -> tuple[str, ...]:
        site = self._sites[fetch.node]
        total, word = str(self._route.blobs[fetch.blob]), secrets.token_hex(8)
        argv = scripts.sh(scripts.FETCH, site.session, fetch.blob, total, word, self._owner)
        if fetch.source == CONTROLLER:
            return argv
        before, after = relay.serve_around(site.session.name, fetch.blob, int(total))
        return (*argv, str(site.ssh_config), fetch.source, before, after, relay.serving_before(fetch.blob))

    def _pull(self, job: _Job) -> None:
        node, rest = job.fetch.node, ""
        try:
            lines = self._sites[node].remote.lines(self._argv(job.fetch))
            job.close = lines.close
            if job.over:
                lines.close()
            for word, rest in scripts.said(lines):
                self._heard.put(_Heard(node, job, word, rest))
        except (Unreachable, OSError) as error:
            rest = str(error)
        self._heard.put(_Heard(node, job, "ended", rest))

    def _send(self, job: _Job) -> None:
        node, rest = job.fetch.node, ""
        try:
            stream = self._sites[node].remote.stream(self._argv(job.fetch))
            job.close = stream.abort
            if job.over:
                stream.abort()
            stream.settimeout(_SEND_SECONDS)
            with stream.makefile("rb") as file:
                spoken = scripts.said(line.decode("utf-8", "backslashreplace").rstrip("\n") for line in file)
                for word, rest in spoken:
                    self._heard.put(_Heard(node, job, word, rest))
                    if word == "from" and rest.isdecimal():
                        self._spawn(self._feed, job, stream, int(rest))
        except (Unreachable, OSError) as error:
            rest = str(error)
        self._heard.put(_Heard(node, job, "ended", rest))

    def _feed(self, job: _Job, stream: Stream, offset: int) -> None:
        """The other direction of `_send`; how it went is known by what the node says it has."""
        with contextlib.suppress(OSError, Unreachable):
            while not job.over and (chunk := self._supply.read(job.fetch.blob, offset, _CHUNK)):
                stream.sendall(chunk)
                offset += len(chunk)
                self.sent += len(chunk)
            stream.shutdown(socket.SHUT_WR)
