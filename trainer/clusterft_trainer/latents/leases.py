"""Who does which task, agreed on through a shared directory alone, by workers that come, die, hang and come back.

A lease is a file `<task>.<generation>` that only one can create; it holds its owner's name. An owner shows that it
lives by a file of its own whose content changes with every beat. No two clocks are compared: whoever looks
remembers when, by its own clock, it first saw the present content, and takes an owner for dead when that has not
changed for `patience` seconds. Then it creates the next generation. An owner that was only slow finds that file
before it publishes, and drops its work; and publishing itself gives a name to the first alone, so that even two
who both believe to own a task do no harm.

Owns that protocol. Refuses to delete leases while tasks of their group are being worked on: a directory that
another machine caches may show a name as free for seconds after it was taken, but creating it is decided in one
place.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PATIENCE = 60.0  # seconds without a beat; directory caches of network file systems live for half of that
WORKERS = "workers"
DRAFT = ".new-"  # how names begin that are being made
# What file systems say that have no hard links
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
DONE, OVER = ".done", ".over"  # ends of names: a task is over; a whole plan is
_RECORD = 1024  # bytes of a beat, always as many, so that each write replaces the one before as a whole
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Files(Protocol):
    """The few things that the protocol asks of a directory; names are relative, with slashes."""

    def create(self, name: str, data: bytes) -> bool:
        """Make a file that was not there; False if it is, or may not be any more."""

    def write(self, name: str, data: bytes) -> None:
        """Put a file of one's own into place, new or again."""

    def read(self, name: str) -> bytes | None:
        """All of a file, None if it is not there."""

    def names(self, folder: str) -> list[str]:
        """What a folder holds."""

    def orphaned(self, name: str) -> bool:
        """Whether this very machine knows that the process which kept that file is gone."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to do a task, until somebody takes over."""

    group: str  # tasks of one plan
    task: str
    generation: int

    @property
    def name(self) -> str:
        """Its file."""
        return f"{self.group}/{self.task}.{self.generation}"

    @property
    def next(self) -> str:
        """The file that ends it."""
        return f"{self.group}/{self.task}.{self.generation + 1}"


@dataclass(slots=True)
class _Seen:
    content: bytes | None
    since: float


class Leases:
    """One worker's view of the tasks and of the other workers."""

    def __init__(
        self, files: Files, owner: str, clock: Callable[[], float], patience: float = PATIENCE, **about: Any
    ) -> None:
        self.owner = owner
        self._files = files
        self._clock = clock
        self._patience = patience
        self._about = about  # what the beat file tells of this worker beside the beat
        self._beat = 0
        self._seen: dict[str, _Seen] = {}
        self._owners: dict[str, str] = {}  # by lease; what is in a lease never changes
        self._mine: set[str] = set()
        self._open: set[str] = set()

    def beat(self, progress: Mapping[str, Any] | None = None) -> None:
        """Show that this worker lives; several times within `patience`."""
        self._beat += 1
        self._tell("works", progress or {})

    def done(self, lease: Lease) -> None:
        """This worker has finished a task, or lost it."""
        self._open.discard(lease.name)

    def leave(self) -> None:
        """Say that this worker ends: others need not wait to take over what it has not finished.

        Only that: what it has finished may still be hidden from another machine by its cache. What a beat has no
        room for is taken over after `patience`.
        """
        self._beat += 1
        released = sorted(self._open)
        while len(json.dumps(self._body("left", {"released": released}))) >= _RECORD:
            released.pop()
        self._tell("left", {"released": released})

    def _tell(self, state: str, progress: Mapping[str, Any]) -> None:
        text = json.dumps(self._body(state, progress)).encode()
        if len(text) >= _RECORD:
            raise ValueError(f"a beat of {len(text)} bytes; {_RECORD} are the limit")
        self._files.write(f"{WORKERS}/{self.owner}", text.ljust(_RECORD - 1) + b"\n")

    def _body(self, state: str, progress: Mapping[str, Any]) -> dict[str, Any]:
        return {"schema": 1, "owner": self.owner, "beat": self._beat, "state": state, **self._about, **progress}

    def claim(self, group: str, tasks: Iterable[str], finished: Callable[[str], bool]) -> Lease | None:
        """The first task that is free or whose owner is dead; `finished` asks the disk, and is believed.

        Free ones go before those of the dead: who was taken for dead may be slow, and still finish.
        """
        taken = self.taken(group)
        left: list[tuple[str, int]] = []
        for task in tasks:
            generation = taken.get(task, 0)
            if generation:
                left.append((task, generation))
            elif (lease := self._take(Lease(group, task, 1), finished)) is not None:
                return lease
        for task, generation in left:
            held = Lease(group, task, generation)
            if finished(task) or not self._dead(held):
                continue
            if (lease := self._take(Lease(group, task, generation + 1), finished)) is not None:
                return lease
        return None

    def _take(self, lease: Lease, finished: Callable[[str], bool]) -> Lease | None:
        # A cached listing may lack what this worker itself has made.
        if lease.name in self._mine or not self._files.create(lease.name, self.owner.encode()):
            return None
        self._mine.add(lease.name)
        self._open.add(lease.name)
        # Asked once more: its owner may have finished it since the look that found it unfinished.
        if finished(lease.task):
            self._open.discard(lease.name)
            return None
        return lease

    def lost(self, lease: Lease) -> bool:
        """Whether somebody has taken this over; to be asked at every beat and before publishing."""
        return self._files.read(lease.next) is not None

    def taken(self, group: str) -> dict[str, int]:
        """The newest generation of each task that anybody has claimed."""
        newest: dict[str, int] = {}
        for name in self._files.names(group):
            task, _, generation = name.rpartition(".")
            if task and generation.isdecimal():
                newest[task] = max(newest.get(task, 0), int(generation))
        return newest

    def _dead(self, lease: Lease) -> bool:
        owner = self._owners.get(lease.name)
        if owner is None:
            owner = (self._files.read(lease.name) or b"").decode("utf-8", "replace")
            if owner:
                self._owners[lease.name] = owner
        if owner == self.owner:
            return False
        # Without an owner's name, who made the lease died in that moment, or is about to write: watch the lease.
        name = f"{WORKERS}/{owner}" if _plain(owner) else lease.name
        return self.silent(name, lease.name)

    def silent(self, name: str, lease: str = "") -> bool:
        """Whether a worker's file has shown no beat for too long, or tells that the worker gave a lease back."""
        content = self._files.read(name)
        now, seen = self._clock(), self._seen.get(name)
        if seen is None or seen.content != content:
            self._seen[name] = _Seen(content, now)
        elif now - seen.since >= self._patience:
            return True
        if content is None:
            return False
        told = state(content)
        if told.get("state") == "left":
            return lease in told.get("released", ())
        return self._files.orphaned(name)

    def ended(self, owner: str) -> bool:
        """Whether a worker is gone, as far as this one can tell by now."""
        name = f"{WORKERS}/{owner}"
        told = state(self._files.read(name) or b"")
        return told.get("state") == "left" or self.silent(name)


def state(content: bytes) -> dict[str, Any]:
    """What a worker's file tells; empty while it is being written."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _plain(owner: str) -> bool:
    return bool(owner) and owner.isascii() and "/" not in owner and not owner.startswith(".")


class Directory:
    """A directory that all workers share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._name = secrets.token_hex(4)
        self._locks: list[int] = []
        self._boot = _boot()

    def join(self, owner: str) -> dict[str, Any]:
        """Make a worker's file and lock it while this process lives; what its beats must tell of that."""
        self._name = owner
        handle, locked = self._locked(f"{WORKERS}/{owner}")
        if not locked or not self._boot:
            return {}  # a file system without locks: beats alone decide
        return {"boot": self._boot, "device": os.fstat(handle).st_dev}

    def _locked(self, name: str) -> tuple[int, bool]:
        """Make a file and lock it."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._locks.append(handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return handle, False
        if not _writable(path):  # on SMB a lock keeps others from writing, and beats are written by name
            fcntl.flock(handle, fcntl.LOCK_UN)
            return handle, False
        return handle, True

    def close(self) -> None:
        """Give the locks back."""
        for handle in self._locks:
            os.close(handle)
        self._locks.clear()

    def begin(self, group: str) -> None:
        """Open a group of tasks; one whose folder is removed stays closed, whatever a cache says."""
        (self.root / group).mkdir(parents=True, exist_ok=True)

    def create(self, name: str, data: bytes) -> bool:
        """Make a file that was not there; False if it is, or if its group is closed."""
        draft = self.root / f"{DRAFT}{self._name}-{threading.get_ident()}"
        draft.write_bytes(data)
        try:
            os.link(draft, self.root / name)  # so that none is ever seen without its content
        except FileNotFoundError:
            return False
        except FileExistsError:
            # Where a network file system sent the request twice, the first one was ours.
            return bool(data) and self.read(name) == data
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return self._created(name, data)
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _created(self, name: str, data: bytes) -> bool:
        """The same on a file system without hard links, in two steps."""
        try:
            handle = os.open(self.root / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileNotFoundError:
            return False
        except FileExistsError:
            return bool(data) and self.read(name) == data
        try:
            os.write(handle, data)
        finally:
            os.close(handle)
        return True

    def write(self, name: str, data: bytes) -> None:
        """Put a file of one's own into place, new or again."""
        # Opened anew each time: only closing makes network file systems show it to others.
        try:
            handle = os.open(self.root / name, os.O_WRONLY)
        except FileNotFoundError:  # new, or somebody took this worker for dead and swept it away
            self._locked(name)
            handle = os.open(self.root / name, os.O_WRONLY)
        try:
            os.pwrite(handle, data, 0)
        finally:
            os.close(handle)

    def read(self, name: str) -> bytes | None:
        """All of a file, None if it is not there."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """What a folder holds; nothing if it is not there."""
        try:
            return sorted(os.listdir(self.root / folder))
        except FileNotFoundError:
            return []

    def orphaned(self, name: str) -> bool:
        """Locks are trusted within one kernel and one mount alone: across these, each may have its own."""
        told = state(self.read(name) or b"")
        if not self._boot or told.get("boot") != self._boot:
            return False
        try:
            handle = os.open(self.root / name, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False  # not ours to open: beats alone decide
        try:
            if told.get("device") != os.fstat(handle).st_dev:
                return False
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(handle)
        return True


def _writable(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.pwrite(handle, b"\n", 0)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
