"""Kohya's caches, one .npz file for each picture: their names, what is in them, and how to write them.

A file holds `latents` (4, h, w), not scaled, `original_size` [w, h], `crop_ltrb`, and may hold `latents_flipped`
and `alpha_mask`; text states are files of their own. Owns what these mean. Torch-free. Refuses latents of another
shape, and by default pooled text states: kohya multiplies them with the projection the wrong way round, so a model
would be trained on numbers that no other program gives it.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from clusterft_trainer import npz
from clusterft_trainer.errors import DataError, RunError, TrainerError
from clusterft_trainer.npz import Archive, Broken

SUFFIX = ".npz"
TEXT_SUFFIX = "_te_outputs.npz"
CHANNELS, FACTOR = 4, 8  # of SDXL's latents
_SIZED = re.compile(r"(.+)_(\d{4,5})x(\d{4,5})_sdxl\.npz", re.DOTALL)
_FLIPPED = "_flip.npz"  # of the oldest generation, beside the others
_LONGEST_SIDE = 1 << 17
_LONGEST_LATENTS = 1 << 12
_ROOM = 1 << 20  # bytes to begin with
_ALIGNED = 64
_TEMPLATES = 256  # layouts that are remembered: a cache has some for each bucket
_BAD = (Broken, OSError)
_STORAGE = (
    errno.EIO,
    errno.ESTALE,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
)
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe of that name must not hold anybody up


@dataclass(frozen=True, slots=True)
class Cached:
    """All that one latent cache holds."""

    latents: np.ndarray  # (4, h, w) float32
    original: tuple[int, int]  # the picture's width and height
    crop: tuple[float, float, float, float]  # left, top, right, bottom, as placing.letterbox has them
    flipped: np.ndarray | None = None  # like latents
    alpha: np.ndarray | None = None  # (H, W) float32, in pixels


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at a latent cache tells, without its latents."""

    original: tuple[int, int]
    crop: tuple[float, float, float, float]
    width: int  # of the bucket
    height: int
    flipped: bool
    identity: bytes  # 16 bytes that stand for the hash of a picture that is not there


@dataclass(frozen=True, slots=True)
class States:
    """One text cache."""

    one: np.ndarray  # (77 or 227, 768)
    two: np.ndarray  # (as many, 1280)
    pooled: np.ndarray  # (1280,)


class Name(NamedTuple):
    """What a file's name says."""

    stem: str
    size: tuple[int, int] | None  # of the picture; the older generation does not tell


def names(stem: str, size: tuple[int, int]) -> tuple[str, str]:
    """How a picture's cache may be called, the one that counts first."""
    return f"{stem}{SUFFIX}", f"{stem}_{size[0]:04d}x{size[1]:04d}_sdxl{SUFFIX}"


def parsed(name: str) -> Name | None:
    """Which picture a file belongs to; None for what is no latent cache."""
    sized = _SIZED.fullmatch(name)
    if sized:
        return Name(sized[1], (int(sized[2]), int(sized[3])))
    if not name.endswith(SUFFIX) or name.endswith((TEXT_SUFFIX, _FLIPPED)):
        return None
    return Name(name.removesuffix(SUFFIX), None)


def damaged(path: Path, why: object) -> TrainerError:
    """What every reader here says of a file that cannot be used; storage that fails is no fault of the file."""
    if isinstance(why, OSError) and why.errno in _STORAGE:
        return RunError("storage", f"{path} could not be read: {why.strerror}.", "Check that storage, then go on.")
    return DataError(
        f"{path} cannot be used as a cache of kohya's: {why}.",
        "Move it away, or have verify do that; where the picture is there, it is encoded again.",
    )


def look(path: Path) -> Seen:
    """What it is a cache of, from a few short reads."""
    try:
        handle = os.open(path, _OPEN)
        try:
            size = os.fstat(handle).st_size
            archive = Archive(lambda offset, length: os.pread(handle, length, offset), size)
            _refuse_oldest(archive)
            kind, shape = archive.described("latents")
            original, crop = archive.array("original_size"), archive.array("crop_ltrb")
        finally:
            os.close(handle)
        _refuse_shape(kind, shape)
        return Seen(
            _original(original),
            _crop(crop),
            shape[2] * FACTOR,
            shape[1] * FACTOR,
            "latents_flipped" in archive.members,
            _identity(path.name, archive.members),
        )
    except _BAD as error:
        raise damaged(path, error) from error


def read(path: Path, *, check: bool = True) -> Cached:
    """All of a cache; `check` compares what is read with the checksums in the file."""
    try:
        return _cached(_all(path), check)
    except _BAD as error:
        raise damaged(path, error) from error


def decode(path: Path, body: bytes) -> Cached:
    """The same of bytes that are in memory; `path` is for messages."""
    try:
        return _cached(body, check=True)
    except Broken as error:
        raise damaged(path, error) from error


def has_mirrored(path: Path) -> bool:
    """Whether an older kohya's file of the mirrored picture lies beside a cache."""
    return _beside(path).is_file()


def _beside(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(SUFFIX) + _FLIPPED)


def latents(path: Path, *, mirrored: bool = False, check: bool = True) -> np.ndarray:
    """The latents alone, (4, h, w) float32, read-only; of the mirrored picture if asked for."""
    try:
        archive = Archive.of(_all(path))
        name = "latents_flipped" if mirrored else "latents"
        if mirrored and name not in archive.members:
            if has_mirrored(path):
                return latents(_beside(path), check=check)
        return _planes(archive.array(name, check=check))
    except _BAD as error:
        raise damaged(path, error) from error


class Reader:
    """Reads many caches one after the other, in the memory of the one before: what it gave is then overwritten."""

    def __init__(self) -> None:
        self._room = memoryview(bytearray(_ROOM))
        self._templates: dict[int, npz.Template | None] = {}  # by length; None where files are too different

    def read(self, path: str) -> Cached:
        """All of a cache, its checksums compared."""
        try:
            handle = os.open(path, _OPEN)
            try:
                body = self._filled(handle, os.fstat(handle).st_size)
            finally:
                os.close(handle)
            return _from(self._archive(body), check=True)
        except _BAD as error:
            raise damaged(Path(path), error) from error

    def _filled(self, handle: int, size: int) -> memoryview:
        if size > npz.LARGEST_FILE:
            raise Broken(f"it has {size} bytes, where {npz.LARGEST_FILE} are the most")
        if size + _ALIGNED > len(self._room):
            self._room = memoryview(bytearray(2 * size))
        template = self._templates.get(size)
        # so that the numbers lie as the CPU wants them, which is three times as fast to look through
        start = -template.spans["latents"].numbers % _ALIGNED if template else 0
        body, at = self._room[start : start + size], 0
        while at < size:
            count = os.readv(handle, [body[at:]])
            if not count:
                raise Broken("it lost its tail while it was read")
            at += count
        return body

    def _archive(self, body: memoryview) -> Archive:
        size = len(body)
        template = self._templates.get(size)
        checksums = None if template is None else template.checksums(body)
        if template is not None and checksums is not None:
            return npz.Known(body, template, checksums)
        whole = bytes(body)
        archive = Archive.of(whole)
        if size not in self._templates and len(self._templates) < _TEMPLATES:
            try:
                found = npz.Template(whole)
                self._templates[size] = found if "latents" in found.spans else None
            except Broken:
                self._templates[size] = None  # it may be readable all the same
        return archive


def read_text(path: Path, *, pooled: bool = False) -> States:
    """Text states; their pooled ones are wrong in every file that kohya wrote (see above), so one must ask."""
    if not pooled:
        raise DataError(
            f"{path} holds pooled text states as kohya computes them, which is not as SDXL is used elsewhere.",
            "Leave that file; text states are made again by prep with data.cache.text: true.",
        )
    try:
        archive = Archive.of(_all(path))
        one, two, pool = (archive.array(name) for name in ("hidden_state1", "hidden_state2", "pool2"))
        if one.ndim != 2 or two.ndim != 2 or pool.ndim != 1 or len(one) != len(two):
            raise Broken(f"its states have shapes {one.shape}, {two.shape} and {pool.shape}")
        return States(*(part.astype(np.float32) for part in (one, two, pool)))
    except _BAD as error:
        raise damaged(path, error) from error


def encode(cached: Cached) -> bytes:
    """A file's bytes as kohya's trainer reads them; the same bytes for the same cache."""
    arrays: dict[str, np.ndarray] = {
        "latents": np.ascontiguousarray(cached.latents, "<f4"),
        "original_size": np.array(cached.original, "<i8"),
        "crop_ltrb": np.array(cached.crop, "<f8"),
    }
    if cached.flipped is not None:
        arrays["latents_flipped"] = np.ascontiguousarray(cached.flipped, "<f4")
    if cached.alpha is not None:
        arrays["alpha_mask"] = np.ascontiguousarray(cached.alpha, "<f4")
    return npz.encode(arrays)


def encode_text(states: States) -> bytes:
    """The same for text states."""
    named = {"hidden_state1": states.one, "hidden_state2": states.two, "pool2": states.pooled}
    return npz.encode({name: np.ascontiguousarray(values, "<f4") for name, values in named.items()})


def _cached(body: bytes, check: bool) -> Cached:
    return _from(Archive.of(body), check)


def _from(archive: Archive, check: bool) -> Cached:
    _refuse_oldest(archive)
    found = _planes(archive.array("latents", check=check))
    flipped = alpha = None
    if "latents_flipped" in archive.members:
        flipped = _planes(archive.array("latents_flipped", check=check))
        if flipped.shape != found.shape:
            raise Broken(f"its mirrored latents are {flipped.shape}, the others {found.shape}")
    if "alpha_mask" in archive.members:
        alpha = archive.array("alpha_mask", check=check)
        if alpha.ndim != 2:
            raise Broken(f"its alpha mask has shape {alpha.shape}")
    original = _original(archive.array("original_size", check=check))
    return Cached(found, original, _crop(archive.array("crop_ltrb", check=check)), flipped, alpha)


def _refuse_oldest(archive: Archive) -> None:
    if "arr_0" in archive.members:
        raise Broken("it is of the oldest kind, which holds no sizes")


def _planes(values: np.ndarray) -> np.ndarray:
    _refuse_shape(values.dtype, values.shape)
    return values if values.dtype == np.float32 else values.astype(np.float32)


def _refuse_shape(kind: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if (
        kind.kind != "f"
        or len(shape) != 3
        or shape[0] != CHANNELS
        or not 0 < shape[1] < _LONGEST_LATENTS
        or not 0 < shape[2] < _LONGEST_LATENTS
    ):
        raise Broken(f"its latents are {kind} of shape {shape}, not numbers of shape (4, h, w)")


def _original(values: np.ndarray) -> tuple[int, int]:
    sides = values.tolist()
    if values.shape != (2,) or not 1 <= sides[0] < _LONGEST_SIDE or not 1 <= sides[1] < _LONGEST_SIDE:
        raise Broken("its original_size is no width and height")
    width, height = int(sides[0]), int(sides[1])
    if [width, height] != sides:
        raise Broken("its original_size is no width and height")
    return width, height


def _crop(values: np.ndarray) -> tuple[float, float, float, float]:
    sides = values.tolist()
    if values.shape != (4,) or not math.isfinite(sum(sides)):
        raise Broken("its crop_ltrb is not four numbers")
    left, top, right, bottom = sides
    return float(left), float(top), float(right), float(bottom)


def _identity(name: str, members: Mapping[str, npz.Member]) -> bytes:
    """Of the picture's stem and of the checksums that the file has anyway: 3 TB need not be read for it."""
    known = parsed(name)
    told = [f"npz:{known.stem if known else name}"]
    told += [f"{member}:{one.crc}:{one.size}" for member, one in sorted(members.items())]
    return xxhash.xxh3_128_digest("\n".join(told).encode("utf-8", "surrogateescape"))


def _all(path: Path) -> bytes:
    handle = os.open(path, _OPEN)
    try:
        size = os.fstat(handle).st_size
        if size > npz.LARGEST_FILE:
            raise Broken(f"it has {size} bytes, where {npz.LARGEST_FILE} are the most")
        body = os.read(handle, size)
        while len(body) < size:  # a signal, or a file that shrinks
            more = os.read(handle, size - len(body))
            if not more:
                break
            body += more
        return body
    finally:
        os.close(handle)
