"""Text states by the model's own encoders: what a run with frozen text encoders would make itself.

Captions are encoded one by one, as in training, for the same reason as pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from clusterft_trainer.buckets import Bucket
from clusterft_trainer.latents import shard
from clusterft_trainer.latents.key import TextRecipe
from clusterft_trainer.latents.shard import Form
from clusterft_trainer.model import text
from clusterft_trainer.model.parts import Parts
from clusterft_trainer.model.sdxl import DTYPES
from clusterft_trainer.prep import loading
from clusterft_trainer.prep.loading import Desk

_BATCH = 64  # captions whose ids travel together; each is encoded alone


class Speaker:
    """Both text encoders of one worker."""

    def __init__(self, parts: Parts, recipe: TextRecipe, desk: Desk) -> None:
        self._encoders = [parts.text_encoder_1, parts.text_encoder_2]
        for encoder in self._encoders:
            nn.Module.to(encoder, device=desk.device, dtype=DTYPES[desk.kind])
            encoder.eval().requires_grad_(False)
        self._words = text.words(parts.tokenizers, recipe.tokens)
        self._desk = desk
        self._form = shard.text_form(recipe, loading.widths(parts), desk.codec)

    def form(self, bucket: Bucket) -> Form:
        """The same for all captions."""
        return self._form

    def batch(self, bucket: Bucket) -> int:
        """Captions whose ids are made together."""
        return _BATCH

    @torch.no_grad()
    def encode(self, bucket: Bucket, inputs: list[str], keys: Sequence[bytes]) -> list[np.ndarray]:
        """States of both encoders and the pooled one of the second."""
        ids = [one.to(self._desk.device) for one in text.all_ids(self._words, inputs)]
        columns: tuple[list[torch.Tensor], ...] = ([], [], [])
        for number in range(len(inputs)):
            self._desk.ask()
            one, _ = text.states(self._encoders[0], ids[0][number : number + 1])
            two, pooled = text.states(self._encoders[1], ids[1][number : number + 1])
            if pooled is None:
                raise ValueError("the second text encoder has no projection")
            for column, value in zip(columns, (one, two, pooled), strict=True):
                column.append(value.float())
        return [torch.cat(column).cpu().numpy() for column in columns]
