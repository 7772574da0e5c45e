"""A worker's part of kohya's metadata: the latent cache of a picture, or the picture.

Owns the names that kohya gives caches and what they tell of a picture's size. The legacy name wins where both are
there, as it does with kohya. Latents are not read here, but what says that they are there: of a file that lost its
tail, or is so old that it lacks sizes, the picture takes the place, and where there is none it is broken. Behind a
URL that is seen when it is read.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from pathlib import Path
from typing import Any

from clusterft_trainer import kohya, npz
from clusterft_trainer.corpus import reach
from clusterft_trainer.corpus.columns import (
    ABSENT,
    BAD_CACHE,
    BROKEN,
    KNOWN,
    NONE,
    READ,
    SAME,
    UNSTAMPED,
    Collector,
    Columns,
    Job,
    Picture,
)
from clusterft_trainer.corpus.look import Reading, reader_of, through
from clusterft_trainer.corpus.picture import SUFFIXES, stem_of, suffix_of
from clusterft_trainer.errors import DataError

Size = tuple[int, int]
Hint = tuple[Size | None, Size | None]  # image_size and train_resolution, where the metadata has them
_ORDER = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".avif")
_NAMED = re.compile(r"_(\d{4,5})x(\d{4,5})_sdxl\.npz")
_LARGEST_MEMBER = 4096  # bytes of original_size.npy
_UNKNOWN = bytes(KNOWN.size)


class _Finder:
    """Looks for what belongs to one entry after the other."""

    def __init__(self, pictures: Reading, caches: Reading | None) -> None:
        self.pictures = pictures
        self.caches = caches
        self._lucky = _ORDER[0]
        self._listed: dict[str, list[str]] = {}

    def cache(self, name: str, size: Size | None) -> tuple[str, Size | None, bytes] | None:
        """Name of the cache, the size in its name, its stamp."""
        if self.caches is None:
            return None
        stem = stem_of(name)
        seen = self.caches.seen(f"{stem}.npz")
        if seen is not None:
            return f"{stem}.npz", None, seen[1]
        names = [f"{stem}_{size[0]:04d}x{size[1]:04d}_sdxl.npz"] if size else self._of_any_size(stem)
        for candidate in names:
            seen = self.caches.seen(candidate)
            if seen is not None:
                told = _NAMED.search(candidate)
                return candidate, (int(told[1]), int(told[2])) if told else size, seen[1]
        return None

    def _of_any_size(self, stem: str) -> list[str]:
        folder, _, last = stem.rpartition("/")
        if folder not in self._listed:
            found = self.caches.listed(folder) if self.caches else []
            self._listed[folder] = sorted(name for name in found if name.endswith("_sdxl.npz"))
        listed = self._listed[folder]
        at, found = bisect_left(listed, f"{last}_"), []
        while at < len(listed) and listed[at].startswith(f"{last}_"):
            if _NAMED.fullmatch(listed[at][len(last) :]):
                found.append(f"{folder}/{listed[at]}" if folder else listed[at])
            at += 1
        return found

    def picture(self, name: str) -> tuple[str, int] | None:
        """The picture's own name and its bytes."""
        if suffix_of(name) in SUFFIXES:
            seen = self.pictures.seen(name)
            return (name, seen[0]) if seen else None
        for suffix in (self._lucky, *_ORDER):
            seen = self.pictures.seen(name + suffix)
            if seen is not None:
                self._lucky = suffix
                return name + suffix, seen[0]
        return None


def look_for(job: Job, caches: str, hints: tuple[Hint, ...]) -> Columns:
    """Find the cache or the picture of each entry."""
    pictures = reader_of(job.root)
    latents = None if not caches else pictures if caches == job.root else reader_of(caches)
    files, latent_files = [""] * len(job.names), [""] * len(job.names)
    finder = _Finder(pictures, latents)

    def work(part: Job, out: Collector) -> None:
        known = KNOWN.iter_unpack(part.known or _UNKNOWN * len(part.names))
        for k, (name, record) in enumerate(zip(part.names, known, strict=True), part.first):
            files[k], latent_files[k] = _one(finder, name, hints[k], record, out)

    columns = through(job, (pictures, latents or pictures), work)
    columns.files, columns.npz = tuple(files), tuple(latent_files)
    return columns


def _one(finder: _Finder, name: str, hint: Hint, known: tuple[Any, ...], out: Collector) -> tuple[str, str]:
    """Collect one entry; where its picture and its cache lie."""
    if name.startswith("/") or ".." in name.split("/"):
        out.picture(finder.pictures.picture(name))  # which says that it leads out of the folder
        return f"{finder.pictures.root}/{name}", ""
    cache = finder.cache(name, hint[0])
    there = finder.picture(name)
    file = f"{finder.pictures.root}/{there[0]}" if there else ""
    wrong = ""
    if cache is not None and finder.caches is not None:
        location = f"{finder.caches.root}/{cache[0]}"
        if cache[2] != UNSTAMPED and cache[2] == known[0]:
            out.picture(Picture(0, b"", 0, 0, UNSTAMPED), SAME)
            return file, location
        found = _of_cache(location, cache, hint, there[1] if there else 0)
        if found.fault == NONE or there is None:
            out.picture(found)
            return file, location
        wrong = found.detail
    if there is None:
        out.picture(Picture(0, b"", 0, 0, UNSTAMPED, ABSENT, "neither a picture nor a cache is there"))
    else:
        out.picture(*_of_picture(finder, there[0], wrong, known))
    return file, ""


def _of_picture(finder: _Finder, name: str, wrong: str, known: tuple[Any, ...]) -> tuple[Picture, int]:
    """The picture itself, and whether it is as it was known; `wrong` tells why its cache does not count."""
    fault = BAD_CACHE if wrong else NONE
    if finder.pictures.unchanged(name, known[0]) and known[6] == fault and known[2].strip(b"\0"):
        return Picture(0, b"", 0, 0, UNSTAMPED), SAME
    found = finder.pictures.picture(name)
    return (found._replace(fault=fault, detail=wrong) if wrong and found.fault == NONE else found), READ


def _of_cache(location: str, cache: tuple[str, Size | None, bytes], hint: Hint, size: int) -> Picture:
    """A picture that only its latents tell of, the surest word first."""
    _, named, stamp = cache
    if reach.is_url(location):
        try:
            told = hint[0] or named or original_size(location) or hint[1]
        except npz.Broken as error:
            return Picture(size, b"", 0, 0, stamp, BROKEN, f"its cache: {error}")
        if told is None:
            return Picture(size, b"", 0, 0, stamp, BROKEN, "neither metadata nor cache tells its size")
        return Picture(size, b"", *told, stamp)
    try:
        seen = kohya.look(Path(location))
    except DataError as error:
        return Picture(size, b"", 0, 0, stamp, BROKEN, f"its cache: {error.__cause__}")
    if named and cache[0].endswith("_sdxl.npz") and named != seen.original:
        why = f"its cache is of a picture of {_sides(seen.original)}, its name says {_sides(named)}"
        return Picture(size, b"", 0, 0, stamp, BROKEN, why)
    return Picture(size, seen.identity, *(hint[0] or named or seen.original), stamp)


def _sides(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def original_size(location: str) -> Size | None:
    """What a cache behind a URL says of its picture's size; None if it is older than that."""
    client, path = reach.client(location), reach.path_of(location)
    size = reach.tried(location, lambda: client.size(path))
    return _told(npz.Archive(lambda at, n: reach.tried(location, lambda: client.cat_file(path, at, at + n)), size))


def _told(archive: npz.Archive) -> Size | None:
    if "original_size" not in archive.members:
        return None
    if archive.members["original_size"].size > _LARGEST_MEMBER:
        raise npz.Broken("its original_size is too long")
    values = archive.array("original_size").reshape(-1).tolist()
    if len(values) != 2 or not all(0 < value < 2**31 for value in values):
        raise npz.Broken("its original_size is not a width and a height")
    return int(values[0]), int(values[1])
