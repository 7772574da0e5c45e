"""What a build is sent: a directory's worth of files, streamed as a tar, and what makes two of them equal.

Owns the tar (written piece by piece: a wheelhouse has gigabytes), the reading of a user's directory with its
.dockerignore, and the digest that decides whether anything changed. Refuses to follow a link out of the directory.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from docker.utils.build import exclude_paths

from clusterft.errors import UsageError

_CHUNK = 1 << 18
_BLOCK = 512
_END = b"\0" * (2 * _BLOCK)


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in a context: a file with its bytes or its place on disk, a directory, or a link."""

    name: str
    source: bytes | Path | None = None  # None: a directory, or a link
    link: str = ""
    mode: int = 0o644
    seal: str = ""  # stands for the content where reading it all would take too long

    @property
    def size(self) -> int:
        """Bytes of content."""
        if isinstance(self.source, Path):
            return self.source.stat().st_size
        return len(self.source or b"")

    def header(self, size: int) -> bytes:
        """The tar header. Time and owner are fixed: a file's age is no part of an image."""
        info = tarfile.TarInfo(self.name)
        info.mode, info.size = self.mode, size
        if self.link:
            info.type, info.linkname = tarfile.SYMTYPE, self.link
        elif self.source is None:
            info.type = tarfile.DIRTYPE
        return info.tobuf(tarfile.PAX_FORMAT)

    def content(self) -> Iterator[bytes]:
        """The bytes, in pieces."""
        if not isinstance(self.source, Path):
            yield self.source or b""
            return
        with self.source.open("rb") as file:
            while piece := file.read(_CHUNK):
                yield piece


@dataclass(frozen=True, slots=True)
class Context:
    """All entries of a build, in the order they are sent."""

    entries: tuple[Entry, ...] = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes of content, without the tar's own."""
        return sum(entry.size for entry in self.entries)

    def digest(self) -> str:
        """Equal for equal names, modes, links and content; times do not count."""
        whole = hashlib.sha256()
        for entry in sorted(self.entries, key=lambda one: one.name):
            inner = hashlib.sha256(entry.seal.encode())
            for piece in entry.content() if not entry.seal else ():
                inner.update(piece)
            whole.update(f"{entry.name}\0{entry.mode:o}\0{entry.link}\0{inner.hexdigest()}\n".encode())
        return whole.hexdigest()

    def stream(self, sent: Callable[[int], None]) -> Iterator[bytes]:
        """The tar, in pieces; `sent` hears how many bytes of content have gone."""
        gone = 0
        for entry in self.entries:
            size = left = entry.size
            yield entry.header(size)
            for piece in entry.content():
                left -= len(piece)
                if left < 0:
                    break
                gone += len(piece)
                yield piece
                sent(gone)
            if left:
                raise UsageError("the file changed while it was being sent", where=str(entry.source))
            yield b"\0" * (-size % _BLOCK)
        yield _END


def read(root: Path, keep: str) -> Context:
    """A user's directory as the docker command would send it; `keep` is sent whatever .dockerignore says."""
    ignore = root / ".dockerignore"
    patterns = []
    if ignore.is_file():
        lines = (line.strip() for line in ignore.read_text(encoding="utf-8").splitlines())
        patterns = [line for line in lines if line and not line.startswith("#")]
    names = sorted(exclude_paths(str(root), patterns, dockerfile=keep))
    try:
        return Context(tuple(_entry(root, name) for name in names))
    except OSError as error:
        raise UsageError(
            f"the build context cannot be read: {error.strerror}",
            where=str(error.filename or root),
            remedy="name the file in .dockerignore, or make it readable",
        ) from None


def wheels(folder: Path) -> tuple[Entry, ...]:
    """The files of a wheelhouse. A wheel's name says what it is, so name and size stand for its content."""
    try:
        found = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise UsageError(f"the wheelhouse cannot be read: {error.strerror}", where=str(folder)) from None
    return tuple(Entry(f"wheelhouse/{p.name}", p, seal=f"{p.name} {p.stat().st_size}") for p in found)


def folder(name: str) -> Entry:
    """A directory, for what a Dockerfile copies even where it is empty."""
    return Entry(name, mode=0o755)


def _entry(root: Path, name: str) -> Entry:
    path = root / name
    if path.is_symlink():
        return Entry(name, link=os.readlink(path), mode=0o777)
    if path.is_dir():
        return Entry(name, mode=path.stat().st_mode & 0o7777)
    if path.is_file():
        with path.open("rb"):
            return Entry(name, path, mode=path.stat().st_mode & 0o7777)
    raise UsageError(
        "neither a file nor a directory: it cannot be part of a build",
        where=str(path),
        remedy=f"add {name} to .dockerignore",
    )
