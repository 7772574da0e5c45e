"""What earlier ingests found out: the last index, and the journal of one that did not come to its end.

Owns journals: record batches that are appended while ingest runs, each with a checksum, so that whatever the
moment of a kill, what is whole counts and the torn end does not. Each ingest has its own. Refuses nothing: what
cannot be read here is only read again from the pictures.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import secrets
import struct
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from clusterft_trainer.corpus import rows as columns
from clusterft_trainer.corpus.columns import SAME
from clusterft_trainer.corpus.index import SCHEMA, read_head
from clusterft_trainer.errors import DataError, storing

JOURNAL, LEFT = "journal", "left.arrow"
_FRAME = struct.Struct("<8sQQ")  # mark, bytes, XXH3-64 of them
_MARK = b"cftcorp1"


class Journal:
    """Rows as they are found, kept until an index holds them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{JOURNAL}-{secrets.token_hex(4)}"
        with storing("The journal", self.path):
            self._file = self.path.open("xb")
            with contextlib.suppress(OSError):  # some filesystems know no locks
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._at = 0

    def append(self, batch: pa.RecordBatch) -> tuple[int, int]:
        """Where its bytes lie in the file."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SCHEMA) as stream:
            stream.write_batch(batch)
        body = sink.getvalue()
        with storing("The journal", self.path):
            self._file.write(_FRAME.pack(_MARK, len(body), xxhash.xxh3_64_intdigest(body)))
            self._file.write(body)
            self._file.flush()
        place = self._at + _FRAME.size, len(body)
        self._at += _FRAME.size + len(body)
        return place

    def close(self) -> None:
        """Leave it for the next ingest."""
        self._file.close()


def frames(path: Path) -> Iterator[pa.Buffer]:
    """The whole batches of a journal, mapped; a torn end is passed over."""
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("r+b") as file:
        mapped = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    at = 0
    while at + _FRAME.size <= mapped.size:
        mark, length, digest = _FRAME.unpack(mapped.slice(at, _FRAME.size).to_pybytes())
        at += _FRAME.size
        body = mapped.slice(at, length) if at + length <= mapped.size else None
        if mark != _MARK or body is None or xxhash.xxh3_64_intdigest(body) != digest:
            return
        at += length
        yield body


def batch_of(body: pa.Buffer) -> pa.RecordBatch:
    """The rows of one frame, where they lie."""
    return pa.ipc.open_stream(body).read_next_batch()


def journals(folder: Path) -> list[Path]:
    """All that lie in a folder."""
    return sorted(folder.glob(f"{JOURNAL}-*"))


# A file system without locks; NFS also wants a descriptor that may write.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.EACCES)


def forget(paths: Sequence[Path]) -> None:
    """Delete journals whose rows an index has, but none that another ingest is writing."""
    for path in paths:
        with storing("The journal", path), contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            path.unlink()


class Known:
    """Rows of earlier ingests, found by source and name."""

    def __init__(self, batches: list[pa.RecordBatch], own: tuple[int, int] = (0, 0)) -> None:
        """Later batches hold what is newer; `own` are the numbers of the rows that the index here has."""
        self.own = own
        self.batches = [batch for batch in batches if len(batch)]
        lengths = [len(batch) for batch in self.batches]
        keys = [batch.column("key").to_numpy() for batch in self.batches]
        every = np.concatenate(keys) if keys else np.empty(0, np.uint64)
        order = np.argsort(every, kind="stable")
        self._keys = every[order]
        self._order = order.astype(np.int64)
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    @classmethod
    def of(cls, folders: list[Path], mine: Path) -> Known:
        """What the indexes and journals in these folders know; the last one's word counts.

        `mine` is where the index is made: not among them before there is one.
        """
        batches: list[pa.RecordBatch] = []
        own = (0, 0)
        for folder in folders:
            first = sum(map(len, batches))
            with contextlib.suppress(DataError, OSError, pa.ArrowInvalid, ValueError):  # then it is read anew
                published = list(_published(folder))
                batches += [batch for batch in published if batch.schema.equals(SCHEMA)]
                own = (first, first + read_head(folder).rows) if folder == mine and published else own
            found = (batch_of(body) for path in journals(folder) for body in frames(path))
            batches += [batch for batch in found if batch.schema.equals(SCHEMA)]
        return cls(batches, own)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The newest row of each key, as a number over all batches; -1 where there is none."""
        if not len(self._keys):
            return np.full(len(keys), -1, np.int64)
        at = np.searchsorted(self._keys, keys, side="right") - 1
        hit = (at >= 0) & (self._keys[at] == keys)
        return np.where(hit, self._order[at], -1)

    def archive(self, source: int, location: str, stamp: bytes) -> np.ndarray:
        """The rows of a tar that has not changed since; none if it has, or is not known."""
        found = self._archives.get((source, location))
        if found is None:
            return np.empty(0, np.int64)
        rows = self.rows(found)
        assert rows is not None
        stamps = rows.column("picture_stamp").to_pylist()
        current = np.array([one == stamp for one in stamps])
        newest = {key: number for key, number in zip(rows.column("key").to_pylist(), found, strict=True)}
        kept = np.array(sorted(newest.values()), np.int64)
        return kept[np.isin(kept, found[current])]

    @cached_property
    def _archives(self) -> dict[tuple[int, str], np.ndarray]:
        """Numbers of the rows that each tar has, older ones first."""
        found: dict[tuple[int, str], list[np.ndarray]] = {}
        for start, batch in zip(self._starts, self.batches, strict=False):
            inside = np.flatnonzero(batch.column("offset").to_numpy() >= 0)
            if not len(inside):
                continue
            files = batch.column("file").take(pa.array(inside)).dictionary_encode()
            codes, sources = files.indices.to_numpy(), batch.column("source").to_numpy()[inside]
            for code, location in enumerate(files.dictionary.to_pylist()):
                for source in np.unique(sources[codes == code]):
                    rows = inside[(codes == code) & (sources == source)]
                    found.setdefault((int(source), location), []).append(rows + start)
        return {place: np.concatenate(parts) for place, parts in found.items()}

    def about(self, source: int, names: Sequence[str]) -> tuple[np.ndarray, bytes]:
        """Numbers of the rows of these names, and what a worker compares with."""
        found = self.find(columns.keys_of(source, names))
        return found, self.records(found) if (found >= 0).any() else b""

    def unchanged(self, found: np.ndarray, flags: bytes) -> pa.RecordBatch | None:
        """The rows that a worker found as they were."""
        return self.rows(found[np.frombuffer(flags, np.uint8) == SAME])

    def records(self, found: np.ndarray) -> bytes:
        """What workers compare with, blank where nothing is known."""
        kinds: Any = columns.KNOWN
        out: Any = np.zeros(len(found), columns.KNOWN)
        for number, rows, places in self._by_batch(found):
            batch = self.batches[number]
            for name in columns.KNOWN.names or ():
                column = batch.column(name)
                out[name][places] = _raw(column, kinds[name])[rows]
        return out.tobytes()

    def rows(self, found: np.ndarray) -> pa.RecordBatch | None:
        """These rows themselves, in this order."""
        if not len(found):
            return None
        parts, places = [], []
        for number, rows, where in self._by_batch(found):
            first, last = int(rows[0]), int(rows[-1])
            consecutive = last - first + 1 == len(rows) and bool((np.diff(rows) == 1).all())
            batch = self.batches[number]
            parts.append(batch.slice(first, len(rows)) if consecutive else batch.take(pa.array(rows)))
            places.append(where)
        if len(parts) == 1:
            return parts[0]
        if all(a[-1] < b[0] for a, b in pairwise(places)):  # as it is where names are in order
            return pa.Table.from_batches(parts, SCHEMA).combine_chunks().to_batches()[0]
        order: np.ndarray = np.empty(len(found), np.int64)
        order[np.concatenate(places)] = np.arange(len(found))
        return pa.Table.from_batches(parts, SCHEMA).take(order).combine_chunks().to_batches()[0]

    def _by_batch(self, found: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Batch number, rows in it, and their places in `found`."""
        places = np.flatnonzero(found >= 0)
        numbers = np.searchsorted(self._starts, found[places], side="right") - 1
        for number in np.unique(numbers):
            here = places[numbers == number]
            yield int(number), found[here] - self._starts[number], here


def _raw(column: pa.Array, kind: np.dtype) -> np.ndarray:
    """A column's values where they lie; a null has the bytes that were stored for it."""
    data = np.frombuffer(column.buffers()[1], kind)
    return data[column.offset : column.offset + len(column)]


def _published(folder: Path) -> Iterator[pa.RecordBatch]:
    """All rows of an index, and those that it left out."""
    if not (folder / "index.json").is_file():
        return
    place = folder / read_head(folder).generation
    for name in ("index.arrow", LEFT):
        file = pa.ipc.open_file(pa.memory_map(str(place / name)))
        for number in range(file.num_record_batches):
            yield file.get_batch(number)
