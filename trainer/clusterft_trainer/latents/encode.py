"""One worker's share in carrying out a plan: claim, decode, encode and write, all at the same time.

While a batch is encoded, threads decode the next ones, another writes the shard before, and one claims the task
that follows, so that the encoder never waits. Owns that overlap. An entry that cannot be made is told with its
name and leaves a gap, never more. Refuses numbers that are not finite, and to go on without room on the disk.
What is encoded with is handed in: this module knows no torch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from clusterft_trainer.buckets import Bucket
from clusterft_trainer.errors import RunError, storing
from clusterft_trainer.latents.feeding import Batch, Feeder, Ready
from clusterft_trainer.latents.leases import DONE, Lease
from clusterft_trainer.latents.plan import Plan, rotated
from clusterft_trainer.latents.shard import Form
from clusterft_trainer.latents.writing import Site, Tally, Under, Writer

_POLL = 1.0  # seconds between looks for a task where all are taken
_SHARE = 20  # and at least so many times as long as such a look takes: directories with many names are slow
_BRIEFLY = 0.05
_BLIND = 8  # pictures in a row that cannot be read before this node is to blame


class Encoder(Protocol):
    """What makes entries of inputs."""

    def form(self, bucket: Bucket) -> Form:
        """What entries of a bucket consist of."""

    def batch(self, bucket: Bucket) -> int:
        """How many are encoded together."""

    def encode(self, bucket: Bucket, inputs: Any, keys: Sequence[bytes]) -> list[np.ndarray]:
        """For each array of the form, float32 with B in front; no entry may depend on the others' company."""


@dataclass(slots=True)
class _Next:
    """A batch that was begun."""

    under: Under
    batch: Batch
    last: bool


@dataclass(slots=True)
class _Feeding:
    """The task whose batches are being begun."""

    under: Under
    at: int = field(default=0)


class Share:
    """What one worker does for a plan."""

    def __init__(self, plan: Plan, site: Site, encoder: Encoder, feeder: Feeder, stop: threading.Event) -> None:
        self._plan = plan
        self._site = site
        self._encoder = encoder
        self._feeder = feeder
        self._stop = stop
        self.tally = Tally()
        self._writer = Writer(site, self.tally, stop)
        self._order = rotated(list(plan.tasks), site.leases.owner)
        self._waiting: deque[_Next] = deque()
        self._feeding: _Feeding | None = None
        self._claims = ThreadPoolExecutor(1, "claim")
        self._claiming: Future[Lease | None] | None = None
        self._again = 0.0  # when to look for a task once more
        self._looked = 0.0  # seconds that the last look took
        self._left = len(plan.tasks)
        self._blind = 0  # pictures in a row that cannot be read

    def run(self) -> bool:
        """Work until the whole plan is carried out, by whomever; False if it was stopped."""
        try:
            while not self._stop.is_set():
                self._fill()
                if self._waiting:
                    self._take(self._waiting.popleft())
                elif self._feeding is None and self._claiming is None and not self._left:
                    self._writer.finish()
                    return True
                elif not self._writer.idle:
                    self._writer.settle(_BRIEFLY)
                    self._again = 0.0
                else:
                    self._stop.wait(_BRIEFLY if self._claiming else min(_POLL, max(0.0, self._again - _now())))
            return False
        finally:
            self._feeder.close()
            self._writer.close()
            self._claims.shutdown(wait=True)

    def _fill(self) -> None:
        """Begin batches until enough are on their way, claiming tasks as they are needed."""
        while True:
            feeding = self._feeding or self._claimed()
            if feeding is None:
                return
            under, task = feeding.under, feeding.under.task
            batch = self._encoder.batch(task.bucket)
            if len(self._waiting) >= self._feeder.ahead(task.bucket, batch):
                return
            first = task.first + feeding.at
            end = min(task.end, first + batch)
            begun = self._feeder.begin(self._plan, task, first, end)
            self._waiting.append(_Next(under, begun, end == task.end))
            feeding.at += end - first
            self._feeding = feeding if end < task.end else None

    def _claimed(self) -> _Feeding | None:
        """The task to feed from now on, if there is one; asks for it in the background."""
        if self._claiming is None:
            if _now() < self._again:
                return None
            self._claiming = self._claims.submit(self._claim)
        if not self._claiming.done():
            return None
        lease, self._claiming = self._claiming.result(), None
        if lease is None:
            self._again = _now() + max(_POLL, _SHARE * self._looked)
            return None
        task = self._plan.tasks[lease.task]
        self._feeding = _Feeding(Under(task, lease, self._encoder.form(task.bucket)))
        return self._feeding

    def _claim(self) -> Lease | None:
        site = self._site
        if site.over:
            self._left = 0
            return None
        began = _now()
        there = set(site.work.names(site.group))
        todo = [name for name in self._order if name + DONE not in there]
        self._left = len(todo)
        with storing("The work list in", site.work.root):
            lease = site.leases.claim(site.group, todo, site.finished)
        self._looked = _now() - began
        if lease is not None:
            site.pulse.hold(lease)
        return lease

    def _take(self, next_: _Next) -> None:
        """Encode one batch and pass it on."""
        under = next_.under
        if under.lost or self._site.pulse.lost(under.lease, ask=False):
            self._drop(under)
            return
        began = _now()
        while not next_.batch.arrived(_BRIEFLY):  # a disk that hangs must not keep anybody from stopping this
            if self._stop.is_set():
                return
        ready = next_.batch.take()
        self._refuse_blindness(ready)
        waited = _now()
        keys = [self._plan.keys[entry].tobytes() for entry in ready.entries]
        arrays: list[np.ndarray] = []
        if keys:
            arrays = self._encoder.encode(under.task.bucket, ready.inputs, keys)
        self.tally.count(len(keys), waited - began, _now() - waited)
        under.encoded += len(keys)
        self.tally.open += len(keys)
        self._refuse_endless(arrays, ready.entries)
        self._writer.put(under, keys, arrays, ready.problems, last=next_.last)
        self._site.pulse.moved()

    def _drop(self, under: Under) -> None:
        if not under.lost:
            self._writer.drop(under)
        if self._feeding is not None and self._feeding.under is under:
            self._feeding = None

    def _refuse_blindness(self, ready: Ready) -> None:
        """One picture may be gone; a node that can read none of many must leave them to the others."""
        missed = [problem for problem in ready.problems if problem.kind == "unreadable"]
        self._blind = 0 if ready.entries else self._blind + len(missed)
        if self._blind >= _BLIND:
            last = f"{missed[-1].file}: {missed[-1].why}"
            raise RunError(
                "unreadable",
                f"None of the last {self._blind} pictures can be read on this node, the last being {last}.",
                "Look whether the folder is mounted here as on the others, which do its work meanwhile.",
            )

    def _refuse_endless(self, arrays: Sequence[np.ndarray], entries: Sequence[int]) -> None:
        """An encoder that overflows does so for all that follows."""
        for array in arrays:
            good = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
            if not good.all():
                row = int(self._plan.rows[entries[int(np.argmin(good))]])
                raise RunError(
                    "nan",
                    f"What the encoder makes of row {row} of the index is not finite.",
                    "Set compute.vae_dtype: fp32, or vae: to one that was repaired for half precision.",
                )


def _now() -> float:
    return time.monotonic()
