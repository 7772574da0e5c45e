"""Tar files at the level of their headers: made so that the same files give the same bytes, and read as hostile.

Owns ustar with pax records for what does not fit into it; no owner, time or mode of a file is kept. Refuses, when
reading, everything but plain files and folders, names that lead out of a folder, names that occur twice, headers
that are damaged or far too long, and a file that lost its tail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clusterft_trainer.errors import DataError

BLOCK = 512
END = bytes(2 * BLOCK)
LARGEST = 8**11 - 1  # bytes of a file; more does not fit into a header
_LONGEST_NAME, _LONGEST_PREFIX = 100, 155
_LONGEST_RECORDS = 1 << 16  # of pax, or of a long name
_FILE, _FOLDER, _RECORDS, _GLOBAL, _LONG_NAME = b"0", b"5", b"x", b"g", b"L"
_FILES = (b"0", b"\0", b"7")
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
_LONGEST_PART, _DEEPEST = 255, 100


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar."""

    name: str
    offset: int  # where its bytes begin
    size: int


def padding(size: int) -> int:
    """Bytes from the end of a file to the next header."""
    return -size % BLOCK


def header(name: str, size: int) -> bytes:
    """What comes before a file's bytes."""
    if size > LARGEST:
        raise ValueError(f"{name} has {size} bytes, more than a tar's header can say")
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) <= _LONGEST_NAME:
        return _header(raw, b"", size, _FILE)
    cut = raw.rfind(b"/", 0, _LONGEST_PREFIX + 1)
    if 0 < cut and 0 < len(raw) - cut - 1 <= _LONGEST_NAME:
        return _header(raw[cut + 1 :], raw[:cut], size, _FILE)
    record = _record(b"path", raw)
    start = _header(b"pax", b"", len(record), _RECORDS)
    return start + record + bytes(padding(len(record))) + _header(raw[:_LONGEST_NAME], b"", size, _FILE)


_NONE = b"%07o\x00" % 0  # an owner's number, a device's
_PLAIN = b"%07o\x00" % 0o644 + 2 * _NONE
_EPOCH = b"\x00" + b"%011o\x00" % 0
_USTAR = bytes(100) + b"ustar\x00" + b"00" + bytes(64) + 2 * _NONE
_BASE = sum(_PLAIN) + sum(_EPOCH) + sum(_USTAR) + sum(b" " * 8)  # a checksum counts its own field as blanks


def _header(name: bytes, prefix: bytes, size: int, kind: bytes) -> bytes:
    length = b"%011o" % size
    told = b"%06o\x00 " % (_BASE + sum(name) + sum(prefix) + sum(length) + kind[0])
    start = name.ljust(_LONGEST_NAME, b"\x00") + _PLAIN + length + _EPOCH + told + kind + _USTAR
    return (start + prefix).ljust(BLOCK, b"\x00")


def _record(key: bytes, value: bytes) -> bytes:
    """A pax record, which begins with its own length."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(b"%d" % length):
        length = len(rest) + len(b"%d" % length)
    return b"%d" % length + rest


def members(path: Path, handle: int) -> Iterator[Member]:
    """All files of a tar, in order; nothing but headers is read."""
    size = os.fstat(handle).st_size
    at, name, seen = 0, b"", set()
    while True:
        block = os.pread(handle, BLOCK, at)
        if not block.strip(b"\0"):
            if len(block) < BLOCK:
                raise _bad(path, "it has no end: it lost its tail" if size else "it is empty")
            return
        kind, length, own = _parsed(path, at, block)
        at += BLOCK
        if at + length > size:
            raise _bad(path, f"it lost its tail: {size} bytes are there, {at + length} are needed")
        if kind in (_RECORDS, _GLOBAL, _LONG_NAME):
            name = _long_name(path, kind, os.pread(handle, _bounded(path, length), at)) or name
        elif kind in _FILES or kind == _FOLDER:
            told = _safe(path, name or own, folder=kind == _FOLDER)
            if kind != _FOLDER:
                if told in seen:
                    raise _bad(path, f"it holds {told} twice")
                seen.add(told)
                yield Member(told, at, length)
            name = b""
        else:
            raise _bad(path, f"{_shown(name or own)} is {_KINDS.get(kind, 'neither a file nor a folder')}")
        at += length + padding(length)


def _parsed(path: Path, at: int, block: bytes) -> tuple[bytes, int, bytes]:
    """Kind, length and name in a header."""
    try:
        told = int(block[148:156].strip(b"\0 "), 8)
        length = int(block[124:136].strip(b"\0 ") or b"0", 8)
    except ValueError as error:
        raise _bad(path, f"there is no header at byte {at}") from error
    if told != sum(block) - sum(block[148:156]) + 8 * ord(" ") or length < 0:
        raise _bad(path, f"the header at byte {at} is damaged")
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return block[156:157], length, prefix + b"/" + name if prefix else name


def _bounded(path: Path, length: int) -> int:
    if length > _LONGEST_RECORDS:
        raise _bad(path, f"a name in it takes {length} bytes")
    return length


def _long_name(path: Path, kind: bytes, raw: bytes) -> bytes:
    if kind == _LONG_NAME:
        return raw.split(b"\0", 1)[0]
    found = b""
    while raw:
        length, _, rest = raw.partition(b" ")
        if not length.isdigit() or len(length) > 6 or not len(length) + 2 < int(length) <= len(raw):
            raise _bad(path, "its pax records cannot be read")
        key, _, value = raw[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path":
            found = value
        elif key == b"size" or key.startswith(b"GNU.sparse"):
            raise _bad(path, "it holds sparse files, or ones of more than 8 GB")
        raw = raw[int(length) :]
    if kind == _GLOBAL and found:
        raise _bad(path, "all its files have one name")
    return found


def _safe(path: Path, raw: bytes, *, folder: bool) -> str:
    """A name that stays below the folder that it is unpacked in."""
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if raw.startswith(b"/") or b".." in parts or b"\0" in raw or (not parts and not folder):
        raise _bad(path, f"the name {_shown(raw)} leads out of the folder")
    if len(parts) > _DEEPEST or any(len(part) > _LONGEST_PART for part in parts):
        raise _bad(path, f"the name {_shown(raw)} is too long")
    return os.fsdecode(b"/".join(parts))


def _shown(raw: bytes) -> str:
    return repr(raw.decode("utf-8", "replace")[:200])


def _bad(path: Path, why: str) -> DataError:
    return DataError(f"{path} is not unpacked: {why}.", "Fetch it anew, or look where it comes from.")
