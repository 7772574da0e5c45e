"""From the index of the pictures to micro-batches that are ready for the step, ahead of it.

Owns which sample is which picture, what a sample's caption, mirror image and size numbers are in an epoch, and the
loading ahead by threads: what takes long (decoding, copying latents out of mapped files) releases the interpreter
lock, and nothing has to be copied from a process to another. Refuses to hide a picture that cannot be decoded, or
latents that do not match their checksum: the step that needs them fails with their name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from clusterft_trainer import buckets, captions, decoding, objective, placing
from clusterft_trainer.buckets import Bucket, Epochs, Fit, Position, Shape, Slot
from clusterft_trainer.config import Data
from clusterft_trainer.corpus.index import Index
from clusterft_trainer.placing import Rules
from clusterft_trainer.words import Words

_AHEAD = 2  # optimizer steps that are decoded before they are needed
_AHEAD_CACHED = 8  # and that are read: they are small
_WORKERS = 4
_ROWS = 1 << 18  # that are placed together
_CHANNELS, _FACTOR = 4, 8  # of SDXL's latents

Tokens = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's micro-batch. What is cached of it is here; what is neither cached nor known is here as pixels."""

    bucket: Bucket
    indices: list[int]  # of the samples, by which they draw noise
    keys: list[int]  # by which latents are remembered: samples of the same pixels have the same
    weights: torch.Tensor  # (B,) float32: 1 counts, 0 pads
    captions: list[str]
    time_ids: torch.Tensor  # (B, 6) float32
    pixels: torch.Tensor | None = None  # (K, 3, H, W) uint8
    places: tuple[int, ...] = ()  # of those K in the batch
    latents: torch.Tensor | None = None  # (B, 4, h, w) float32, not scaled; undefined at `places`
    tokens: Tokens | None = None  # (B, pieces, 77) int64 for each text encoder
    states: tuple[torch.Tensor, ...] | None = None  # of both text encoders, and pooled ones


@dataclass(frozen=True, slots=True)
class Work:
    """One rank's part of an optimizer step."""

    position: Position
    real: int  # samples that count, over all ranks
    micro: list[Batch]


class Latents(Protocol):
    """Where cached latents are read."""

    def read(self, row: int, mirrored: bool, out: np.ndarray) -> bool:
        """Copy a picture's latents into float32 of their shape, or tell that there are none."""


class Texts(Protocol):
    """Where cached text states are read."""

    def read(self, captions: list[str]) -> list[tuple[np.ndarray, ...]] | None:
        """States of both encoders and the pooled ones of each, float32; None if one of them has none."""


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to train, and rows to hold out; both in order."""

    kept: np.ndarray
    held: np.ndarray


class Pictures:
    """The pictures of a run: which sample is which, and what there is to know of it.

    Samples are numbered: first those that are trained, each picture as often as its source says, then those that
    are held out. What each worker has of its own is a bucket number for each row, and a row number for each sample
    where they differ.
    """

    def __init__(self, index: Index, data: Data, seed: int, split: Split | None = None) -> None:
        self.index = index
        self._data = data
        self._seed = seed
        self._flip = data.cache is not None and data.cache.flip
        self._sizes = np.asarray(index.sizes())  # the same pages; numpy's memmap is slow to index
        self._by = placing.rules(data.buckets, data.resolution)
        self.table, self._numbers = placed(self._sizes, self._by)
        self._rows = sample_rows(index, data, split)
        self.trained = len(self._rows) - (0 if split is None else len(split.held))
        self.latents: Latents | None = None
        self.texts: Texts | None = None
        self.words: tuple[Words, ...] = ()
        self.pinned = False  # into memory from which a GPU fetches by itself

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def assigned(self) -> np.ndarray:
        """The number of its bucket for each trained sample."""
        return self._numbers if isinstance(self._rows, range) else self._numbers[self._rows[: self.trained]]

    @property
    def used(self) -> list[Bucket]:
        """The buckets that pictures lie in."""
        return [self.table[number] for number in np.unique(self._numbers)]

    def row(self, sample: int) -> int:
        """Which row of the index a sample is."""
        return int(self._rows[sample])

    def name(self, sample: int) -> str:
        """What error messages call it."""
        return self.index.row(self.row(sample)).name

    def bucket(self, sample: int) -> Bucket:
        """Where a sample lies."""
        return self.table[self._numbers[self.row(sample)]]

    def usual_size(self) -> tuple[int, int]:
        """Width and height that most pictures have; of some million of them, where there are more."""
        sizes = self._sizes[:: 1 + len(self._sizes) // 2**21].astype(np.int64)
        packed, first, count = np.unique(sizes[:, 0] << 32 | sizes[:, 1], return_index=True, return_counts=True)
        most = int(packed[np.lexsort((first, -count))[0]])
        return most >> 32, most & 0xFFFFFFFF

    def batch(
        self,
        slots: list[Slot],
        epoch: int,
        known: Callable[[int], bool],
        *,
        plain: bool = False,
        step: int | None = None,
    ) -> Batch:
        """All of a micro-batch for an optimizer step; `known` tells of a key that its latents need not be made.

        `plain` leaves captions as they are and mirrors nothing. Safe to call from several threads.
        """
        indices = [s.index for s in slots]
        rows = [self.row(i) for i in indices]
        mirrored = [self._flip and not plain and self._coin(i, epoch) for i in indices]
        bucket = self.table[self._numbers[rows[0]]]
        fits = self._fits(rows, bucket)
        told = [self.index.caption(row) for row in rows]
        if not plain:
            told = [self._settled(caption, i, epoch, step) for caption, i in zip(told, indices, strict=True)]
        found, places = self._cached(rows, mirrored, bucket)
        keys = [2 * row + turned for row, turned in zip(rows, mirrored, strict=True)]
        pixels = None
        if not all(known(keys[p]) for p in places):
            pixels = self._decoded([(rows[p], fits[p], mirrored[p]) for p in places], bucket)
        ids = [self._time_ids(*one, bucket) for one in zip(rows, fits, mirrored, strict=True)]
        return Batch(
            bucket=bucket,
            indices=indices,
            keys=keys,
            weights=torch.tensor([float(s.weight) for s in slots]),
            captions=told,
            time_ids=torch.tensor(ids, dtype=torch.float32),
            pixels=pixels,
            places=places,
            latents=found,
            tokens=self._tokens(told),
            states=self._states(told),
        )

    def _coin(self, sample: int, epoch: int) -> bool:
        """Whether a sample is mirrored in an epoch."""
        return objective.key(self._seed, epoch, sample, "flip") % 2 == 1

    def _fits(self, rows: list[int], bucket: Bucket) -> list[Fit]:
        if self._by.upscale:
            return [buckets.fit(width, height, bucket) for width, height in self._sizes[rows].tolist()]
        return [Fit(*one) for one in placing.place_all(self._sizes[rows], self._by).fits.tolist()]

    def _time_ids(self, row: int, fit: Fit, mirrored: bool, bucket: Bucket) -> list[float]:
        width, height = self._sizes[row].tolist()
        if not mirrored:
            return objective.time_ids((width, height), fit, bucket, self._data.crop_ids)
        turned = replace(fit, left=fit.resized_width - bucket.width - fit.left)
        ids = objective.time_ids((width, height), turned, bucket, self._data.crop_ids)
        if self._data.crop_ids == "kohya":
            # its right edge, seen from the other side
            ids[3] = bucket.width - ids[3] - min(bucket.width, bucket.height * width / height)
        return ids

    def _settled(self, caption: str, sample: int, epoch: int, step: int | None) -> str:
        key = objective.key(self._seed, epoch, sample, "caption")
        return captions.settle(caption, self._data.captions, key, step=step)

    def _cached(
        self, rows: list[int], mirrored: list[bool], bucket: Bucket
    ) -> tuple[torch.Tensor | None, tuple[int, ...]]:
        """Latents out of the cache, and the places of those that it does not have."""
        everywhere = tuple(range(len(rows)))
        if self.latents is None:
            return None, everywhere
        found = self._room(
            (len(rows), _CHANNELS, bucket.height // _FACTOR, bucket.width // _FACTOR), torch.float32
        )
        out, read = found.numpy(), self.latents.read
        places = tuple(p for p in everywhere if not read(rows[p], mirrored[p], out[p]))
        return (None if places == everywhere else found), places

    def _decoded(self, wanted: list[tuple[int, Fit, bool]], bucket: Bucket) -> torch.Tensor:
        found = self._room((len(wanted), bucket.height, bucket.width, 3), torch.uint8)
        for out, (row, fit, mirrored) in zip(found.numpy(), wanted, strict=True):
            out[:] = decoding.pixels(self.index.row(row), fit, bucket, mirrored)
        return found.permute(0, 3, 1, 2)

    def _tokens(self, told: list[str]) -> Tokens | None:
        if not self.words:
            return None
        one, two = (self._kept(row) for each in self.words for row in each.ids(told))
        return one, two

    def _states(self, told: list[str]) -> tuple[torch.Tensor, ...] | None:
        """Cached text states, if all of these captions have them."""
        found = None if self.texts is None else self.texts.read(told)
        if found is None:
            return None
        return tuple(self._kept(np.stack(column)) for column in zip(*found, strict=True))

    def _kept(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self.pinned else tensor

    def _room(self, shape: tuple[int, ...], kind: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=kind, pin_memory=self.pinned)


def placed(sizes: np.ndarray, by: Rules) -> tuple[tuple[Bucket, ...], np.ndarray]:
    """All buckets, sorted, and the number of its bucket for each row, int16."""
    if by.upscale:
        return by.table, placing.assign_all(sizes, by.table)
    found: dict[Bucket, int] = {}
    numbers: np.ndarray = np.empty(len(sizes), np.int16)
    for start in range(0, len(sizes), _ROWS):
        part = placing.place_all(sizes[start : start + _ROWS], by)
        here: np.ndarray = np.array([found.setdefault(bucket, len(found)) for bucket in part.table])
        numbers[start : start + _ROWS] = here[part.numbers]
    table = sorted(found)
    place: np.ndarray = np.empty(len(table), np.int16)
    place[[found[bucket] for bucket in table]] = np.arange(len(table))
    return tuple(table), place[numbers]


def sample_rows(index: Index, data: Data, split: Split | None) -> range | np.ndarray:
    """The row of each sample: trained ones as often as their source says, then those held out."""
    repeats = [source.repeats for source in data.sources]
    if split is None and set(repeats) == {1}:
        return range(len(index))
    kept = np.arange(len(index), dtype=np.int32) if split is None else split.kept
    if set(repeats) != {1}:
        # rows are sorted by source
        ends: Any = np.searchsorted(kept, source_ends(index, len(repeats)))
        parts = zip(np.split(kept, ends[:-1]), repeats, strict=True)
        kept = np.concatenate([part for part, times in parts for _ in range(times)])
    return kept if split is None else np.concatenate([kept, split.held])


def source_ends(index: Index, sources: int) -> np.ndarray:
    """Where the rows of each source end."""
    counts: np.ndarray = np.zeros(sources, np.int64)
    for chunk in index.column("source").chunks:
        counts += np.bincount(chunk.to_numpy(), minlength=sources)
    return counts.cumsum()


def stream(
    pictures: Pictures,
    epochs: Epochs,
    shape: Shape,
    rank: int,
    known: Callable[[int], bool],
    workers: int = _WORKERS,
) -> Callable[[Position, int, int], Iterator[Work]]:
    """Work of one rank, made ready some steps ahead by threads, in order: from a position on, and for so many
    optimizer steps after so many."""
    ahead = _AHEAD if pictures.latents is None else _AHEAD_CACHED

    def make(position: Position, batch: tuple[int, ...], step: int) -> Work:
        shares = buckets.share(batch, shape, rank)
        micro = [pictures.batch(slots, position.epoch, known, step=step) for slots in shares]
        return Work(position, len(batch), micro)

    def walk(start: Position, count: int, done: int) -> Iterator[Work]:
        waiting: deque[Future[Work]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="load") as pool:
            try:
                for number, (position, batch) in enumerate(epochs.walk(start)):
                    if number < count:
                        waiting.append(pool.submit(make, position, batch, done + number))
                    if len(waiting) > ahead or number >= count:
                        if not waiting:
                            return
                        yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    return walk
