"""What is to be encoded, cut into tasks: the same for all workers, from the index and what the cache has already.

A task is a run of entries of one bucket; its name is a digest of their keys, so it is the name of the shard that
will come of it. Owns how tasks are cut, and the file in which one worker writes it down for all: it is mapped, and
costs a worker nothing. Pure but for that file. Refuses nothing: what cannot be encoded shows when it is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clusterft_trainer.buckets import Bucket, Fit
from clusterft_trainer.errors import storing
from clusterft_trainer.latents import shard, tables
from clusterft_trainer.latents.catalogue import split

_SHARES = 256  # tasks that there should be at least, so that many workers have something to do
_LEAST = 64  # entries of a task, so that files do not get too small


@dataclass(frozen=True, slots=True)
class Wanted:
    """Entries that somebody needs, one for each row of the index."""

    keys: np.ndarray  # (n, 16) uint8; zeros: none is needed
    sizes: np.ndarray  # (n, 2) of the bucket; zeros for text
    fits: np.ndarray  # (n, 4) as Fit has them; zeros for text


@dataclass(frozen=True, slots=True)
class Task:
    """Entries that become one shard."""

    name: str
    bucket: Bucket
    first: int  # in the plan
    end: int

    def __len__(self) -> int:
        return self.end - self.first


class Plan:
    """A plan that was written down."""

    def __init__(self, path: Path) -> None:
        table = tables.Mapped(path)
        self.metadata = table.metadata
        self.rows = table.array("rows", "I64")
        self.keys = table.array("keys", "U8")
        self.skipped = table.array("skipped", "U8")  # keys of pictures that were found broken before
        self._fits = table.array("fits", "I32")
        ends, sizes = table.array("ends", "I64").tolist(), table.array("sizes", "I32").tolist()
        starts = [0, *ends][: len(ends)]
        self.tasks: dict[str, Task] = {}
        for first, end, (width, height) in zip(starts, ends, sizes, strict=True):
            name = shard.name(width, height, self.keys[first:end])
            self.tasks[name] = Task(name, Bucket(width, height), first, end)

    def __len__(self) -> int:
        return len(self.rows)

    def fit(self, entry: int) -> Fit:
        """How a picture becomes as large as its bucket."""
        return Fit(*self._fits[entry].tolist())


def write(
    path: Path, wanted: Wanted, known: np.ndarray, hopeless: np.ndarray, size: float, damaged: int = 0
) -> None:
    """Cut what is wanted and neither known, (n,) bool, nor hopeless, some keys, into tasks.

    Of rows that need the same entry the first one counts. `size` is bytes for each pixel, or for a caption;
    `damaged` is how many shards were moved aside before, for whoever tells of it.
    """
    broken = among(wanted.keys, hopeless)
    rows = missing(wanted.keys, known | broken)
    sizes = wanted.sizes[rows]
    order = np.lexsort((rows, sizes[:, 1], sizes[:, 0]))
    rows, sizes = rows[order], sizes[order]
    ends = cut(sizes, size)
    parts = [
        tables.part("rows", "I64", rows),
        tables.part("ends", "I64", np.array(ends, np.int64)),
        tables.part("fits", "I32", wanted.fits[rows]),
        tables.part("sizes", "I32", sizes[np.array(ends, np.int64) - 1].reshape(-1, 2)),
        tables.part("keys", "U8", wanted.keys[rows]),
        tables.part("skipped", "U8", wanted.keys[broken & ~known]),
    ]
    needed = int(wanted.keys.any(axis=1).sum())
    told = {"schema": "1", "rows": str(len(known)), "needed": str(needed), "damaged": str(damaged)}
    with storing("The plan", path):
        tables.write(path, parts, told)


def among(keys: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Which of many keys are among some others."""
    if not len(some):
        return np.zeros(len(keys), bool)
    return np.isin(split(keys)[0], split(some)[0])


def missing(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Rows whose entries are to be made, each entry once, in order."""
    rows = np.flatnonzero(~known & keys.any(axis=1))
    if not len(rows):
        return rows
    high, low = split(keys[rows])
    order = np.lexsort((rows, low, high))
    high, low = high[order], low[order]
    first: np.ndarray = np.ones(len(order), bool)
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return np.sort(rows[order[first]])


def cut(sizes: np.ndarray, size: float) -> list[int]:
    """Where tasks end in entries that are sorted by their buckets."""
    if not len(sizes):
        return []
    most = max(_LEAST, min(shard.MOST_ENTRIES, len(sizes) // _SHARES))
    changes: np.ndarray = np.flatnonzero((sizes[1:] != sizes[:-1]).any(axis=1)) + 1
    ends: list[int] = []
    for first, end in zip([0, *changes.tolist()], [*changes.tolist(), len(sizes)], strict=True):
        width, height = sizes[first].tolist()
        room = max(1, int(shard.MOST_BYTES / (max(1, width * height) * size)))
        step = min(most, room)
        ends += [*range(first + step, end, step), end]
    return ends


def rotated(names: Sequence[str], owner: str) -> list[str]:
    """The tasks from another beginning for each worker, so that they seldom want the same one."""
    at = sum(owner.encode()) * 7919 % max(1, len(names))
    return [*names[at:], *names[:at]]
