"""Named arrays in one file, in the safetensors format, written durably and read without being loaded.

Owns the few lines of that format which numbers without torch need: 8 bytes of header length, JSON, data. Any
reader of safetensors opens what is written here. Refuses a file that is cut off, longer than it says, or whose
header points outside of it.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import secrets
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clusterft_trainer.disk import flush
from clusterft_trainer.errors import DataError

_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit
_ALIGNED = 64
DTYPES: dict[str, np.dtype[Any]] = {
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # numpy has none; see shard.to_bfloat16
    "U8": np.dtype("u1"),
}
DRAFT = ".draft-"  # how names of files begin that are still being written


@dataclass(frozen=True, slots=True)
class Part:
    """One array on its way into a file, as bytes that may come in pieces."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Iterable[Any]  # buffers

    @property
    def size(self) -> int:
        """Bytes."""
        return DTYPES[self.dtype].itemsize * math.prod(self.shape)


def part(name: str, dtype: str, values: np.ndarray) -> Part:
    """An array that is in memory."""
    return Part(name, dtype, tuple(values.shape), [np.ascontiguousarray(values, DTYPES[dtype])])


@dataclass(frozen=True, slots=True)
class Entry:
    """Where an array lies in its file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself."""

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]

    def entry(self, name: str, dtype: str) -> Entry:
        """One array of the kind that is expected."""
        found = self.entries.get(name)
        if found is None or found.dtype != dtype:
            raise damaged(self.path, f"it has no array {name} of {dtype}")
        return found


class Damaged(DataError):
    """A file that is not what was written."""


def damaged(path: Path, why: str) -> Damaged:
    """What every reader of these files says of one that is not whole."""
    return Damaged(
        f"{path} is damaged: {why}.",
        "Run clusterft prep: it moves a damaged shard aside and makes again what that held; "
        f"python -m clusterft_trainer verify {path.parent} looks at all others, too.",
    )


def draft_of(path: Path, owner: str = "") -> Path:
    """A name beside `path` for writing it, which no other process uses."""
    return path.with_name(f"{DRAFT}{owner or secrets.token_hex(4)}-{path.name}")


def write(path: Path, parts: Sequence[Part], metadata: Mapping[str, str], *, owner: str = "") -> None:
    """All of a file or nothing; in place of one that is there."""
    draft = draft_of(path, owner)
    try:
        write_draft(draft, parts, metadata)
        draft.replace(path)
        flush(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def write_draft(draft: Path, parts: Sequence[Part], metadata: Mapping[str, str]) -> None:
    """The bytes alone, on the disk when this returns."""
    body: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for one in parts:
        body[one.name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [at, at + one.size]}
        at += one.size
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNED)
    with draft.open("wb", buffering=1 << 20) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for one in parts:
            for chunk in one.chunks:
                file.write(chunk)
        if file.tell() != 8 + len(text) + at:
            raise ValueError(f"{draft.name}: {file.tell() - 8 - len(text)} bytes came, {at} were announced")
        file.flush()
        os.fsync(file.fileno())


def header(path: Path, handle: int) -> Header:
    """Read what is in an open file, and make sure that all of it is there."""
    size = os.fstat(handle).st_size
    start = os.pread(handle, 8, 0)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
    if not 2 <= length <= _LARGEST_HEADER:
        raise damaged(path, "it does not begin as such a file does" if size else "it is empty")
    if size < 8 + length:
        raise damaged(path, f"it lost its tail: its header alone takes {8 + length} bytes, the file has {size}")
    try:
        body = json.loads(os.pread(handle, length, 8))
        metadata = {str(k): str(v) for k, v in body.pop("__metadata__", {}).items()}
        entries = {name: _entry(told, 8 + length) for name, told in body.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, f"its header cannot be read ({error})") from error
    total = max((entry.end for entry in entries.values()), default=8 + length)
    if size < total:
        raise damaged(path, f"it lost its tail: header and data take {total} bytes, the file has {size}")
    if size > total:
        raise damaged(path, f"it has {size} bytes, where its header accounts for {total}")
    return Header(path, entries, metadata)


def _entry(told: Any, data: int) -> Entry:
    first, last = (int(n) for n in told["data_offsets"])
    shape = tuple(int(n) for n in told["shape"])
    dtype = DTYPES.get(told["dtype"])
    if dtype is None or min(first, *shape, 0) < 0 or last - first != dtype.itemsize * math.prod(shape):
        raise ValueError("an array has another length than its shape says")
    return Entry(told["dtype"], shape, data + first, data + last)


class Mapped:
    """A file whose arrays are looked at in place: memory is the page cache's, whatever their size."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.header = header(path, file.fileno())
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The strings that go with the arrays."""
        return self.header.metadata

    def array(self, name: str, dtype: str) -> np.ndarray:
        """One array, read-only."""
        entry = self.header.entry(name, dtype)
        count = math.prod(entry.shape)
        found = np.frombuffer(self._map, DTYPES[dtype], count, entry.begin)
        return found.reshape(entry.shape)

    def forget(self) -> None:
        """Give back the pages that were looked at; the next look reads them again."""
        self._map.madvise(mmap.MADV_DONTNEED)
