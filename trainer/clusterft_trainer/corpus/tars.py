"""A worker's part of tar files: webdataset's samples, each the members of one stem.

Owns one pass over a tar: pictures are hashed where they lie and never unpacked, so that a row is a place in the
tar. A tar that ends too early keeps the samples before its end, and is itself a fault.
"""

from __future__ import annotations

import json
import os
import tarfile
from array import array
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import xxhash

from clusterft_trainer.corpus import columns, look, reach
from clusterft_trainer.corpus.columns import LARGEST_FILE, UNSTAMPED, Collector, Columns, Job, Picture
from clusterft_trainer.corpus.picture import SUFFIXES, suffix_of

_TEXTS = (".txt", ".caption")
_LARGEST_TEXT = 1 << 20
_SHARED_STEM, _OUTSIDE, _NOT_A_NAME = 9, columns.OUTSIDE, 5


@dataclass(slots=True)
class _Sample:
    """What one stem has."""

    pictures: list[tuple[str, int, Picture]] = field(default_factory=list)  # member, offset
    texts: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    score: float | None = None


def scan(job: Job, location: str, stamp: bytes) -> Columns:
    """All pictures of one tar; the job's only name is what the tar is called."""
    samples: dict[str, _Sample] = {}
    wrong, read = "", 0
    with reach.opened(location) as file:
        try:
            read = _walked(file, samples, stamp)
        except (tarfile.TarError, EOFError, ValueError) as error:
            wrong = f"the tar cannot be read to its end: {error}"
    out, names, offsets = Collector(), [], array("q")
    for sample in samples.values():
        for k, (name, offset, found) in enumerate(sample.pictures):
            names.append(f"{job.names[0]}/{name}")
            offsets.append(offset)
            out.picture(found)
            caption, fault = _text_of(sample)
            out.text(caption, UNSTAMPED, _SHARED_STEM if k else fault)
    if wrong:
        names.append(job.names[0])
        offsets.append(-1)
        out.picture(Picture(0, b"", 0, 0, UNSTAMPED, columns.BROKEN, wrong))
        out.text(b"", UNSTAMPED, columns.NONE)
    result = out.done()
    if wrong:
        result.picture_stamp = UNSTAMPED * len(names)  # so that it is read again
    result.names, result.files = tuple(names), (location,) * len(names)
    result.offsets, result.read = offsets.tobytes(), read
    return result


def _walked(file: BinaryIO, samples: dict[str, _Sample], stamp: bytes) -> int:
    """Collect the samples; how many bytes their pictures have."""
    read = 0
    with tarfile.open(fileobj=file, mode="r|", bufsize=1 << 20) as archive:
        for member in archive:
            if not member.isfile():
                continue
            suffix = suffix_of(member.name) or os.path.splitext(member.name)[1].lower()
            stem = member.name[: len(member.name) - len(suffix)]
            if suffix in SUFFIXES:
                found = _picture(archive, member, stamp)
                read += found.size
                name = member.name.encode("utf-8", "backslashreplace").decode()
                samples.setdefault(stem, _Sample()).pictures.append((name, member.offset_data, found))
            elif suffix in (*_TEXTS, ".json"):
                _take_text(archive, member, suffix, samples.setdefault(stem, _Sample()))
    return read


def _picture(archive: tarfile.TarFile, member: tarfile.TarInfo, stamp: bytes) -> Picture:
    name = member.name
    if name.startswith("/") or ".." in name.split("/"):
        return Picture(member.size, b"", 0, 0, stamp, _OUTSIDE)
    if any("\udc80" <= letter <= "\udcff" for letter in name):
        return Picture(member.size, b"", 0, 0, stamp, _NOT_A_NAME)
    if member.size > LARGEST_FILE or member.issparse():
        return Picture(member.size, b"", 0, 0, stamp, columns.TOO_LARGE, f"{member.size} bytes")
    data = _data(archive, member)
    return look.judged(data, len(data), xxhash.xxh3_128_digest(data), stamp)


def _data(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = archive.extractfile(member)
    data = opened.read() if opened else b""
    if len(data) != member.size:
        raise EOFError(f"{member.name} is cut off")
    return data


def _take_text(archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, sample: _Sample) -> None:
    if member.size > _LARGEST_TEXT:
        sample.texts[suffix] = (b"", columns.LONG_TEXT)
        return
    data = _data(archive, member)
    if suffix != ".json":
        sample.texts[suffix] = look.caption_of(data)
        return
    try:
        body: Any = json.loads(data)
    except (ValueError, RecursionError):
        return  # the sample then has no caption, which is told, or a text file beside it
    if isinstance(body, dict) and isinstance(body.get("caption"), str):
        sample.texts[suffix] = look.caption_of(body["caption"].encode("utf-8", "surrogatepass"))
    if isinstance(body, dict) and type(body.get("score")) in (int, float):
        sample.score = float(body["score"])


def _text_of(sample: _Sample) -> tuple[bytes, int]:
    """The caption of a sample: a text file before what its JSON says."""
    for suffix in (*_TEXTS, ".json"):
        if suffix in sample.texts:
            return sample.texts[suffix]
    return b"", columns.NO_TEXT
