"""Cached latents and text states on their way into batches, from shards or from kohya's .npz files.

Owns where each row's entry lies: 4 bytes a row, found once. An entry is compared with its checksum when it is
read for the first time. Refuses to train beside a cache that lacks more than a little: the error tells how many,
and the command that makes them. A cache of another VAE or of other settings lies in another folder, so its entries
are simply not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from clusterft_trainer import decoding, kohya, placing
from clusterft_trainer.corpus import reach
from clusterft_trainer.corpus.index import Index
from clusterft_trainer.errors import DataError
from clusterft_trainer.latents import plan, shard
from clusterft_trainer.latents.catalogue import Catalogue
from clusterft_trainer.latents.key import Recipe, TextRecipe, entry_keys, text_keys
from clusterft_trainer.placing import Rules

LITTLE = 0.01  # share of pictures that a run encodes by itself
_SLOT_BITS, _SLOTS = 20, 10  # of a slot in the catalogue's positions, and in ours
ABSENT, NPZ = -1, -2  # instead of a position
_SHOWN = 16  # of kohya's files that are looked at before training


class Feed:
    """The latents of an index's rows. Safe for threads."""

    def __init__(self, catalogue: Catalogue, positions: np.ndarray, index: Index) -> None:
        self._catalogue = catalogue
        self._positions = positions  # (n,) int32 as `located` gives them
        self._index = index
        self._checked: np.ndarray = np.zeros(len(positions), bool)

    def read(self, row: int, mirrored: bool, out: np.ndarray) -> bool:
        """Copy a row's latents into float32 of their shape, or tell that there are none."""
        packed = int(self._positions[row])
        if packed == ABSENT:
            return False
        if packed == NPZ:
            out[:] = self._kohyas(row, mirrored, out.shape)
            return True
        position = unpacked(packed)
        try:
            self._copy(position, mirrored, out, check=not self._checked[row])
        except OSError as error:
            path, slot = self._catalogue.file(position)
            raise DataError(
                f"Entry {slot} of {path} cannot be read ({error.strerror or error}).",
                "Check that this node reads the shared dir, then start again from the checkpoint.",
                everywhere=False,
            ) from error
        self._checked[row] = True
        return True

    def _copy(self, position: int, mirrored: bool, out: np.ndarray, *, check: bool) -> None:
        array = self._catalogue.form(position).arrays[0]
        if array.dtype == "F32" and array.shape == out.shape:
            self._catalogue.into(position, out, check=check)
            return
        stored = self._catalogue.read(position, check=check, as_stored=True)
        chosen = stored[int(mirrored)] if stored.ndim > out.ndim else stored
        out[:] = shard.from_bfloat16(chosen) if array.dtype == "BF16" else chosen

    def _kohyas(self, row: int, mirrored: bool, shape: tuple[int, ...]) -> np.ndarray:
        place = self._index.row(row).npz
        path = Path(place)
        if reach.is_url(place):
            whole = kohya.decode(path, decoding.fetched(place))
            found = whole.flipped if mirrored else whole.latents
            if found is None:
                raise kohya.damaged(path, "it has no mirrored latents")
        else:
            found = kohya.latents(path, mirrored=mirrored, check=not self._checked[row])
        if found.shape != shape:
            sizes = ((s[2] * kohya.FACTOR, s[1] * kohya.FACTOR) for s in (found.shape, shape))
            raise _other_bucket(path, *sizes)
        self._checked[row] = True
        return found


class Texts:
    """The text states of captions. Safe for threads."""

    def __init__(self, catalogue: Catalogue, recipe: TextRecipe) -> None:
        self._catalogue = catalogue
        self._recipe = recipe

    def read(self, captions: list[str]) -> list[tuple[np.ndarray, ...]] | None:
        """States of both encoders and the pooled ones of each caption, float32; None if one has none."""
        positions = self._catalogue.locate(text_keys(captions, self._recipe)).tolist()
        if min(positions) < 0:
            return None
        return [tuple(self._catalogue.arrays(position, check=True).values()) for position in positions]


def untold(texts: Catalogue, index: Index, settle: Callable[[str], str], recipe: TextRecipe) -> int:
    """How many pictures' captions have no states."""
    missing = 0
    for batch in index.batches():
        captions = [settle(caption) for caption in batch.column("caption").to_pylist()]
        missing += int((texts.locate(text_keys(captions, recipe)) < 0).sum())
    return missing


@dataclass(frozen=True, slots=True)
class Entries:
    """What the cache calls some neighbouring rows of an index, and from what that follows."""

    rows: slice
    keys: np.ndarray  # (k, 16) uint8; zeros where there is no picture
    npz: np.ndarray  # (k,) whether there is a file of kohya's
    sizes: np.ndarray  # (k, 2) of the bucket
    fits: np.ndarray  # (k, 4) as Fit has them


def entries(index: Index, by: Rules, recipe: Recipe) -> Iterator[Entries]:
    """All rows in order, some thousands at a time."""
    sizes, at = index.sizes(), 0
    for batch in index.batches():
        rows = slice(at, at + len(batch))
        placed = placing.place_all(sizes[rows], by)
        sides = np.array([(bucket.width, bucket.height) for bucket in placed.table])[placed.numbers]
        keys = entry_keys(hashes(batch.column("hash")), sides, placed.fits, recipe)
        yield Entries(rows, keys, pc.binary_length(batch.column("npz")).to_numpy() > 0, sides, placed.fits)
        at = rows.stop


def located(catalogue: Catalogue, index: Index, by: Rules, recipe: Recipe) -> np.ndarray:
    """Where the entry of each row lies, (n,) int32: its position packed, NPZ for a file of kohya's, or ABSENT."""
    found: np.ndarray = np.empty(len(index), np.int32)
    for part in entries(index, by, recipe):
        here = _packed(catalogue.locate(part.keys))
        found[part.rows] = np.where((here == ABSENT) & part.npz, NPZ, here)
    return found


def rows_among(keys: np.ndarray, index: Index, by: Rules, recipe: Recipe) -> np.ndarray:
    """Which rows, (n,) bool, have one of these keys."""
    found = [plan.among(part.keys, keys) for part in entries(index, by, recipe)]
    return np.concatenate(found) if found else np.zeros(0, bool)


def look_at_npz(positions: np.ndarray, index: Index, by: Rules, *, flip: bool) -> None:
    """Refuse kohya's files, going by a few of them, if they were made for other settings than these."""
    rows = np.flatnonzero(positions == NPZ)
    for number in rows[:: 1 + len(rows) // _SHOWN].tolist():
        row = index.row(number)
        if reach.is_url(row.npz):
            continue
        seen = kohya.look(Path(row.npz))
        bucket, _ = placing.place(row.width, row.height, by)
        if (seen.width, seen.height) != (bucket.width, bucket.height):
            raise _other_bucket(Path(row.npz), (seen.width, seen.height), (bucket.width, bucket.height))
        if flip and not (seen.flipped or kohya.has_mirrored(Path(row.npz))):
            raise DataError(
                f"{row.npz} holds no mirrored latents, which data.cache.flip asks for.",
                "Leave out data.cache.flip, or set data.cache.npz: false, and prep makes both from the pictures.",
            )


def _other_bucket(path: Path, theirs: tuple[int, int], ours: tuple[int, int]) -> DataError:
    return DataError(
        f"{path} holds latents of {theirs[0]}x{theirs[1]}, where data.buckets gives the picture "
        f"{ours[0]}x{ours[1]}.",
        "Set data.resolution and data.buckets (largest, step, upscale) to what kohya's trainer was told, or "
        "data.cache.npz: false.",
    )


def refuse_absent(missing: int, total: int, folder: str, what: str = "latents of this VAE") -> None:
    """Raise if more is missing than a run makes by itself."""
    if missing > LITTLE * total:
        raise DataError(
            f"{missing} of {total} pictures have no {what} and these settings in the cache {folder}.",
            "Make them: clusterft prep job.yaml. Or remove cache: from data, and each run encodes by itself.",
        )


def hashes(column: Any) -> np.ndarray:
    """(n, 16) uint8 of an Arrow column of 16 bytes each; zeros where there is none."""
    found = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, 16)[
        column.offset : column.offset + len(column)
    ]
    if not column.null_count:
        return found
    there = column.is_valid().to_numpy(zero_copy_only=False)
    return np.where(there[:, None], found, np.uint8(0))


def unpacked(packed: int) -> int:
    """The catalogue's position."""
    return (packed >> _SLOTS << _SLOT_BITS) | (packed & ((1 << _SLOTS) - 1))


def _packed(positions: np.ndarray) -> np.ndarray:
    """A catalogue's positions in 32 bits: shards hold a thousand entries at most."""
    slots = positions & ((1 << _SLOT_BITS) - 1)
    packed = (positions >> _SLOT_BITS << _SLOTS) | slots
    if len(packed) and ((slots >= 1 << _SLOTS) & (positions >= 0)).any() or packed.max(initial=0) >= 1 << 31:
        raise ValueError("a cache with more shards, or larger ones, than prep makes")
    return np.where(positions < 0, ABSENT, packed)
