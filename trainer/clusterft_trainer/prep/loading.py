"""The encoders of a model without its UNet: a tenth of the bytes, and of the memory.

Owns which parts are read, and by what their users end early. Refuses nothing of its own: a model that training
would refuse is refused alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from clusterft_trainer.config import TrainConfig
from clusterft_trainer.config.base import Dtype
from clusterft_trainer.latents import shard
from clusterft_trainer.latents.session import Stop, Stopped
from clusterft_trainer.model import files, text, tokenizers
from clusterft_trainer.model.parts import Parts


@dataclass(frozen=True, slots=True)
class Desk:
    """Where and how a worker encodes."""

    device: str
    kind: Dtype  # that the encoders compute in
    codec: shard.Codec
    stop: Stop

    def ask(self) -> None:
        """To be called before each entry: on a slow device a batch takes long."""
        if self.stop.is_set():
            raise Stopped


def parts(config: TrainConfig, model: str, names: Sequence[str], device: str) -> Parts:
    """A model that has only some of its parts, in float32 as a run loads them."""
    found = files._find(Path(model), config.vae)
    pair = tokenizers.load(files._where(found), config.tokenizers, files._vocabulary(found))
    modules = {name: found.fillings[name].fill(torch.float32, device) for name in names}
    loaded = Parts(
        unet=None,
        vae=modules.get("vae"),
        text_encoder_1=modules.get("text_encoder_1"),
        text_encoder_2=modules.get("text_encoder_2"),
        tokenizers=pair,
        diffusion=found.diffusion,
        origin=found.origin,
    )
    if loaded.text_encoder_2 is not None:
        text.check_end(loaded.text_encoder_2, pair[1])
    return loaded


def widths(found: Parts) -> tuple[int, int, int]:
    """Of both text encoders' states, and of the pooled one."""
    one, two = found.text_encoder_1.config, found.text_encoder_2.config
    return int(one.hidden_size), int(two.hidden_size), int(two.projection_dim)


def numbers(found: Parts, tokens: int) -> tuple[int, int, int]:
    """How many numbers each of a caption's arrays has."""
    one, two, pooled = widths(found)
    return one * (tokens + 2), two * (tokens + 2), pooled
