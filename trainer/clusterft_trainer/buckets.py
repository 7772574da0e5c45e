"""Aspect buckets, and which pictures make up which optimizer step. Pure and torch-free.

The bucket rules are those of kohya's trainer, so a data set sorts here as it does there. Its limits
(smallest side 256, largest 1024, step 64) are meant for resolution 1024; at another resolution the
limits scale along: smallest = resolution / 4 rounded down to the step, largest = resolution. Below
resolution 512 the step is 32, its smallest value there, or next to nothing but squares would remain.

An epoch is a pure function of (seed, epoch, global batch size): the number of ranks only decides
who computes which part of a batch. Where the size changes within an epoch, what is left of it is
cut anew: no picture is seen twice or missed. All samples of a step lie in one bucket. A bucket's last batch
may be short; it is padded with samples of its own at weight zero, so no picture is dropped,
repeated or counted twice, and all ranks see the same shapes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from clusterft_trainer.errors import DataError


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """A training size in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Fit:
    """How a picture becomes bucket-sized: resize to cover, then cut the middle out."""

    resized_width: int
    resized_height: int
    left: int
    top: int


@dataclass(frozen=True, slots=True)
class Slot:
    """One place in a micro-batch: a picture, and whether it counts (1) or pads (0)."""

    index: int
    weight: int


@dataclass(frozen=True, slots=True)
class Shape:
    """How a global batch is cut: samples per slot, micro-batches per step, ranks."""

    per_slot: int
    accumulate: int
    world: int

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step."""
        return self.per_slot * self.accumulate * self.world


def sizes(resolution: int) -> tuple[Bucket, ...]:
    """The buckets for a resolution, with kohya's limits scaled as the module text says."""
    step = 64 if resolution >= 512 else 32
    smallest = max(step, resolution // 4 // step * step)
    return sizes_between(resolution, smallest, resolution, step)


def sizes_between(resolution: int, smallest: int, largest: int, step: int) -> tuple[Bucket, ...]:
    """Kohya's table: for each side the longest other side that keeps the area, both orientations."""
    area = resolution * resolution
    square = math.isqrt(area) // step * step
    found = {Bucket(square, square)}
    for width in range(smallest, largest + 1, step):
        height = min(largest, area // width // step * step)
        if height >= smallest:
            found |= {Bucket(width, height), Bucket(height, width)}
    return tuple(sorted(found))


def assign(width: int, height: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket of a picture: its own size if there is one, else the nearest aspect ratio."""
    own = Bucket(width, height)
    if own in buckets:
        return own
    # min() keeps the first of equals, as kohya's argmin does
    return min(buckets, key=lambda b: abs(b.width / b.height - width / height))


def fit(width: int, height: int, bucket: Bucket) -> Fit:
    """Scale until the bucket is covered, cut the overhang equally on both sides."""
    wider = width / height > bucket.width / bucket.height
    scale = bucket.height / height if wider else bucket.width / width
    new_width = max(bucket.width, int(width * scale + 0.5))
    new_height = max(bucket.height, int(height * scale + 0.5))
    left, top = (new_width - bucket.width) // 2, (new_height - bucket.height) // 2
    return Fit(new_width, new_height, left, top)


Numbers: TypeAlias = np.ndarray  # of buckets, by sample
Ids: TypeAlias = np.ndarray  # of samples, int32
_MOST_SAMPLES = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the order of training: the batch that comes next.

    An epoch that was begun with other batch sizes remembers them: what they took is a function of
    (seed, epoch, sizes), so the rest can be told without a list of samples.
    """

    epoch: int = 0
    batch: int = 0  # batches of the present size that this epoch has had
    earlier: tuple[tuple[int, int], ...] = ()  # (global batch, batches) of this epoch before that


class Batches:
    """The global batches of one epoch, in order; a batch becomes a tuple only when it is asked for."""

    def __init__(self, order: Ids, ends: Ids, starts: Ids, size: int) -> None:
        self._order = order  # sample ids, bucket after bucket
        self._ends = ends  # where each bucket ends in there
        self._starts = starts  # where each batch begins in there
        self._size = size

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> tuple[int, ...]:
        start = int(self._starts[number])
        end = int(self._ends[np.searchsorted(self._ends, start, side="right")])
        return tuple(self._order[start : min(start + self._size, end)].tolist())

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (self[number] for number in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Batches):
            return NotImplemented
        mine, theirs = (self._order, self._ends, self._starts), (other._order, other._ends, other._starts)
        return self._size == other._size and all(map(np.array_equal, mine, theirs))

    __hash__ = None  # type: ignore[assignment]

    def count(self, first: int) -> int:
        """Samples from batch number `first` on."""
        starts = self._starts[first:]
        ends = self._ends[np.searchsorted(self._ends, starts, side="right")]
        return int(np.minimum(ends - starts, self._size).sum())

    def samples(self, count: int) -> Ids:
        """The ids in the first `count` batches."""
        starts = np.sort(self._starts[:count])
        ends = self._ends[np.searchsorted(self._ends, starts, side="right")]
        taken: np.ndarray = np.zeros(len(self._order), bool)
        for offset in range(self._size):
            places = starts + offset
            taken[places[places < ends]] = True
        return self._order[taken]


class Epochs:
    """The order of training: epoch and batch number to sample indices.

    Holds a bucket number for each sample and the order of the epoch at hand: 6 bytes a sample, and 4 more while
    the next epoch is begun ahead.
    """

    def __init__(self, assigned: Sequence[Bucket] | Numbers, seed: int, shape: Shape) -> None:
        self._numbers = assigned if isinstance(assigned, np.ndarray) else numbered(assigned)
        self._seed = seed
        self.size = shape.global_batch
        # the epoch at hand and the next, which loading ahead begins early
        self._known: dict[tuple[int, tuple[tuple[int, int], ...]], Batches] = {}
        self.samples = len(self._numbers)
        if self.samples < self.size:
            raise DataError(
                f"{self.samples} pictures are fewer than the {self.size} of one optimizer step "
                f"({shape.world} slots x {shape.per_slot} samples x {shape.accumulate} "
                "accumulated).",
                "Add pictures, or lower batch.per_slot or batch.accumulate.",
            )
        if self.samples > _MOST_SAMPLES:
            raise DataError(
                f"{self.samples} samples of an epoch are more than {_MOST_SAMPLES}.",
                "Lower repeats in data.sources, or train on fewer pictures.",
            )
        self._counts = np.bincount(self._numbers)

    @property
    def batches(self) -> int:
        """Optimizer steps in one whole epoch; every epoch has the same number."""
        return int((-(-self._counts // self.size)).sum())

    @property
    def padding(self) -> float:
        """Share of the computed samples that only fill short batches."""
        return 1 - self.samples / (self.batches * self.size)

    def batch_list(self, epoch: int, earlier: tuple[tuple[int, int], ...] = ()) -> Batches:
        """The global batches of an epoch, in order, without what earlier sizes have taken.

        Each index of the epoch occurs exactly once, over all sizes together.
        """
        known = self._known.get((epoch, earlier))
        if known is not None:
            return known
        gone: np.ndarray = np.zeros(self.samples if earlier else 0, bool)
        for number, (size, count) in enumerate(earlier):
            gone[self._cut(gone, epoch, size, number).samples(count)] = True
        batches = self._cut(gone, epoch, self.size, len(earlier))
        for stale in list(self._known)[:-1]:
            del self._known[stale]
        self._known[epoch, earlier] = batches
        return batches

    def _cut(self, gone: np.ndarray, epoch: int, size: int, number: int) -> Batches:
        """Batches of one size from what is left; `number` counts the sizes that the epoch has had."""
        text = f"epoch:{self._seed}:{epoch}" + (f":{number}" if number else "")
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        left = self.samples - int(gone.sum())
        order: Ids = np.empty(left, np.int32)
        ends: list[int] = []
        starts: list[Ids] = []
        at = 0
        for bucket in np.flatnonzero(self._counts):
            members = self._numbers == bucket
            if gone.size:
                members &= ~gone
            here = shuffled(np.flatnonzero(members), int.from_bytes(digest[:8]))
            order[at : at + len(here)] = here
            if len(here):
                starts.append(np.arange(at, at + len(here), size, dtype=np.int32))
                at += len(here)
                ends.append(at)
        every = np.concatenate(starts) if starts else np.empty(0, np.int32)
        mixed = every[shuffled(np.arange(len(every)), int.from_bytes(digest[8:]))]
        return Batches(order, np.array(ends, np.int32), mixed, size)

    def batch(self, position: Position) -> tuple[int, ...]:
        """The samples of one step."""
        return self.batch_list(position.epoch, position.earlier)[position.batch]

    def walk(self, start: Position) -> Iterator[tuple[Position, tuple[int, ...]]]:
        """Batches from a position on, epoch after epoch, without end."""
        at = start
        while True:
            batches = self.batch_list(at.epoch, at.earlier)
            for number in range(at.batch, len(batches)):
                yield Position(at.epoch, number, at.earlier), batches[number]
            at = Position(at.epoch + 1)

    def after(self, position: Position) -> Position:
        """The position that follows."""
        if position.batch + 1 < len(self.batch_list(position.epoch, position.earlier)):
            return Position(position.epoch, position.batch + 1, position.earlier)
        return Position(position.epoch + 1)

    def left(self, position: Position, epochs: int) -> int:
        """Optimizer steps from a position to the end of that many epochs."""
        if position.epoch >= epochs:
            return 0
        rest = len(self.batch_list(position.epoch, position.earlier)) - position.batch
        return rest + (epochs - position.epoch - 1) * self.batches

    def sample(self, position: Position) -> int:
        """How many samples of its epoch lie behind a position."""
        return self.samples - self.batch_list(position.epoch, position.earlier).count(position.batch)

    def moved(self, position: Position, size: int) -> Position:
        """The same place for this run's batch size, where it was reached with batches of `size`."""
        if size == self.size:
            return position
        if position.batch == 0:
            return position
        return Position(position.epoch, 0, (*position.earlier, (size, position.batch)))


def numbered(assigned: Sequence[Bucket]) -> Numbers:
    """Each bucket's place among the sorted ones."""
    place = {bucket: number for number, bucket in enumerate(sorted(set(assigned)))}
    return np.array([place[bucket] for bucket in assigned], np.int16)


def shuffled(ids: np.ndarray, key: int) -> Ids:
    """The ids in an order that follows from the key alone, on every machine and with every version of numpy.

    Sorted by splitmix64 of key and id. The lowest bits give way to the id itself, so that no two are equal and
    one array is all there is to sort.
    """
    if not len(ids):
        return np.empty(0, np.int32)
    bits = np.uint64((1 << int(ids.max()).bit_length()) - 1)
    mixed = mix(ids, key)
    mixed &= ~bits
    mixed |= ids.view(np.uint64)
    mixed.sort()
    mixed &= bits
    return mixed.astype(np.int32)


def mix(ids: np.ndarray, key: int) -> np.ndarray:
    """The numbers that the generator splitmix64, begun with `key`, draws at these places."""
    z: np.ndarray = ids.astype(np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64((key + 0x9E3779B97F4A7C15) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    return z


def share(batch: Sequence[int], shape: Shape, rank: int) -> list[list[Slot]]:
    """A rank's micro-batches of a global batch; neighbours go to different ranks, so that a short
    batch is spread over all of them."""
    micro = []
    for number in range(shape.accumulate):
        places = [(number * shape.per_slot + k) * shape.world + rank for k in range(shape.per_slot)]
        micro.append([Slot(batch[p % len(batch)], int(p < len(batch))) for p in places])
    return micro
