"""Which entries a corpus needs of the cache: from an index to keys, for latents and for text states. Pure.

Owns what identifies a plan: all that its tasks follow from, so that workers which see the same find each other's.
Refuses nothing; a picture of which there is only kohya's cache needs no entry.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from clusterft_trainer import placing
from clusterft_trainer.corpus.index import Index
from clusterft_trainer.latents import key
from clusterft_trainer.latents.key import KEY, Recipe, TextRecipe
from clusterft_trainer.latents.making import Order
from clusterft_trainer.latents.plan import Wanted
from clusterft_trainer.placing import Rules

_PIXELS = 64  # for one latent
_CHANNELS = 4
_NUMBER = {"float32": 4, "bfloat16": 2}  # bytes


def latents(index: Index, by: Rules, recipe: Recipe, folder: Path, *, npz: bool = False) -> Order:
    """Latents of all pictures; with `npz`, of those that have no cache of kohya's."""
    size = _CHANNELS * _NUMBER[recipe.dtype] * (2 if recipe.flip else 1) / _PIXELS
    pictures = hashes(index, npz=npz)

    def wanted() -> Wanted:
        placed = placing.place_all(index.sizes(), by)
        sides = np.array([(b.width, b.height) for b in placed.table], np.int32).reshape(-1, 2)
        sizes = sides[placed.numbers]
        return Wanted(key.entry_keys(pictures, sizes, placed.fits, recipe), sizes, placed.fits)

    identity = _identity(f"{recipe.to_json()}\n{by}", pictures, np.asarray(index.sizes()))
    return Order("latents", identity, folder, recipe.to_json(), size, wanted)


def texts(index: Index, settle: Callable[[str], str], recipe: TextRecipe, folder: Path, width: int) -> Order:
    """States of all captions; `settle` makes of one what the tokenizers get, `width` is the numbers it has."""

    def wanted() -> Wanted:
        found = [
            key.text_keys([settle(text) for text in batch.column("caption").to_pylist()], recipe)
            for batch in index.batches()
        ]
        keys = np.concatenate(found) if found else np.empty((0, KEY), np.uint8)
        return Wanted(keys, np.zeros((len(keys), 2), np.int32), np.zeros((len(keys), 4), np.int32))

    identity = _identity(f"{recipe.to_json()}\n{settle('|')}", _captions(index))
    return Order("text", identity, folder, recipe.to_json(), float(width * _NUMBER[recipe.dtype]), wanted)


def hashes(index: Index, *, npz: bool = False) -> np.ndarray:
    """(n, 16) uint8 of the pictures; zeros where there is none, or with `npz` where kohya has cached it."""
    found: np.ndarray = np.zeros((len(index), KEY), np.uint8)
    at = 0
    for batch in index.batches():
        column = batch.column("hash")
        count = len(column)
        stored = np.frombuffer(column.buffers()[1], np.uint8, count * KEY, column.offset * KEY).reshape(-1, KEY)
        there = column.is_valid().to_numpy(zero_copy_only=False)
        if npz:
            ends = np.frombuffer(
                batch.column("npz").buffers()[1], np.int32, count + 1, batch.column("npz").offset * 4
            )
            there = there & (np.diff(ends) == 0)
        found[at : at + count] = np.where(there[:, None], stored, 0)
        at += count
    return found


def _captions(index: Index) -> np.ndarray:
    """A number that follows from all captions in order."""
    state = xxhash.xxh3_128()
    for batch in index.batches():
        column = batch.column("caption")
        _, ends, data = column.buffers()
        numbers = np.frombuffer(ends, np.int32, len(column) + 1, column.offset * 4)
        state.update(np.diff(numbers))
        if data is not None:
            state.update(memoryview(data)[int(numbers[0]) : int(numbers[-1])])
    return np.frombuffer(state.digest(), np.uint8)


def _identity(told: str, *arrays: Any) -> str:
    state = xxhash.xxh3_64(told.encode())
    for array in arrays:
        state.update(np.ascontiguousarray(array))
    return state.hexdigest()
