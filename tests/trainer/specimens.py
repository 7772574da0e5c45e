"""Models for the tests: the tiny one with all its parts, and the full-size UNet without its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from clusterft_trainer import builtin
from clusterft_trainer.model import files
from clusterft_trainer.model.parts import Parts

FULL_WEIGHTS = 2_567_463_684


def tiny(folder: Path) -> Parts:
    """The parts of the builtin model, read afresh: tests may change them."""
    return files.load(str(folder), None, None)


def full_unet() -> Any:
    """SDXL's UNet as published, on the meta device."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    sizes = {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "norm_num_groups": 32,
    }
    with torch.device("meta"):
        return UNet2DConditionModel(**{**builtin.UNET, **sizes})
