"""The loss on pictures that are never trained, with noise that is the same every time.

Owns which pictures those are, and a measurement that all ranks share. Refuses to touch the training state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clusterft_trainer import dist, objective
from clusterft_trainer.buckets import Slot, mix
from clusterft_trainer.config import HeldOut as Settings
from clusterft_trainer.corpus.index import Index
from clusterft_trainer.dataset import Batch, Pictures, Split
from clusterft_trainer.dist import Place
from clusterft_trainer.errors import DataError
from clusterft_trainer.step import Learner

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse


def split(index: Index, settings: Settings | None, seed: int) -> Split | None:
    """Those to train, and those to hold out: a function of each picture's name and the seed."""
    if settings is None:
        return None
    total = len(index)
    count = min(settings.most, max(1, round(settings.share * total)))
    if count >= total:
        raise DataError(
            f"held_out would take {count} of {total} pictures, and leave none to train.",
            "Add pictures, or remove the held_out section.",
        )
    numbers = np.concatenate([name_numbers(chunk, seed) for chunk in index.column("name").chunks])
    # the smallest; of equal names in two sources, the first
    held = np.sort(np.lexsort((np.arange(total), numbers))[:count])
    kept: np.ndarray = np.ones(total, bool)
    kept[held] = False
    return Split(np.flatnonzero(kept).astype(np.int32), held.astype(np.int32))


def name_numbers(names: Any, seed: int) -> np.ndarray:
    """A 64-bit number for each text of an Arrow column, from its bytes and the seed alone.

    A text is read as the digits of a number in an odd base, modulo 2^64. Running sums over all bytes of the column
    hold that of every text; dividing by the power at which it begins makes it independent of its neighbours.
    """
    _, ends, data = names.buffers()
    borders = np.frombuffer(ends, np.int32)[names.offset : names.offset + len(names) + 1]
    first = int(borders[0])
    letters = np.frombuffer(data or b"", np.uint8)[first : int(borders[-1])].astype(np.uint64) + np.uint64(1)
    powers, inverses = _powers(len(letters))
    sums: np.ndarray = np.zeros(len(letters) + 1, np.uint64)
    np.cumsum(letters * powers, out=sums[1:])
    at = borders - first
    digits = (sums[at[1:]] - sums[at[:-1]]) * inverses[at[:-1]]
    return mix(digits, objective.key(seed, 0, 0, "held out"))


def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the base and of its inverse: of the first for each letter, of the second for each place."""
    base: np.ndarray = np.full(count + 1, _BASE, np.uint64)
    inverse: np.ndarray = np.full(count + 1, pow(_BASE, -1, 2**64), np.uint64)
    base[0] = inverse[0] = 1
    return np.cumprod(base)[:count], np.cumprod(inverse)


@dataclass(frozen=True, slots=True)
class _Chunk:
    slots: list[Slot]
    level: int


class HeldOut:
    """Measures on the pictures behind those that are trained."""

    def __init__(self, settings: Settings, pictures: Pictures, batch: int, place: Place) -> None:
        self.settings = settings
        self._pictures = pictures
        self._place = place
        self._chunks = list(self._plan(batch))
        self._pairs = settings.levels * (len(pictures) - pictures.trained)

    def _plan(self, batch: int) -> Iterator[_Chunk]:
        """Equal shapes in each chunk, and as many chunks for one rank as for another."""
        members: dict[object, list[int]] = {}
        for index in range(self._pictures.trained, len(self._pictures)):
            members.setdefault(self._pictures.bucket(index), []).append(index)
        count = 0
        for level in range(self.settings.levels):
            for indices in members.values():
                for at in range(0, len(indices), batch):
                    yield _Chunk([Slot(i, 1) for i in indices[at : at + batch]], level)
                    count += 1
        filler = next(iter(members.values()))[0]
        for _ in range(-count % self._place.world):
            yield _Chunk([Slot(filler, 0)], 0)

    @torch.no_grad()
    def measure(self, learner: Learner) -> float:
        """The mean over pictures and noise levels; all ranks call this and all get it."""
        model = learner.engine.bare
        was_training = model.training
        model.eval()
        chunks = self._chunks[self._place.rank :: self._place.world]
        # A picture that cannot be read must be known to all before any of them waits for another.
        batches = dist.together(lambda: [self._batch(learner, chunk) for chunk in chunks])
        mine = sum(self._loss(learner, c, b) for c, b in zip(chunks, batches, strict=True))
        model.train(was_training)
        (total,) = dist.sum_all([mine])
        return total / self._pairs

    def _batch(self, learner: Learner, chunk: _Chunk) -> Batch:
        return self._pictures.batch(chunk.slots, 0, learner.encoders.known, plain=True)

    def _loss(self, learner: Learner, chunk: _Chunk, batch: Batch) -> float:
        encoders, learned = learner.encoders, learner.objective
        shape = encoders.latent_shape(batch.bucket.width, batch.bucket.height)
        level, levels = chunk.level, self.settings.levels
        drawn = learned.fixed_draw(batch.indices, level, levels, learner.seed, shape).to(encoders.device)
        latents = encoders.latents(batch, drawn)
        given = encoders.told(batch)
        prediction = learner.engine.forward(learned.noisy(latents, drawn), drawn.timesteps, given)
        losses = learned.losses(prediction, latents, drawn)
        return float((losses * batch.weights.to(losses.device)).sum())
