"""A running mean of the trained weights, each rank keeping that of its own pieces.

So it costs a rank 4 bytes for each of *its* weights, needs no communication while training, and is whole only when
pictures are drawn, the held-out loss is measured or a model is exported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from clusterft_trainer.config import Ema as Settings
from clusterft_trainer.engine.base import Engine
from clusterft_trainer.engine.pieces import Part, Piece
from clusterft_trainer.errors import TrainerError


class Ema:
    """The mean of one rank's pieces, in float32."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._decay = settings.decay
        self._on_host = settings.device == "cpu"
        pieces = engine.pieces()
        self._places = [(p.name, p.offset) for p in pieces]
        self._mean = [self._here(p.weight).clone() for p in pieces]

    def _here(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.detach().to("cpu" if self._on_host else weight.device, torch.float32)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights; in the first steps faster, or the mean would long be the beginning."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        pieces = self._engine.pieces()
        if all(
            p.weight.dtype == m.dtype and p.weight.device == m.device
            for p, m in zip(pieces, self._mean, strict=True)
        ):
            torch._foreach_lerp_(self._mean, [p.weight for p in pieces], share)
            return
        for piece, mean in zip(pieces, self._mean, strict=True):  # one copy at a time
            mean.lerp_(self._here(piece.weight), share)

    def parts(self) -> list[Part]:
        """What this rank keeps: name, offset, values."""
        return [(name, at, mean) for (name, at), mean in zip(self._places, self._mean, strict=True)]

    def load(self, read: Callable[[Piece], torch.Tensor]) -> None:
        """Take the mean from somewhere else."""
        for piece, mean in zip(self._engine.pieces(), self._mean, strict=True):
            mean.copy_(read(piece))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Compute with the mean; afterwards the weights are, bit for bit, what they were. A collective."""
        pieces = self._engine.pieces()
        own = {p.name: p.weight.detach().to("cpu", copy=True) for p in pieces}
        self._engine.take({p.name: m for p, m in zip(pieces, self._mean, strict=True)})
        try:
            yield
        except TrainerError as error:
            # Only what all ranks raise together lets them put the weights back together.
            if error.everywhere:
                self._engine.take(own)
            raise
        self._engine.take(own)
