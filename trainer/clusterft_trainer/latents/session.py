"""One worker's membership in the work on a shared directory: its name, its beat, and what one does for all.

Owns `work/` there. Refuses to let each of many workers fail in its own way at something that one did for all: the
failure of that one is everybody's.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from clusterft_trainer.errors import ConfigError, DataError, RunError, TrainerError, storing
from clusterft_trainer.latents.leases import DONE, DRAFT, PATIENCE, WORKERS, Directory, Leases, state
from clusterft_trainer.latents.pulse import Pulse

_POLL = 0.5  # seconds
_KEPT = 5  # turns of a group whose marks stay
_KINDS: dict[str, type[ConfigError] | type[DataError]] = {"config": ConfigError, "data": DataError}


class Stopped(Exception):
    """The worker was asked to end."""


class Stop(threading.Event):
    """The wish that this worker ends; during what cannot ask for it, whoever sets it should raise Stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.urgent = False

    @contextmanager
    def urgently(self) -> Iterator[None]:
        """While something long runs that does not look at this."""
        if self.is_set():
            raise Stopped
        before, self.urgent = self.urgent, True
        try:
            yield
        finally:
            self.urgent = before


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often workers show that they live, and how long others wait for that."""

    patience: float = PATIENCE
    every: float = PATIENCE / 12


def _nothing() -> None:
    pass


class Session:
    """A worker from beginning to end; enter it before anything is claimed."""

    def __init__(self, root: Path, owner: str, stop: Stop | None = None, rhythm: Rhythm = Rhythm()) -> None:
        self.root = root
        self.owner = owner
        self.stop = stop or Stop()
        self.work = Directory(root)
        self._rhythm = rhythm
        self.told: Callable[[], Mapping[str, Any]] = dict

    def __enter__(self) -> Session:
        with storing("The work list in", self.root):
            about = self.work.join(self.owner)
            self.leases = Leases(self.work, self.owner, time.monotonic, self._rhythm.patience, **about)
            self.pulse = Pulse(self.leases, self._rhythm.every, self._tell)
            self.pulse.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pulse.__exit__(kind, error, trace)
        self.work.close()

    def _tell(self) -> Mapping[str, Any]:
        return self.told()

    def once(self, group: str, act: Callable[[int], None], waits: Callable[[], None] = _nothing) -> int:
        """Have one of the workers that come together do something, and wait for it; its number in the group.

        Who waits calls `waits` now and then. Who acts may fork.
        """
        with storing("The work list in", self.root):
            self.work.begin(group)
        number = max(numbers(self.work, group), default=0) + 1
        task = str(number)
        while not self.finished(group, task):
            with storing("The work list in", self.root):
                lease = self.leases.claim(group, [task], lambda one: self.finished(group, one))
            if lease is None:
                waits()
                if self.stop.wait(_POLL):
                    raise Stopped
                continue
            self.pulse.hold(lease, moves=False)
            told: dict[str, Any] = {}
            try:
                with self.stop.urgently(), self.pulse.resting():
                    act(number)
            except TrainerError as error:
                told = {"failure": error.failure, "message": error.message, "remedy": error.remedy}
            if not self.pulse.lost(lease):
                self.work.create(f"{group}/{task}{DONE}", json.dumps(told).encode())
            self.pulse.drop(lease)
            self._prune(group, number)
        self._refuse_failed(group, task)
        return number

    def _prune(self, group: str, number: int) -> None:
        """Remove the marks of turns so long ago that nobody can still wait for them."""
        for name in self.work.names(group):
            stem = name.partition(".")[0]
            path = self.root / group / name
            if stem.isdecimal() and int(stem) <= number - _KEPT and path.is_file():
                path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove the files of workers that have ended, and what they left half made."""
        for name in self.work.names(WORKERS):
            told = state(self.work.read(f"{WORKERS}/{name}") or b"")
            # What one of them has given back is taken at once as long as its file says so.
            if name != self.owner and not told.get("released") and self.leases.ended(name):
                (self.root / WORKERS / name).unlink(missing_ok=True)
        for name in self.work.names("."):
            owner = name.removeprefix(DRAFT).rpartition("-")[0]
            if name.startswith(DRAFT) and owner != self.owner and self.leases.ended(owner):
                (self.root / name).unlink(missing_ok=True)

    def finished(self, group: str, task: str) -> bool:
        """Whether a task is over."""
        return self.work.read(f"{group}/{task}{DONE}") is not None

    def _refuse_failed(self, group: str, task: str) -> None:
        try:
            told = json.loads(self.work.read(f"{group}/{task}{DONE}") or b"{}")
            failure = told.get("failure")
        except (ValueError, AttributeError):
            return  # it is being written by the one that did it; there is no failure to tell twice
        if failure is None:
            return
        message, remedy = str(told.get("message")), str(told.get("remedy"))
        if failure in _KINDS:
            raise _KINDS[failure](message, remedy)
        raise RunError(str(failure), message, remedy)


def numbers(work: Directory, group: str, suffix: str = DONE) -> list[int]:
    """Of a group's numbered tasks, those that are over."""
    stems = (name.removesuffix(suffix) for name in work.names(group) if name.endswith(suffix))
    return [int(stem) for stem in stems if stem.isdecimal()]


def owner_name(environment: Mapping[str, str]) -> str:
    """Machine, rank and a token: no two workers ever have the same."""
    host = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname()).strip("-")[:40] or "node"
    rank = environment.get("RANK", "0")
    rank = rank if rank.isdecimal() else "0"
    return f"{host}-{rank}-{os.getpid()}-{secrets.token_hex(4)}"
