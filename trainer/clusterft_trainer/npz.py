"""Arrays in a zip, as np.savez writes them, read in place and without a way to a pickle.

Owns the few records of that format: a table of contents at the end, a header before each array. It needs a tenth
of the time of numpy's loader. Refuses what is cut off, encrypted, of another form or too large: `Broken` says why,
and whoever knows the file's name makes an error of it.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

LARGEST_FILE = 1 << 29
_LARGEST_DIRECTORY = 1 << 16
_MOST_MEMBERS = 64
_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LOCAL_CRC, _TABLE_CRC = 14, 16  # where the checksum stands in them
_STORED, _DEFLATED = 0, 8
_TAIL = 1024  # bytes that hold the end of nearly every file
_HEAD = 512
_ARRAY = re.compile(
    rb"\{'descr': '(<f2|<f4|<f8|<i4|<i8|\|b1|\|u1)', 'fortran_order': (True|False), "
    rb"'shape': \((|\d{1,9},|\d{1,9}(?:, \d{1,9}){1,7})\),? ?\} *\n"
)
Fetch = Callable[[int, int], Any]  # offset and length to bytes


class Broken(Exception):
    """Why a file cannot be used."""


class Member(NamedTuple):
    """One file in the zip."""

    offset: int
    packed: int
    size: int
    method: int
    crc: int


class Archive:
    """A zip with arrays, in memory or on a disk."""

    def __init__(self, fetch: Fetch, size: int) -> None:
        if size > LARGEST_FILE:
            raise Broken(f"it has {size} bytes, where {LARGEST_FILE} are the most")
        self._fetch = fetch
        self._size = size
        self.members: Mapping[str, Member] = _members(fetch, size)

    @classmethod
    def of(cls, body: bytes) -> Archive:
        """One that is in memory."""
        view = memoryview(body)
        return cls(lambda offset, length: view[offset : offset + length], len(body))

    def described(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """What an array is, from its first bytes."""
        one, begin = self._begin(name)
        head = bytes(self._fetch(begin, min(one.packed, _HEAD)))
        if one.method == _DEFLATED:
            head = _inflated(head, _HEAD)
        kind, shape, _, _ = _header(head, one, name)
        return kind, shape

    def array(self, name: str, *, check: bool = True) -> np.ndarray:
        """An array, read-only; `check` compares it with its checksum."""
        one, begin = self._begin(name)
        raw = self._fetch(begin, one.packed)
        if one.method == _DEFLATED:
            raw = _inflated(raw, one.size)
        if len(raw) != one.size:
            raise Broken(f"its array {name} lost its tail")
        if check and zlib.crc32(raw) != one.crc:
            raise Broken(f"the checksum of its array {name} is another one")
        kind, shape, turned, at = _header(bytes(raw[:_HEAD]), one, name)
        found = np.frombuffer(raw, kind, -1, at)
        return found.reshape(shape, order="F") if turned else found.reshape(shape)

    def _begin(self, name: str) -> tuple[Member, int]:
        """A member, and where its bytes begin."""
        one = self.members.get(name)
        if one is None:
            raise Broken(f"it holds no {name}")
        local = self._fetch(one.offset, _LOCAL.size)
        if len(local) < _LOCAL.size or bytes(local[:4]) != b"PK\x03\x04":
            raise Broken(f"its member {name} does not begin as one does")
        *_, named, extra = _LOCAL.unpack(local)
        begin = one.offset + _LOCAL.size + named + extra
        if begin + one.packed > self._size - _END.size:
            raise Broken(f"its member {name} lies outside of it")
        return one, begin


class _Span(NamedTuple):
    """Where an array lies that is the same in many files."""

    crc: int  # the place of its checksum among those of all members
    begin: int  # of its header
    numbers: int
    end: int
    kind: np.dtype[Any]
    shape: tuple[int, ...]


class Template:
    """The layout of a file. Others of its length differ in numbers and checksums alone, if they have it, too.

    Comparing costs a fifth of reading a table of contents, and notices as much.
    """

    def __init__(self, body: bytes) -> None:
        archive = Archive.of(body)
        self.size = len(body)
        self.members = archive.members
        self.spans: dict[str, _Span] = {}
        crcs: list[tuple[int, int]] = []  # a member's checksum stands before it and in the table
        table = _END.unpack_from(body, len(body) - _END.size)[6]
        for number, (name, one) in enumerate(archive.members.items()):
            _, begin = archive._begin(name)
            kind, shape, turned, numbers = _header(bytes(body[begin : begin + _HEAD]), one, name)
            if one.method != _STORED or turned:
                raise Broken("its arrays are packed, or lie column by column")
            self.spans[name] = _Span(number, begin, begin + numbers, begin + one.size, kind, shape)
            crcs.append((one.offset + _LOCAL_CRC, table + _TABLE_CRC))
            *_, named, extra, said, _, _, _, _ = _ENTRY.unpack_from(body, table)
            table += _ENTRY.size + named + extra + said
        if len(crcs) < 2:
            raise Broken("it holds one array alone")
        self._told = struct.Struct(self._form(crcs))
        values = self._told.unpack(body)
        checksums = [place for place, value in enumerate(values) if isinstance(value, int)]
        # one step takes all that must be equal out of a file, and the checksums of both places
        self._fixed = itemgetter(*(place for place in range(len(values)) if place not in checksums))
        self._before, self._after = itemgetter(*checksums[: len(crcs)]), itemgetter(*checksums[len(crcs) :])
        self._wanted = self._fixed(values)
        if self.checksums(memoryview(body)) is None:
            raise Broken("its checksums are not where np.savez has them")

    def _form(self, crcs: list[tuple[int, int]]) -> str:
        """All of a file but its numbers, for struct."""
        skipped = sorted((span.numbers, span.end - span.numbers) for span in self.spans.values())
        form, at = "<", 0
        for place, length in sorted([*((place, -4) for pair in crcs for place in pair), *skipped]):
            if place < at:
                raise Broken("its members overlap")
            form += f"{place - at}s" + ("L" if length < 0 else f"{length}x")
            at = place + abs(length)
        return f"{form}{self.size - at}s"

    def checksums(self, body: memoryview) -> tuple[int, ...] | None:
        """Those of the members in order, if a file has this layout."""
        if len(body) != self.size:
            return None
        values = self._told.unpack(body)
        found: tuple[int, ...] = self._after(values)
        return found if self._before(values) == found and self._fixed(values) == self._wanted else None


class Known(Archive):
    """A file that has the layout of a template."""

    def __init__(self, body: memoryview, template: Template, checksums: tuple[int, ...]) -> None:
        self.members = template.members  # by name: their checksums are the template's
        self._body = body
        self._spans = template.spans
        self._checksums = checksums

    def array(self, name: str, *, check: bool = True) -> np.ndarray:
        """As of any archive."""
        span = self._spans.get(name)
        if span is None:
            raise Broken(f"it holds no {name}")
        if check and zlib.crc32(self._body[span.begin : span.end]) != self._checksums[span.crc]:
            raise Broken(f"the checksum of its array {name} is another one")
        found = np.frombuffer(self._body[span.numbers : span.end], span.kind)
        return found if len(span.shape) == 1 else found.reshape(span.shape)


def encode(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A file's bytes; the same for the same arrays, since the time of a member is a constant there."""
    room = io.BytesIO()
    np.savez(room, allow_pickle=False, **arrays)
    return room.getvalue()


def _members(fetch: Fetch, size: int) -> dict[str, Member]:
    """The files in a zip, by array name."""
    first = max(0, size - _TAIL)
    tail = fetch(first, size - first)
    if len(tail) < _END.size:
        raise Broken("it is empty" if size == 0 else "it lost its tail")
    mark, _, _, _, count, length, begin, comment = _END.unpack_from(tail, len(tail) - _END.size)
    if mark != b"PK\x05\x06" or comment:
        raise Broken("it lost its tail, or it is no file of np.savez")
    if begin + length != size - _END.size or length > _LARGEST_DIRECTORY or count > _MOST_MEMBERS:
        raise Broken("its table of contents does not fit")
    table = tail[begin - first : begin - first + length] if begin >= first else fetch(begin, length)
    found: dict[str, Member] = {}
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > length:
            raise Broken("its table of contents is cut off")
        mark, _, _, flags, method, _, _, crc, packed, raw, named, extra, said, _, _, _, offset = (
            _ENTRY.unpack_from(table, at)
        )
        start = at + _ENTRY.size
        name = bytes(table[start : start + named]).decode("utf-8", "replace").removesuffix(".npy")
        at = start + named + extra + said
        if mark != b"PK\x01\x02" or flags & 1 or method not in (_STORED, _DEFLATED) or name in found:
            raise Broken("its table of contents is none of np.savez")
        if raw > LARGEST_FILE or offset + packed > begin or (method == _STORED and packed != raw):
            raise Broken(f"its member {name} lies outside of it")
        found[name] = Member(offset, packed, raw, method, crc)
    return found


def _inflated(raw: Any, most: int) -> bytes:
    try:
        return zlib.decompressobj(-15).decompress(raw, most)
    except zlib.error as error:
        raise Broken(f"it cannot be decompressed ({error})") from error


def _header(head: bytes, one: Member, name: str) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """Number format, shape, whether it lies column by column, and where the numbers begin."""
    if head[:6] != b"\x93NUMPY" or len(head) < 12 or head[6] not in (1, 2, 3):
        raise Broken(f"what it holds as {name} is no array")
    start = 10 if head[6] == 1 else 12
    end = start + int.from_bytes(head[8:start], "little")
    if end > len(head):
        raise Broken(f"the header of its array {name} is too long")
    kind, shape, turned = _told(head[start:end])
    if end + kind.itemsize * math.prod(shape) != one.size:
        raise Broken(f"its array {name} has another length than its shape says")
    return kind, shape, turned, end


@lru_cache(maxsize=1024)  # the files of a cache share a few
def _told(text: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    found = _ARRAY.fullmatch(text)
    if found is None:
        raise Broken("it holds an array of a kind that is not read here")
    shape = tuple(int(side) for side in found[3].split(b",") if side.strip())
    return np.dtype(found[1].decode()), shape, found[2] == b"True"
