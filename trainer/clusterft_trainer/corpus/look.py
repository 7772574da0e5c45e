"""A worker's part of ingest: open pictures and their texts, read each once, and give back columns.

Owns the loop that runs for every file: relative opens below one folder, one read, one hash, the size from the
header. Imports neither Arrow nor Pillow nor the settings, so that a worker is there at once. What is wrong with a
file is a number in a column; only a disk that fails is raised.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import xxhash

from clusterft_trainer.corpus import picture
from clusterft_trainer.corpus.columns import (
    ABSENT,
    BROKEN,
    EMPTY_TEXT,
    KNOWN,
    LARGEST_FILE,
    LONG_TEXT,
    LONGEST_CAPTION,
    NO_TEXT,
    NONE,
    NOT_UTF8,
    OUTSIDE,
    SAME,
    STAMP,
    TOO_LARGE,
    UNSTAMPED,
    Collector,
    Columns,
    Job,
    Picture,
)
from clusterft_trainer.corpus.headers import Bytes

_KEPT_BUFFER = 1 << 26
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_LATE = 20_000_000  # ns: a file changed so shortly before may change again without its time telling
_LATE_COARSE = 2_000_000_000  # where a filesystem keeps whole seconds


class Reader:
    """Reads pictures below one folder, into one buffer."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._buffer = bytearray(1 << 20)
        self._view = memoryview(self._buffer)
        self._real = os.path.realpath(root) + os.sep
        self._inside: dict[str, bool] = {}
        self._now = time.time_ns()
        self.read = 0

    def close(self) -> None:
        """Give the folder back."""
        os.close(self.folder)

    def opened(self, name: str) -> int:
        """A handle; OSError with EXDEV where the way leads out of the folder."""
        if "/" in name and not self._proven(name.rpartition("/")[0]):
            raise OSError(errno.EXDEV, "leads out of the folder")
        try:
            return os.open(name, _OPEN, dir_fd=self.folder)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        real = os.path.realpath(os.path.join(self.root, name))
        if not real.startswith(self._real):
            raise OSError(errno.EXDEV, "is a link that leads out of the folder")
        return os.open(real, _OPEN)

    def _proven(self, folder: str) -> bool:
        """Whether a folder of a name is below the root once links and dots are followed."""
        known = self._inside.get(folder)
        if known is not None:
            return known
        real = os.path.realpath(os.path.join(self.root, folder)) + os.sep
        inside = not folder.startswith("/") and ".." not in folder.split("/") and real.startswith(self._real)
        self._inside[folder] = inside
        return inside

    def stamp(self, seen: os.stat_result) -> bytes:
        """What tells this file from a changed one; zeros where it is too fresh to tell."""
        changed = seen.st_mtime_ns
        if changed > self._now - (_LATE if changed % 1_000_000_000 else _LATE_COARSE):
            return UNSTAMPED
        return STAMP.pack(seen.st_size, changed, seen.st_ino)

    def picture(self, name: str) -> Picture:
        """Read it whole; what is wrong with it is told, and raised only where the disk fails."""
        try:
            handle = self.opened(name)
        except OSError as error:
            return unopened(error)
        try:
            seen = os.fstat(handle)
            if not stat.S_ISREG(seen.st_mode):
                return Picture(0, b"", 0, 0, UNSTAMPED, BROKEN, "it is not a file")
            if seen.st_size > LARGEST_FILE:
                return Picture(seen.st_size, b"", 0, 0, self.stamp(seen), TOO_LARGE, f"{seen.st_size} bytes")
            if seen.st_size > _KEPT_BUFFER:
                with mmap.mmap(handle, 0, access=mmap.ACCESS_READ) as mapped:
                    self.read += len(mapped)
                    return judged(mapped, len(mapped), xxhash.xxh3_128_digest(mapped), self.stamp(seen))
            size = self._filled(handle, seen.st_size)
            self.read += size
            return judged(self._buffer, size, xxhash.xxh3_128_digest(self._view[:size]), self.stamp(seen))
        finally:
            os.close(handle)

    def _filled(self, handle: int, size: int) -> int:
        if size > len(self._buffer):
            self._buffer = bytearray(max(size, 2 * len(self._buffer)))
            self._view = memoryview(self._buffer)
        got = os.readv(handle, [self._view[:size]]) if size else 0
        while got < size:
            more = os.readv(handle, [self._view[got:size]])
            if not more:
                break
            got += more
        return got

    def text(self, name: str) -> tuple[bytes, bytes, int]:
        """A caption file as UTF-8, its stamp and what is wrong with it."""
        if not name:
            return b"", UNSTAMPED, NO_TEXT
        try:
            handle = self.opened(name)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EXDEV):
                return b"", UNSTAMPED, NO_TEXT
            raise
        try:
            seen = os.fstat(handle)
            data = os.read(handle, LONGEST_CAPTION + 4)
        finally:
            os.close(handle)
        self.read += len(data)
        caption, fault = caption_of(data)
        return caption, self.stamp(seen), fault

    def seen(self, name: str) -> tuple[int, bytes] | None:
        """Size and stamp of the file that is there now."""
        try:
            seen = os.stat(name, dir_fd=self.folder, follow_symlinks=False)
            if "/" in name and not self._proven(name.rpartition("/")[0]):
                return None
            if stat.S_ISLNK(seen.st_mode):
                real = os.path.realpath(os.path.join(self.root, name))
                seen = os.stat(real)
                if not real.startswith(self._real):
                    return None
        except (FileNotFoundError, NotADirectoryError):
            return None
        return (seen.st_size, self.stamp(seen)) if stat.S_ISREG(seen.st_mode) else None

    def unchanged(self, name: str, stamp: bytes) -> bool:
        """Whether the file still is what it was when it got this stamp."""
        if stamp == UNSTAMPED or not name:
            return False
        try:
            seen = os.stat(name, dir_fd=self.folder)
        except OSError:
            return False  # looking at it again will tell
        return stamp == STAMP.pack(seen.st_size, seen.st_mtime_ns, seen.st_ino)

    def steady(self, names: Sequence[str], stamps: Sequence[bytes]) -> bytearray:
        """`unchanged` for many, where a call for each would take as long as asking the disk."""
        out = bytearray()
        ask, pack, folder = os.stat, STAMP.pack, self.folder
        for name, stamp in zip(names, stamps, strict=True):
            try:
                seen = ask(name, dir_fd=folder)
            except OSError:
                out.append(False)
                continue
            # no file has the stamp of zeros
            out.append(stamp == pack(seen.st_size, seen.st_mtime_ns, seen.st_ino))
        return out

    def listed(self, folder: str) -> list[str]:
        """Names in one folder."""
        try:
            return os.listdir(os.path.join(self.root, folder))
        except (FileNotFoundError, NotADirectoryError):
            return []


def judged(data: Bytes, size: int, mark: bytes, stamp: bytes) -> Picture:
    """The picture in the first `size` bytes."""
    try:
        width, height = picture.size_of(data, size)
    except picture.NoPicture as error:
        fault = TOO_LARGE if isinstance(error, picture.TooLarge) else BROKEN
        return Picture(size, mark, 0, 0, stamp, fault, str(error))
    return Picture(size, mark, width, height, stamp)


class Reading(Protocol):
    """What a reader of a folder or of a prefix can do."""

    root: str
    read: int

    def close(self) -> None: ...
    def picture(self, name: str) -> Picture: ...
    def text(self, name: str) -> tuple[bytes, bytes, int]: ...
    def seen(self, name: str) -> tuple[int, bytes] | None: ...
    def unchanged(self, name: str, stamp: bytes) -> bool: ...
    def steady(self, names: Sequence[str], stamps: Sequence[bytes]) -> bytearray: ...
    def listed(self, folder: str) -> list[str]: ...


def caption_of(data: bytes) -> tuple[bytes, int]:
    """The caption in a file's bytes, and what is wrong with it."""
    if not data.isascii():
        try:
            data = str(data, "utf-8-sig").strip().encode()
        except UnicodeDecodeError:
            return b"", NOT_UTF8 if len(data) <= LONGEST_CAPTION else LONG_TEXT
    data = data.strip()
    if len(data) > LONGEST_CAPTION:
        return b"", LONG_TEXT
    return data, NONE if data else EMPTY_TEXT


def unopened(error: OSError) -> Picture:
    """A picture that cannot be opened; what is the disk's fault is raised."""
    if error.errno == errno.EXDEV:
        return Picture(0, b"", 0, 0, UNSTAMPED, OUTSIDE, error.strerror or "")
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return Picture(0, b"", 0, 0, UNSTAMPED, ABSENT)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENXIO):
        return Picture(0, b"", 0, 0, UNSTAMPED, BROKEN, error.strerror or "")
    raise error


def readers(job: Job) -> tuple[Reading, Reading]:
    """What reads the pictures of a job and what reads its texts; one and the same where they lie together."""
    pictures = reader_of(job.root)
    return pictures, pictures if job.texts_root in ("", job.root) else reader_of(job.texts_root)


def reader_of(root: str) -> Reading:
    """What reads below a folder or a prefix."""
    if "://" not in root:
        return Reader(root)
    from clusterft_trainer.corpus.remote import RemoteReader

    return RemoteReader(root)


def files(job: Job) -> Columns:
    """Pictures and their text files."""
    pictures, texts = readers(job)

    def work(part: Job, out: Collector) -> None:
        (_again if part.known else _anew)(part, pictures, texts, out)

    return through(job, (pictures, texts), work)


def stored(job: Job, pictures: dict[str, tuple[int, bytes]], texts: dict[str, tuple[int, bytes]]) -> Columns:
    """The same behind a URL, where listings told size and stamp of each."""
    from clusterft_trainer.corpus.remote import RemoteReader

    reading = RemoteReader(job.root, pictures), RemoteReader(job.texts_root, texts)
    return through(job, reading, lambda part, out: (_again if part.known else _anew)(part, *reading, out))


def through(job: Job, reading: tuple[Reading, ...], work: Callable[[Job, Collector], None]) -> Columns:
    """Do the work on a job: where it is, in many parts at once where answers take their time."""
    out = Collector()
    try:
        if isinstance(reading[0], Reader):
            work(job, out)
        else:
            from clusterft_trainer.corpus.remote import spread

            out = spread(job, work)
    finally:
        for one in set(reading):
            one.close()
    out.read = sum(one.read for one in set(reading))
    return out.done()


def same(count: int) -> Columns:
    """Entries that need no look."""
    return Columns(flags=bytes([SAME]) * count)


def _anew(job: Job, pictures: Reading, texts: Reading, out: Collector) -> None:
    if not job.texts_root:
        for name in job.names:
            out.picture(pictures.picture(name))
        return
    for name, text in zip(job.names, job.texts, strict=True):
        out.picture(pictures.picture(name))
        out.text(*texts.text(text))


_AS_KNOWN = Picture(0, b"", 0, 0, UNSTAMPED)


def _again(job: Job, pictures: Reading, texts: Reading, out: Collector) -> None:
    """The same where some are known: what has not changed is not opened."""
    wanted = job.texts if job.texts_root else ("",) * len(job.names)
    known = list(KNOWN.iter_unpack(job.known))
    same = pictures.steady(job.names, [record[0] for record in known])
    # A text that has gone has no stamp; one that never was there has none either, and is looked for again.
    if job.texts_root:
        steady = texts.steady(wanted, [record[1] for record in known])
    else:
        steady = bytearray(b"\1" * len(wanted))
    if all(same) and all(steady):
        out.flags += bytes([SAME]) * len(same)
        return
    for k, (name, text) in enumerate(zip(job.names, wanted, strict=True)):
        stamp, _, mark, size, width, height, fault, _ = known[k]
        if same[k] and steady[k]:
            out.picture(_AS_KNOWN, SAME)
            out.text(b"", UNSTAMPED, NONE)
            continue
        if same[k] and fault == NONE:
            out.picture(Picture(size, mark, width, height, stamp))
        else:
            out.picture(pictures.picture(name))
        out.text(*(texts.text(text) if job.texts_root else (b"", UNSTAMPED, NONE)))
