"""The loss on pictures that are never trained, with noise that is the same every time.

Owns which pictures those are, and a measurement that all ranks share. Refuses to touch the training state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from clusterft_trainer import dist, objective
from clusterft_trainer.buckets import Slot
from clusterft_trainer.config import HeldOut as Settings
from clusterft_trainer.dataset import Batch, Pictures
from clusterft_trainer.dist import Place
from clusterft_trainer.errors import DataError
from clusterft_trainer.records import Record
from clusterft_trainer.step import Learner


def split(records: Sequence[Record], settings: Settings | None, seed: int) -> tuple[list[Record], list[Record]]:
    """Those to train, and those to hold out: a function of each picture's name and the seed."""
    if settings is None:
        return list(records), []
    count = min(settings.most, max(1, round(settings.share * len(records))))
    if count >= len(records):
        raise DataError(
            f"held_out would take {count} of {len(records)} pictures, and leave none to train.",
            "Add pictures, or remove the held_out section.",
        )
    order = sorted(range(len(records)), key=lambda i: (objective.key(seed, 0, i, records[i].name), i))
    chosen = set(order[:count])
    kept = [r for i, r in enumerate(records) if i not in chosen]
    return kept, [records[i] for i in sorted(chosen)]


@dataclass(frozen=True, slots=True)
class _Chunk:
    slots: list[Slot]
    level: int


class HeldOut:
    """Measures on the pictures from `first` on."""

    def __init__(self, settings: Settings, pictures: Pictures, first: int, batch: int, place: Place) -> None:
        self.settings = settings
        self._pictures = pictures
        self._place = place
        self._chunks = list(self._plan(first, batch))
        self._pairs = settings.levels * (len(pictures.records) - first)

    def _plan(self, first: int, batch: int) -> Iterator[_Chunk]:
        """Equal shapes in each chunk, and as many chunks for one rank as for another."""
        members: dict[object, list[int]] = {}
        for index in range(first, len(self._pictures.records)):
            members.setdefault(self._pictures.buckets[index], []).append(index)
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
        given = encoders.condition(batch.captions, batch.time_ids)
        prediction = learner.engine.forward(learned.noisy(latents, drawn), drawn.timesteps, given)
        losses = learned.losses(prediction, latents, drawn)
        return float((losses * batch.weights.to(losses.device)).sum())
