"""Copies of shards on a node's own disk, for a cache that lies on slow shared storage.

A shard is copied when a first entry of it is asked for, behind the training's back; until the copy is there, and
where there is no room for one, entries are read where they lie. So a run waits for no copy, and a cache larger
than the disk does not chase itself: only copies that nobody has read for a while make room for others.

Owns the folder of copies and its bound, which all processes of a node share: who copies holds a lock that ends
with its process, and a copy gets its name when every entry has matched its checksum. Refuses nothing: what cannot
be copied is told once, and read from afar.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO
from weakref import WeakValueDictionary

from clusterft_trainer import disk
from clusterft_trainer.errors import DataError, storing
from clusterft_trainer.latents import catalogue, shard, tables
from clusterft_trainer.latents.catalogue import Catalogue
from clusterft_trainer.latents.shard import Handle, Shard

IDLE = 3600.0  # seconds after which a copy that nobody has read makes room
_TOUCH = 300.0  # seconds after which a copy in use says so again
_LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class Room:
    """Where copies lie, and how much there may be."""

    folder: Path  # of the node; shared by all caches and processes
    most: int  # bytes
    idle: float = IDLE


class Copies:
    """The copies of one cache's shards. Safe for threads; one thread of its own does the copying."""

    def __init__(self, remote: Path, room: Room, tell: Callable[[str], None]) -> None:
        self._remote = remote
        self._room = room
        self._near = room.folder / remote.name
        self._tell = tell
        self._told = False
        self._used: dict[str, float] = {}  # when a copy last said that it is in use
        self._asked: set[str] = set()
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        with storing("Copies of the cache, in", room.folder):
            self._near.mkdir(parents=True, exist_ok=True)
        self._worker = threading.Thread(target=self._work, name="copy shards", daemon=True)
        self._worker.start()

    def find(self, name: str) -> Path | None:
        """The copy of a shard; None while there is none, and one is asked for."""
        path = self._near / name
        now = time.monotonic()
        said = self._used.get(name)
        if said is not None and now - said < _TOUCH:
            return path
        try:
            os.utime(path)
        except FileNotFoundError:
            self._used.pop(name, None)
            if name not in self._asked:
                self._asked.add(name)
                self._queue.put(name)
            return None
        self._used[name] = now
        return path

    def close(self) -> None:
        """End the copying; what is under way is dropped by the next process that looks."""
        self._queue.put(None)

    def _work(self) -> None:
        while (name := self._queue.get()) is not None:
            try:
                copy(self._remote / name, self._near / name, self._room)
            except (OSError, DataError) as error:
                if not self._told:
                    self._told = True
                    self._tell(f"Shards are read from {self._remote} itself, without copies on this node: {error}")


class Near(Catalogue):
    """A catalogue whose entries are read from copies as far as there are some."""

    copies: Copies | None = None

    @classmethod
    def to(cls, folder: Path, recipe: str, room: Room, tell: Callable[[str], None]) -> Near:
        """Open a folder's catalogue, with copies in a node's room."""
        found = cls.open(folder, recipe)
        if not isinstance(found, Near):
            raise TypeError(type(found).__name__)
        found.copies = Copies(folder, room, tell)
        return found

    def _at(self, position: int) -> tuple[Shard, Handle, int]:
        if self.copies is not None:
            number, _ = catalogue._unpacked(position, len(self._names))
            self._approach(number, self.copies)
        return super()._at(position)

    @cached_property
    def _opened(self) -> WeakValueDictionary[int, Handle]:
        """Handles of copies, as long as they are among those that are open."""
        return WeakValueDictionary()

    def _approach(self, number: int, copies: Copies) -> None:
        """Have a shard's copy open in its place, once there is one."""
        path = copies.find(self._names[number])
        if path is None:
            return
        mine = self._opened.get(number)
        if mine is not None and self._handles.get(number) is mine:
            with self._lock:
                if number in self._handles:
                    self._handles.move_to_end(number)
            return
        try:
            handle = Handle(path)
        except FileNotFoundError:  # it has just made room for another one
            return
        found = Shard(path, handle).expect(self._recipe)
        if shard.name(found.form.width, found.form.height, found.tables()[2]) != self._names[number]:
            return  # made by another version, which did not name shards after what they hold
        with self._lock:
            self._shards[number] = found
            self._handles[number] = self._opened[number] = handle
            if len(self._handles) > catalogue.OPEN:
                self._handles.popitem(last=False)


def copy(source: Path, target: Path, room: Room) -> bool:
    """Make a whole copy, unless there is one, another process makes it, or there is no room for it."""
    size = source.stat().st_size
    draft = tables.draft_of(target, "copy")
    with os.fdopen(os.open(draft, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not _same(file, draft):  # somebody has finished it, or given up, since
            return False
        try:
            if target.exists() or not _reserved(room, draft, size):
                return False
            with source.open("rb") as whole:
                shutil.copyfileobj(whole, file, 1 << 22)
            file.flush()
            os.fsync(file.fileno())
            _check(draft)
            with _alone(room.folder):  # who counts sees one of both names
                draft.replace(target)
            disk.flush(target.parent)
            return True
        finally:
            with _alone(room.folder):
                draft.unlink(missing_ok=True)


def _reserved(room: Room, draft: Path, size: int) -> bool:
    """Give a draft its length, so that others count it, after others have made room for it."""
    with _alone(room.folder):
        known = [(path, path.stat()) for path in room.folder.glob(f"*/*{shard.SUFFIX}")]
        total = sum(found.st_size for path, found in known if path != draft)
        old = time.time() - room.idle
        for path, found in sorted(known, key=lambda one: one[1].st_mtime):
            if total + size <= room.most or found.st_mtime > old:
                break
            if path != draft and not _busy(path):
                path.unlink()
                total -= found.st_size
        if total + size > room.most:
            return False
        os.truncate(draft, 0)  # what a process has left that was killed
        os.truncate(draft, size)
        return True


def _same(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _busy(path: Path) -> bool:
    """Whether a process is writing there."""
    if not path.name.startswith(tables.DRAFT):
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of the node at a time."""
    with (folder / _LOCK).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check(path: Path) -> None:
    """Refuse a copy of which any byte is another one."""
    handle = Handle(path)
    found = Shard(path, handle)
    for slot in range(found.count):
        found.stored(handle, slot, check=True)
