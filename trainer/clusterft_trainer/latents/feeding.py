"""From entries of a plan to what an encoder takes: pictures decoded by threads ahead of it, or captions.

Owns the threads and how far they go ahead. Refuses nothing: a picture that yields no pixels becomes a problem with
a name, and its place in the batch is given to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from clusterft_trainer.buckets import Bucket
from clusterft_trainer.corpus.index import Index
from clusterft_trainer.latents import pixels
from clusterft_trainer.latents.plan import Plan, Task

_AHEAD = 2  # batches, at least
_MOST_AHEAD = 512 << 20  # bytes of decoded pictures, at most; but two batches


@dataclass(frozen=True, slots=True)
class Problem:
    """An entry that cannot be made."""

    key: bytes
    name: str  # as the index calls the picture
    file: str
    kind: pixels.Kind
    why: str


@dataclass(frozen=True, slots=True)
class Ready:
    """A batch that can be encoded."""

    inputs: Any  # (B, 3, H, W) uint8, or B captions
    entries: Sequence[int]  # of the plan, B of them
    problems: Sequence[Problem]


class Batch(Protocol):
    """A batch on its way."""

    def arrived(self, seconds: float) -> bool:
        """Whether all of it is there, after so long at most."""

    def take(self) -> Ready:
        """All of it."""


class Feeder(Protocol):
    """Where an encoder's inputs come from."""

    def begin(self, plan: Plan, task: Task, first: int, end: int) -> Batch:
        """Start to make ready these entries."""

    def ahead(self, bucket: Bucket, batch: int) -> int:
        """How many batches should be on their way."""

    def close(self) -> None:
        """Stop at once."""


class Captions:
    """Texts as they are given to the tokenizers."""

    def __init__(self, index: Index, settle: Callable[[str], str]) -> None:
        self._index = index
        self._settle = settle

    def begin(self, plan: Plan, task: Task, first: int, end: int) -> _Texts:
        """Nothing to wait for."""
        return _Texts([self._settle(self._index.caption(int(row))) for row in plan.rows[first:end]], first)

    def ahead(self, bucket: Bucket, batch: int) -> int:
        """One is made while another is encoded."""
        return _AHEAD

    def close(self) -> None:
        """Nothing is under way."""


@dataclass(frozen=True, slots=True)
class _Texts:
    texts: list[str]
    first: int

    def arrived(self, seconds: float) -> bool:
        return True

    def take(self) -> Ready:
        return Ready(self.texts, range(self.first, self.first + len(self.texts)), [])


class Pictures:
    """Decoded, resized and cropped by threads: Pillow releases the interpreter lock."""

    def __init__(self, index: Index, threads: int) -> None:
        self._index = index
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def begin(self, plan: Plan, task: Task, first: int, end: int) -> _Decoding:
        """Hand the pictures to the threads."""
        bucket = task.bucket
        room: np.ndarray = np.empty((end - first, 3, bucket.height, bucket.width), np.uint8)
        work = [
            self._pool.submit(self._decode, plan, entry, bucket, room[entry - first])
            for entry in range(first, end)
        ]
        return _Decoding(first, room, work)

    def _decode(self, plan: Plan, entry: int, bucket: Bucket, out: np.ndarray) -> Problem | None:
        row = self._index.row(int(plan.rows[entry]))
        try:
            np.copyto(out, pixels.load(row, plan.fit(entry), bucket).transpose(2, 0, 1))
        except pixels.Unusable as error:
            return Problem(plan.keys[entry].tobytes(), row.name, row.file, error.kind, str(error))
        return None

    def ahead(self, bucket: Bucket, batch: int) -> int:
        """Enough for all threads, as far as memory goes."""
        busy = 2 * -(-2 * self._threads // batch)
        room = _MOST_AHEAD // (3 * bucket.width * bucket.height * batch)
        return max(_AHEAD, min(busy, room))

    def close(self) -> None:
        """What has not begun never will."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Decoding:
    first: int
    room: np.ndarray
    work: Sequence[Future[Problem | None]]

    def arrived(self, seconds: float) -> bool:
        return not wait(self.work, seconds).not_done

    def take(self) -> Ready:
        found = [future.result() for future in self.work]
        kept = [k for k, problem in enumerate(found) if problem is None]
        whole = len(kept) == len(found)
        entries = range(self.first, self.first + len(found)) if whole else [self.first + k for k in kept]
        return Ready(self.room if whole else self.room[kept], entries, [p for p in found if p is not None])
