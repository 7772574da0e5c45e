"""What is to be equal on every node: a file or a directory tree of this machine, entry by entry.

Owns the reading of the tree and the cheap proof of equality: size, and sha256 over the whole of a small file or
over spread samples of a large one. Refuses by name what cannot be the same elsewhere: sockets and devices, links
that lead out of the tree. Names are bytes: whatever a file is called, it arrives under that name.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clusterft.errors import UsageError

WHOLE = 256 << 10  # bytes; up to here a file's hash is that of all of it
BLOCK = 64 << 10
_LARGE = 64 << 20
_FEW, _MANY = 4, 16  # samples of a file, and of a large one
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in the tree; `path` is relative to it."""

    path: bytes
    kind: str  # f, d or l, as find says
    mode: int = 0
    size: int = 0
    target: bytes = b""  # of a link
    mtime: int = 0


def scan(root: Path) -> tuple[Entry, ...]:
    """Everything below a directory, parents before children; every refusal is told at once."""
    found, refused = [], []
    for path, name in _walk(os.fsencode(root)):
        try:
            found.append(_entry(path, name))
        except UsageError as error:
            refused.append(error.what)
    if refused:
        more = f"; and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        raise UsageError(
            "; ".join(refused[:_SHOWN]) + more,
            where=str(root),
            remedy="take them out of the tree, or push its parts one by one",
        )
    return tuple(found)


def one(path: Path) -> Entry:
    """A single file, by its own name."""
    return _entry(os.fsencode(path), os.fsencode(path.name))


def samples(size: int, full: bool) -> tuple[int, ...]:
    """The numbers of the blocks that are compared; none means the whole file. The last one ends where the file
    does, so that what was only appended shows too."""
    if full or size <= WHOLE:
        return ()
    count, last = (_MANY if size > _LARGE else _FEW), size // BLOCK - 1
    return tuple(sorted({last * i // (count - 1) for i in range(count)}))


def hash_of(path: bytes, size: int, full: bool) -> str:
    """What a node's script finds for the same bytes."""
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        blocks = samples(size, full)
        if not blocks:
            return hashlib.file_digest(file, "sha256").hexdigest()
        for block in blocks:
            hashed.update(os.pread(file.fileno(), BLOCK, block * BLOCK))
        hashed.update(os.pread(file.fileno(), BLOCK, size - BLOCK))
    return hashed.hexdigest()


def shown(path: bytes) -> str:
    """A name for people: what is no plain text in it is escaped."""
    return path.decode("utf-8", "backslashreplace").encode("unicode_escape").decode("ascii")


def names(paths: Sequence[bytes]) -> str:
    """The first few of them."""
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(shown(path) for path in paths[:_SHOWN]) + more


def _walk(root: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(path, path relative to the root), sorted."""

    def fail(error: OSError) -> None:
        raise UsageError(f"{error.filename}: {error.strerror}", remedy="make it readable for this user") from None

    for directory, below, files in os.walk(root, onerror=fail):
        below.sort()
        for name in sorted((*below, *files)):
            path = os.path.join(directory, name)
            yield path, os.path.relpath(path, root)


def _entry(path: bytes, name: bytes) -> Entry:
    try:
        status = os.lstat(path)
    except OSError as error:
        raise UsageError(f"{shown(path)}: {error.strerror}") from None
    mode, mtime = stat.S_IMODE(status.st_mode) & 0o777, int(status.st_mtime)
    if stat.S_ISREG(status.st_mode):
        return Entry(name, "f", mode, status.st_size, mtime=mtime)
    if stat.S_ISDIR(status.st_mode):
        return Entry(name, "d", mode)
    if stat.S_ISLNK(status.st_mode):
        target = os.readlink(path)
        leads = os.path.normpath(os.path.join(os.path.dirname(name), target))
        if os.path.isabs(target) or leads == b".." or leads.startswith(b"../"):
            raise UsageError(f"the link {shown(name)} leads out of the tree, to {shown(target)}")
        return Entry(name, "l", target=target, mtime=mtime)
    raise UsageError(f"{shown(name)} is neither a file nor a directory nor a link")
