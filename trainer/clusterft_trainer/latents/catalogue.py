"""Where each entry of a cache lies: one sorted table over all shards of a folder, looked up for millions at once.

Owns `catalogue.table`, which is made again whenever the set of shards has changed, by whoever notices; several may
do so at once, since the same shards give the same bytes. A worker maps it, holds a few numbers for each shard, and
reads entries with range reads: its memory grows with none of them. Refuses shards of another recipe and damaged
ones; an entry that several shards hold is read from the first.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xxhash

from clusterft_trainer.errors import DataError, storing
from clusterft_trainer.latents import shard, tables
from clusterft_trainer.latents.shard import Form, Handle, Shard

NAME = "catalogue.table"
SUSPECTS = "suspects"  # folder with an empty file for each shard in which a damaged entry was read
_SCHEMA = "1"
_SLOT_BITS = 20  # a position is the shard's number and the slot in it
OPEN = 256  # files that a worker keeps open; far below the usual limit of 1024
_TRIES = 20  # others may add shards, or replace the table, in the meantime
_PER_STEP = 1 << 18  # keys that are looked up together, so that temporary arrays stay small


class Catalogue:
    """The entries of one folder, as they were when it was opened. Safe for threads and for forked workers."""

    def __init__(self, folder: Path, table: tables.Mapped) -> None:
        self.folder = folder
        self._table = table
        self._names: list[str] = json.loads(table.metadata["shards"])
        self._shards: dict[int, Shard] = {}
        self._handles: OrderedDict[int, Handle] = OrderedDict()
        self._lock = threading.Lock()
        self._recipe = table.metadata["recipe"]

    @classmethod
    def open(cls, folder: Path, recipe: str | None = None) -> Catalogue:
        """Map the table, after making it if the set of shards is another one; `recipe` as JSON, if it matters."""
        path = folder / NAME
        for _ in range(_TRIES):
            names = shard_names(folder)
            table = _current(path, _state(names))
            if table is not None:
                break
            with storing("The catalogue", path):
                _make(path, folder, names)
        else:
            raise DataError(
                f"The shards in {folder} change faster than a catalogue of them is made.",
                "Wait until prep has ended, or see what else writes there.",
            )
        found = cls(folder, table)
        if recipe is not None and len(found) and found.recipe != recipe:
            raise DataError(
                f"The cache {folder} was made by another recipe: {found.recipe}; expected {recipe}.",
                "Give each model and setting its own folder, or remove this one and run prep again.",
            )
        return found

    def __len__(self) -> int:
        return int(self._table.header.entry("places", "I64").shape[0])

    @property
    def recipe(self) -> str:
        """Of all shards, as JSON; empty where there are none."""
        return self._recipe

    @property
    def shards(self) -> Sequence[str]:
        """Names of the files, in the order of their numbers."""
        return self._names

    def locate(self, keys: np.ndarray) -> np.ndarray:
        """(n,) int64 positions of keys (n, 16) uint8; -1 where there is no such entry."""
        high, low, places = (
            self._table.array(n, k) for n, k in (("high", "U64"), ("low", "U64"), ("places", "I64"))
        )
        found: np.ndarray = np.full(len(keys), -1, np.int64)
        for first in range(0, len(keys), _PER_STEP):
            asked_high, asked_low = split(keys[first : first + _PER_STEP])
            order = np.argsort(asked_high)  # in order, neighbours find their pages warm
            asked_high, asked_low = asked_high[order], asked_low[order]
            at: np.ndarray = np.asarray(np.searchsorted(high, asked_high))
            part: np.ndarray = np.full(len(order), -1, np.int64)
            open_ = np.arange(len(order))
            while len(open_):
                there = at[open_] < len(high)
                open_ = open_[there]
                open_ = open_[high[at[open_]] == asked_high[open_]]
                same = low[at[open_]] == asked_low[open_]
                part[open_[same]] = places[at[open_[same]]]
                open_ = open_[~same]  # two keys may share their first half
                at[open_] += 1
            found[first + order] = part
        self._table.forget()
        return found

    def read(self, position: int, *, check: bool = False, as_stored: bool = False) -> np.ndarray:
        """The first array of an entry, for latents (4, h, w) or (2, 4, h, w); float32 unless wanted as stored."""
        return next(iter(self.arrays(position, check=check, as_stored=as_stored).values()))

    def arrays(self, position: int, *, check: bool = False, as_stored: bool = False) -> dict[str, np.ndarray]:
        """All arrays of an entry by name; `check` compares them with their checksum."""
        found, handle, slot = self._at(position)
        with self._telling(position):
            return shard.values(found.form, found.raw(handle, slot, check=check), as_stored=as_stored)

    def into(self, position: int, out: np.ndarray, *, check: bool = False) -> None:
        """Fill `out`, which has an entry's bytes, straight from the file; what is in there is as stored."""
        found, handle, slot = self._at(position)
        with self._telling(position):
            found.into(handle, slot, out, check=check)

    @contextmanager
    def _telling(self, position: int) -> Iterator[None]:
        """Note a shard that is found damaged, for the next prep."""
        try:
            yield
        except tables.Damaged:
            path, _ = self.file(position)
            with contextlib.suppress(OSError):  # the damage itself is what has to be told
                (self.folder / SUSPECTS).mkdir(exist_ok=True)
                (self.folder / SUSPECTS / path.name).touch()
            raise

    def form(self, position: int) -> Form:
        """What kind of entry lies there."""
        return self._at(position)[0].form

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        """Which shards hold these entries, as places in `shards`."""
        return positions >> _SLOT_BITS

    def file(self, position: int) -> tuple[Path, int]:
        """Which shard holds it, and in which slot."""
        number, slot = _unpacked(position, len(self._names))
        return self.folder / self._names[number], slot

    def _at(self, position: int) -> tuple[Shard, Handle, int]:
        number, slot = _unpacked(position, len(self._names))
        with self._lock:
            handle = self._handles.get(number)
            if handle is not None:
                self._handles.move_to_end(number)
                return self._shards[number], handle, slot
        path = self.folder / self._names[number]
        try:
            handle = Handle(path)
        except OSError as error:
            raise DataError(
                f"{path} cannot be read ({error.strerror}).",
                "Another program changed the cache; run prep again, which makes what is missing.",
            ) from error
        known = self._shards.get(number)
        if known is None:
            with self._telling(position):
                known = Shard(path, handle).expect(self._recipe)
        with self._lock:
            self._shards[number] = known
            self._handles[number] = handle
            if len(self._handles) > OPEN:
                self._handles.popitem(last=False)
        return known, handle, slot


def shard_names(folder: Path) -> list[str]:
    """The shards in a folder, sorted; drafts are none."""
    try:
        return sorted(n for n in os.listdir(folder) if n.endswith(shard.SUFFIX) and not n.startswith("."))
    except FileNotFoundError:
        return []


def split(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys (n, 16) uint8 as two numbers each, whose order is that of the bytes."""
    halves = np.ascontiguousarray(keys, np.uint8).view(">u8").astype(np.uint64)
    return halves[:, 0], halves[:, 1]


def _unpacked(position: int, count: int) -> tuple[int, int]:
    number, slot = int(position) >> _SLOT_BITS, int(position) & ((1 << _SLOT_BITS) - 1)
    if not 0 <= number < count:
        raise IndexError(f"no entry has position {position}")
    return number, slot


def _state(names: Sequence[str]) -> str:
    return xxhash.xxh3_128_hexdigest("\n".join((_SCHEMA, *names)).encode())


def _current(path: Path, wanted: str) -> tables.Mapped | None:
    """The table that is there, if it is whole and of these shards."""
    try:
        found = tables.Mapped(path)
    except (FileNotFoundError, DataError):
        return None  # made again at once, so nothing is lost
    return found if found.metadata.get("state") == wanted else None


def _make(path: Path, folder: Path, names: Sequence[str]) -> None:
    keys, places, recipe = [], [], ""
    for number, name in enumerate(names):
        found = Shard(folder / name).expect(recipe) if recipe else Shard(folder / name)
        recipe = found.form.recipe
        keys.append(found.tables()[2])
        places.append((np.int64(number) << _SLOT_BITS) + np.arange(found.count, dtype=np.int64))
    high, low = split(np.concatenate(keys) if keys else np.empty((0, 16), np.uint8))
    every = np.concatenate(places) if places else np.empty(0, np.int64)
    order = np.lexsort((every, low, high))
    high, low, every = high[order], low[order], every[order]
    first: np.ndarray = np.ones(len(order), bool)
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    parts = [
        tables.part("high", "U64", high[first]),
        tables.part("low", "U64", low[first]),
        tables.part("places", "I64", every[first]),
    ]
    tables.write(path, parts, metadata(recipe, names))


def metadata(recipe: str, names: Sequence[str]) -> dict[str, str]:
    """What a catalogue says of itself, all of it text."""
    return {
        "schema": _SCHEMA,
        "state": _state(names),  # XXH3-128 of the shards' names: another one means that it is made again
        "recipe": recipe,  # JSON, as in every shard
        "shards": json.dumps(list(names)),  # JSON: names of the files, whose numbers are in `places`
    }
