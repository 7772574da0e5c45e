"""What goes to a worker and what comes back: jobs, and columns with a value for each entry.

Owns the layout of both. Numbers lie as Arrow lays them out, so that the process that asked makes rows of them
without touching a single one. Imports nothing that a worker would have to wait for.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple

READ, SAME = 0, 1  # what became of an entry: looked at anew, or as it was known
NONE, BROKEN, TOO_LARGE, OUTSIDE, ABSENT, NO_TEXT, NOT_UTF8, LONG_TEXT, EMPTY_TEXT = 0, 1, 2, 3, 4, 6, 7, 8, 11
BAD_CACHE = 14
LONGEST_CAPTION = 1 << 16
LARGEST_FILE = 1 << 30  # bytes of one picture
STAMP = struct.Struct("<qqQ")  # bytes, time of change, inode
KNOWN = struct.Struct("<24s24s16sqiiBB")  # stamps of picture and text, hash, size, width, height, faults
UNSTAMPED = bytes(24)


@dataclass(frozen=True, slots=True)
class Job:
    """Some pictures below one folder, and their text files if they have any."""

    root: str
    names: tuple[str, ...]
    texts_root: str = ""  # "": texts come from elsewhere
    texts: tuple[str, ...] = ()  # of each picture, "" where there is none
    known: bytes = b""  # KNOWN for each name
    first: int = 0  # number of the first entry, where this is a part of a job


@dataclass(slots=True)
class Columns:
    """What a worker found, a value for each entry; numbers as Arrow lays them out."""

    flags: bytes = b""
    size: bytes = b""
    hash: bytes = b""
    width: bytes = b""
    height: bytes = b""
    picture_stamp: bytes = b""
    text_stamp: bytes = b""
    fault: bytes = b""
    text_fault: bytes = b""
    caption_ends: bytes = b""
    captions: bytes = b""
    details: dict[int, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()  # where the worker alone knows them: members of a tar
    files: tuple[str, ...] = ()  # where they do not follow from root and name
    npz: tuple[str, ...] = ()
    offsets: bytes = b""
    read: int = 0  # bytes


class Picture(NamedTuple):
    """What is known of one picture; a dataclass takes three times as long to make."""

    size: int
    hash: bytes
    width: int
    height: int
    stamp: bytes
    fault: int = NONE
    detail: str = ""


class Collector:
    """Columns under construction."""

    def __init__(self) -> None:
        self.flags = bytearray()
        self.sizes, self.widths, self.heights = array("q"), array("i"), array("i")
        self.hashes = bytearray()
        self.stamps, self.text_stamps = bytearray(), bytearray()
        self.faults, self.text_faults = bytearray(), bytearray()
        self.captions: list[bytes] = []
        self.details: dict[int, str] = {}
        self.read = 0

    def picture(self, found: Picture, flag: int = READ) -> None:
        """The next entry's picture."""
        if found.detail:
            self.details[len(self.flags)] = found.detail
        self.flags.append(flag)
        self.sizes.append(found.size)
        self.hashes += found.hash or bytes(16)
        self.widths.append(found.width)
        self.heights.append(found.height)
        self.stamps += found.stamp
        self.faults.append(found.fault)

    def text(self, caption: bytes, stamp: bytes, fault: int) -> None:
        """The same entry's text."""
        self.captions.append(caption)
        self.text_stamps += stamp
        self.text_faults.append(fault)

    def blank(self) -> None:
        """Columns of an entry that is known, whose flag is there."""
        self.sizes.append(0)
        self.widths.append(0)
        self.heights.append(0)
        self.hashes += bytes(16)
        self.stamps += UNSTAMPED
        self.faults.append(NONE)
        self.text(b"", UNSTAMPED, NONE)

    def extend(self, other: Collector) -> None:
        """The entries of another one."""
        for _ in range(len(other.flags) - len(other.sizes)):  # all known: it has flags alone
            other.blank()
        self.details |= {len(self.flags) + k: detail for k, detail in other.details.items()}
        for mine, theirs in (
            (self.flags, other.flags),
            (self.hashes, other.hashes),
            (self.stamps, other.stamps),
            (self.text_stamps, other.text_stamps),
            (self.faults, other.faults),
            (self.text_faults, other.text_faults),
        ):
            mine.extend(theirs)
        self.sizes += other.sizes
        self.widths += other.widths
        self.heights += other.heights
        self.captions += other.captions

    def done(self) -> Columns:
        """All of it."""
        return Columns(
            flags=bytes(self.flags),
            size=self.sizes.tobytes(),
            hash=bytes(self.hashes),
            width=self.widths.tobytes(),
            height=self.heights.tobytes(),
            picture_stamp=bytes(self.stamps),
            text_stamp=bytes(self.text_stamps),
            fault=bytes(self.faults),
            text_fault=bytes(self.text_faults),
            caption_ends=ends(self.captions),
            captions=b"".join(self.captions),
            details=self.details,
            read=self.read,
        )


def ends(texts: Iterable[bytes]) -> bytes:
    """Where each text ends in all of them joined, as Arrow wants it."""
    return array("i", accumulate(map(len, texts), initial=0)).tobytes()


def part_of(job: Job, start: int, end: int) -> Job:
    """Some entries of a job."""
    return replace(
        job,
        names=job.names[start:end],
        texts=job.texts[start:end],
        known=job.known[start * KNOWN.size : end * KNOWN.size],
        first=job.first + start,
    )
