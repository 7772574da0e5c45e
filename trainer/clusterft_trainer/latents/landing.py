"""Many small files put below a folder: each whole or not there, on the disk, and never through a link out of it.

Files are written under names that nobody reads, flushed some hundreds at a time, and renamed then: flushing each
alone would take days for millions. Refuses to follow symbolic links, and to replace a file unless asked.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import xxhash

from clusterft_trainer.errors import DataError, storing
from clusterft_trainer.latents import tables

_FLUSHERS = 8  # file systems flush several files in about the time of one
_MOST_OPEN = 500  # files and folders that wait; a process may usually have 1,024 open
_MOST_BYTES = 1 << 28
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Landing:
    """Puts files below one folder; use it in a `with`, at whose end all are there."""

    def __init__(self, root: Path, *, overwrite: bool = False) -> None:
        self._root = root
        self._overwrite = overwrite
        self._folders: dict[str, int] = {}  # open ones, of what waits
        self._waiting: list[tuple[int, str, str]] = []  # folder, draft, name
        self._names: set[str] = set()  # of what waits
        self._handles: list[int] = []
        self._bytes = 0
        self.written = 0
        self.there = 0  # files that were there already, with the same bytes
        with storing("The folder", root):
            root.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Landing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            for handle in self._handles:
                os.close(handle)
            for folder, draft, _name in self._waiting:
                os.unlink(draft, dir_fd=folder)
            self._forget()

    def put(self, name: str, size: int, chunks: Callable[[], Iterable[Any]]) -> None:
        """A file by its relative name; `chunks` gives its bytes, a second time where another file is there."""
        below, _, own = name.rpartition("/")
        path = self._root / name
        with storing("The file", path):
            folder = self._folder(below)
            if self._there(path, folder, own, size, chunks):
                self.there += 1
                return
            if name in self._names:  # what waits is no file yet that another could be compared with
                self.flush()
                return self.put(name, size, chunks)
            draft = tables.DRAFT + xxhash.xxh3_64_hexdigest(os.fsencode(own))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=folder)  # of a run that was killed
            handle = os.open(draft, _NEW, 0o644, dir_fd=folder)
            self._waiting.append((folder, draft, own))
            self._handles.append(handle)
            self._names.add(name)
            for chunk in chunks():
                rest = memoryview(chunk).cast("B")
                while rest:
                    rest = rest[os.write(handle, rest) :]
                self._bytes += len(chunk)
        if len(self._waiting) + len(self._folders) >= _MOST_OPEN or self._bytes >= _MOST_BYTES:
            self.flush()

    def flush(self) -> None:
        """Have the disk keep what waits, and give it its names."""
        with storing("The files in", self._root), ThreadPoolExecutor(_FLUSHERS) as pool:
            list(pool.map(os.fsync, self._handles))
            while self._handles:
                os.close(self._handles.pop())
            while self._waiting:
                folder, draft, name = self._waiting[-1]
                os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
                self._waiting.pop()
                self.written += 1
            list(pool.map(os.fsync, self._folders.values()))
        self._forget()

    def _forget(self) -> None:
        for folder in self._folders.values():
            os.close(folder)
        self._folders.clear()
        self._waiting.clear()
        self._handles.clear()
        self._names.clear()
        self._bytes = 0

    def _folder(self, below: str) -> int:
        """An open folder, made if it is not there; step by step, so that no link on the way is followed."""
        known = self._folders.get(below)
        if known is not None:
            return known
        if not below:
            handle = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            above, _, own = below.rpartition("/")
            parent = self._folder(above)
            try:
                os.mkdir(own, 0o755, dir_fd=parent)
            except FileExistsError:
                pass  # as on every file but the first
            try:
                handle = os.open(own, _FOLDER, dir_fd=parent)
            except (NotADirectoryError, OSError) as error:
                raise DataError(
                    f"{self._root / below} is a link or no folder, so nothing is written below it.",
                    "Give an empty folder, or remove that.",
                ) from error
        self._folders[below] = handle
        return handle

    def _there(self, path: Path, folder: int, own: str, size: int, chunks: Callable[[], Iterable[Any]]) -> bool:
        """Whether the same file is there already; another one is refused, or is to be replaced."""
        try:
            handle = os.open(own, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            same = False  # a link
        else:
            try:
                same = os.fstat(handle).st_size == size and all(_follows(handle, chunk) for chunk in chunks())
            finally:
                os.close(handle)
        if not same and not self._overwrite:
            raise DataError(
                f"{path} is there already, and is another file.",
                "Give an empty folder, or --overwrite to have it replaced.",
            )
        return same


def _follows(handle: int, chunk: Any) -> bool:
    """Whether the next bytes of a file are these."""
    rest = memoryview(chunk).cast("B")
    while rest:
        found = os.read(handle, len(rest))
        if not found or found != rest[: len(found)]:
            return False
        rest = rest[len(found) :]
    return True
