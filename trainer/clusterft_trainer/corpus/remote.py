"""Pictures behind a URL, read as those of a folder are.

Owns the reader for object storage: one request for each object, some at a time, since each takes its time to
answer. Refuses names that lead out of the prefix.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xxhash

from clusterft_trainer.corpus import columns, look, reach
from clusterft_trainer.corpus.columns import LARGEST_FILE, STAMP, UNSTAMPED, Collector, Job, Picture

AT_ONCE = 16


Seen = tuple[int, bytes]  # bytes and stamp


class RemoteReader:
    """Reads below one prefix; what a listing has told already is not asked for again."""

    def __init__(self, root: str, listing: Mapping[str, Seen] | None = None) -> None:
        self.root = root
        self._listing = listing or {}
        self._client = reach.client(root)
        self._prefix = reach.path_of(root)
        self.read = 0

    def close(self) -> None:
        """Nothing is held."""

    def _data(self, name: str) -> tuple[int, bytes, bytes]:
        """Size, stamp and content; no content where it is too large."""
        if name.startswith("/") or ".." in name.split("/"):
            raise OSError(errno.EXDEV, "leads out of the folder")
        path = f"{self._prefix}/{name}"
        seen = self.seen(name)
        if seen is None:
            raise FileNotFoundError(errno.ENOENT, "is not there", path)
        if seen[0] > LARGEST_FILE:
            return *seen, b""
        return *seen, reach.tried(f"{self.root}/{name}", lambda: self._client.cat_file(path))

    def picture(self, name: str) -> Picture:
        """Read it whole."""
        try:
            size, stamp, data = self._data(name)
        except OSError as error:
            return look.unopened(error)
        if size > LARGEST_FILE:
            return Picture(size, b"", 0, 0, stamp, columns.TOO_LARGE, f"{size} bytes")
        self.read += len(data)
        return look.judged(data, len(data), xxhash.xxh3_128_digest(data), stamp)

    def text(self, name: str) -> tuple[bytes, bytes, int]:
        """A caption, its stamp and what is wrong with it."""
        if not name:
            return b"", UNSTAMPED, columns.NO_TEXT
        try:
            _, stamp, data = self._data(name)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EXDEV):
                raise
            return b"", UNSTAMPED, columns.NO_TEXT
        self.read += len(data)
        caption, fault = look.caption_of(data)
        return caption, stamp, fault

    def seen(self, name: str) -> Seen | None:
        """Size and stamp of what is there now."""
        if name in self._listing:
            return self._listing[name]
        try:
            entry = reach.tried(f"{self.root}/{name}", lambda: self._client.info(f"{self._prefix}/{name}"))
        except FileNotFoundError:
            return None
        return (entry["size"] or 0, stamp_of(entry)) if entry["type"] == "file" else None

    def unchanged(self, name: str, stamp: bytes) -> bool:
        """Whether the object still is what it was when it got this stamp."""
        there = self.seen(name) if name and stamp != UNSTAMPED else None
        return there is not None and there[1] == stamp

    def steady(self, names: Sequence[str], stamps: Sequence[bytes]) -> bytearray:
        """`unchanged` for many."""
        return bytearray(map(self.unchanged, names, stamps))

    def listed(self, folder: str) -> list[str]:
        """Names in one folder."""
        path = f"{self._prefix}/{folder}".rstrip("/")
        found = reach.tried(f"{self.root}/{folder}", lambda: self._client.ls(path, detail=False))
        return [entry.rpartition("/")[2] for entry in found]


def stamp_of(entry: dict[str, Any]) -> bytes:
    """What tells this object from a changed one."""
    changed = entry.get("mtime") or entry.get("LastModified")
    if changed is None:
        return UNSTAMPED
    seconds = changed.timestamp() if hasattr(changed, "timestamp") else float(changed)
    return STAMP.pack(entry["size"] or 0, int(seconds * 1e9), 0)


def spread(job: Job, work: Any) -> Collector:
    """Do a job in parts, at the same time; `work` takes a part and a place to collect."""
    each = -(-len(job.names) // AT_ONCE) or 1
    parts = [columns.part_of(job, start, start + each) for start in range(0, len(job.names), each)]
    collectors = [Collector() for _ in parts]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(work, parts, collectors))
    whole = Collector()
    for collector in collectors:
        whole.extend(collector)
    return whole
