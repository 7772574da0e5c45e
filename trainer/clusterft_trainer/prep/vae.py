"""Latents by the model's own VAE: what `prep` caches is, bit for bit, what a run would make without a cache.

Pictures are encoded one by one in one layout, as in training: kernels differ with the batch, and an entry must not
depend on its company. Noise for sampling is drawn on the CPU from the entry's key, so that every device draws the
same. Owns no search for garbage: one after every batch costs more than the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from clusterft_trainer.buckets import Bucket
from clusterft_trainer.latents import shard
from clusterft_trainer.latents.key import Recipe
from clusterft_trainer.latents.shard import Form
from clusterft_trainer.model.sdxl import DTYPES
from clusterft_trainer.prep.loading import Desk

_PIXELS = 4 << 20  # that are on their way together; each is encoded alone
_SEED_BITS = 63


class Painter:
    """The VAE of one worker."""

    def __init__(self, vae: Any, recipe: Recipe, desk: Desk) -> None:
        # past diffusers' own `to`, which warns of a cast even where there is none
        nn.Module.to(vae, device=desk.device, dtype=DTYPES[desk.kind])
        self._vae = vae.eval().requires_grad_(False)
        self._recipe = recipe
        self._desk = desk
        self._factor = int(2 ** (len(vae.config.block_out_channels) - 1))
        self._channels = int(vae.config.latent_channels)

    def form(self, bucket: Bucket) -> Form:
        """What entries of a bucket consist of."""
        shape = (self._channels, bucket.height // self._factor, bucket.width // self._factor)
        return shard.latent_form(self._recipe, shape, (bucket.width, bucket.height), self._desk.codec)

    def batch(self, bucket: Bucket) -> int:
        """As many as make good use of one copy to the device; memory does not grow with it."""
        return max(1, min(32, _PIXELS // (bucket.width * bucket.height)))

    @torch.no_grad()
    def encode(self, bucket: Bucket, inputs: np.ndarray, keys: Sequence[bytes]) -> list[np.ndarray]:
        """(B, 4, h, w) float32, or with mirrored ones (B, 2, 4, h, w)."""
        pixels = torch.from_numpy(inputs)
        if self._desk.device != "cpu":
            pixels = pixels.pin_memory().to(self._desk.device, non_blocking=True)
        found = [self._taken(self._moments(one), key, 0) for one, key in zip(pixels.split(1), keys, strict=True)]
        if self._recipe.flip:
            mirrored = pixels.flip(3)
            second = [
                self._taken(self._moments(one), key, 1) for one, key in zip(mirrored.split(1), keys, strict=True)
            ]
            return [torch.stack([torch.cat(found), torch.cat(second)], 1).cpu().numpy()]
        return [torch.cat(found).cpu().numpy()]

    def _moments(self, picture: torch.Tensor) -> torch.Tensor:
        self._desk.ask()
        scaled = (picture.float() / 127.5 - 1).to(self._vae.dtype)
        # in one layout: sums are added up in memory's order
        return self._vae.encode(scaled).latent_dist.parameters.float().contiguous()

    def _taken(self, moments: torch.Tensor, key: bytes, which: int) -> torch.Tensor:
        mean, log_variance = moments.chunk(2, 1)
        if self._recipe.take == "mean":
            return mean.contiguous()
        source = torch.Generator().manual_seed(noise_seed(key, which))
        noise = torch.randn(mean.shape, generator=source).to(mean.device)
        return mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * noise


def noise_seed(key: bytes, which: int) -> int:
    """Of the noise of an entry, or of its mirror image; the recipe's seed is in the key."""
    return (int.from_bytes(key[:8], "little") ^ which) & ((1 << _SEED_BITS) - 1)
