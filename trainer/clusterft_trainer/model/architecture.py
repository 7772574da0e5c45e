"""Which model a single file holds, told from the shapes of its tensors; and modules of it that have no memory yet.

Pure but for the building. Heads of attention, groups of norms and the like leave no trace in shapes: for SDXL they
are known, for a model of other widths our own export states them under `clusterft.config`. Refuses to guess them.
Where a width is SDXL's, its depth is too: a file without its last layers must not pass for a shallower model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]
STATED = "clusterft.config"  # the header's key
# What shapes do not show, and SDXL's own values.
_UNSEEN: dict[str, Config] = {
    "unet": {"norm_num_groups": 32, "sample_size": 128},
    "text_encoder_1": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "pad_token_id": 1},
    "text_encoder_2": {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "pad_token_id": 1},
    "vae": {"norm_num_groups": 32, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
}
_HEADS = {
    "unet": "attention_head_dim",  # the number of heads, under diffusers' historic name
    "text_encoder_1": "num_attention_heads",
    "text_encoder_2": "num_attention_heads",
}
_HEAD_WIDTH = 64
_SDXL_WIDTH = {"unet": 320, "text_encoder_1": 768, "text_encoder_2": 1280, "vae": 128}
_SDXL: dict[str, Config] = {
    "unet": {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "text_encoder_1": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    },
    "text_encoder_2": {
        "vocab_size": 49408,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "max_position_embeddings": 77,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "projection_dim": 1280,
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    },
}


def sdxl() -> dict[str, Config]:
    """The settings of SDXL itself, part by part."""
    return {part: _SDXL[part] | _UNSEEN[part] for part in _SDXL}


class Unseen(ValueError):
    """Something that the architecture is told by is not in the file."""


def configs(shapes: Mapping[str, Shapes], stated: str | None) -> dict[str, Config]:
    """The settings of each part, from shapes by part (names as in the file, without their prefix)."""
    pooled = _at(shapes["text_encoder_2"], "text_projection")[1]
    found = {
        "unet": _unet(shapes["unet"], pooled),
        "text_encoder_1": _clip(shapes["text_encoder_1"]),
        "text_encoder_2": _open_clip(shapes["text_encoder_2"]) | {"projection_dim": pooled},
        "vae": _vae(shapes["vae"]),
    }
    given: dict[str, Config] = json.loads(stated) if stated else {}
    return {part: _completed(part, config, given.get(part, {})) for part, config in found.items()}


def _completed(part: str, seen: Config, given: Config) -> Config:
    """With what shapes do not show: as the file states it, or as it is in SDXL."""
    config = seen | _UNSEEN[part] | given
    if _width(seen) == _SDXL_WIDTH[part]:
        config |= _SDXL[part]
    if part in _HEADS and _HEADS[part] not in config:
        config[_HEADS[part]] = _heads(part, config)
    return config


def vae(shapes: Shapes) -> Config:
    """The settings of an autoencoder that lies in a file of its own."""
    return _completed("vae", _vae(shapes), {})


def unstated(actual: Mapping[str, Mapping[str, Any]], shapes: Mapping[str, Shapes]) -> str | None:
    """What the header must say, so that `configs` finds the same again; None for SDXL itself."""
    plain = {part: {k: _listed(v) for k, v in config.items()} for part, config in actual.items()}
    keys = {part: {*_UNSEEN[part], *([_HEADS[part]] if part in _HEADS else [])} for part in plain}
    everything = json.dumps({part: {k: plain[part][k] for k in sorted(keys[part])} for part in plain})
    try:
        told = configs(shapes, None)
    except Unseen:
        return everything
    differing = {
        part: {k: plain[part][k] for k in sorted(keys[part]) if _listed(told[part].get(k)) != plain[part][k]}
        for part in plain
    }
    kept = {part: config for part, config in differing.items() if config}
    return json.dumps(kept) if kept else None


def build(part: str, config: Mapping[str, Any]) -> Any:
    """The module with its weights on the meta device; what it computes for itself is real."""
    from accelerate import init_empty_weights
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    with init_empty_weights(include_buffers=False):
        if part == "unet":
            return UNet2DConditionModel.from_config(dict(config))
        if part == "vae":
            return AutoencoderKL.from_config(dict(config))
        kind = CLIPTextModel if part == "text_encoder_1" else CLIPTextModelWithProjection
        return kind(CLIPTextConfig(**config))


def settings(module: Any) -> Config:
    """What a module was built from, of diffusers or of transformers."""
    config = module.config
    return dict(config) if isinstance(config, Mapping) else dict(config.to_dict())


def _unet(shapes: Shapes, pooled: int) -> Config:
    blocks = _count(shapes, r"input_blocks\.(\d+)\.")
    downs = [n for n in range(blocks) if f"input_blocks.{n}.0.op.weight" in shapes]
    if not downs or blocks % downs[0]:
        raise Unseen("its input blocks are not those of a UNet with downsamplers")
    row = downs[0]
    firsts = [row * number + 1 for number in range(blocks // row)]
    attended = [f"input_blocks.{n}.1.proj_in.weight" in shapes for n in firsts]
    depths = [max(1, _count(shapes, rf"input_blocks\.{n}\.1\.transformer_blocks\.(\d+)\.")) for n in firsts]
    last = next((n for n, a in zip(firsts, attended, strict=True) if a), None)
    if last is None:
        raise Unseen("none of its blocks has attention")
    inside = _at(shapes, "label_emb.0.0.weight")[1]
    return {
        "in_channels": _at(shapes, "input_blocks.0.0.weight")[1],
        "out_channels": _at(shapes, "out.2.weight")[0],
        "block_out_channels": [_at(shapes, f"input_blocks.{n}.0.in_layers.2.weight")[0] for n in firsts],
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)],
        "layers_per_block": row - 1,
        "transformer_layers_per_block": depths,
        "cross_attention_dim": _at(shapes, f"input_blocks.{last}.1.transformer_blocks.0.attn2.to_k.weight")[1],
        "use_linear_projection": len(_at(shapes, f"input_blocks.{last}.1.proj_in.weight")) == 2,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (inside - pooled) // 6,
        "projection_class_embeddings_input_dim": inside,
    }


def _clip(shapes: Shapes) -> Config:
    vocabulary, width = _at(shapes, "embeddings.token_embedding.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _at(shapes, "encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": _count(shapes, r"encoder\.layers\.(\d+)\."),
        "max_position_embeddings": _at(shapes, "embeddings.position_embedding.weight")[0],
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }


def _open_clip(shapes: Shapes) -> Config:
    vocabulary, width = _at(shapes, "token_embedding.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _at(shapes, "transformer.resblocks.0.mlp.c_fc.weight")[0],
        "num_hidden_layers": _count(shapes, r"transformer\.resblocks\.(\d+)\."),
        "max_position_embeddings": _at(shapes, "positional_embedding")[0],
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }


def _vae(shapes: Shapes) -> Config:
    levels = _count(shapes, r"encoder\.down\.(\d+)\.")
    return {
        "block_out_channels": [_at(shapes, f"encoder.down.{n}.block.0.conv1.weight")[0] for n in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": _at(shapes, "decoder.conv_in.weight")[1],
    }


def _heads(part: str, config: Config) -> int | list[int]:
    widths: list[int] = config["block_out_channels"] if part == "unet" else [config["hidden_size"]]
    if any(width % _HEAD_WIDTH for width in widths):
        raise Unseen(
            f"widths of {', '.join(map(str, widths))} do not show how many heads its attention has, "
            f"and its header has no {STATED}"
        )
    heads = [width // _HEAD_WIDTH for width in widths]
    return heads if part == "unet" else heads[0]


def _width(config: Config) -> int:
    """A part's first width, by which SDXL's own size is known."""
    channels = config.get("block_out_channels")
    return int(channels[0] if channels else config["hidden_size"])


def _at(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise Unseen(f"it lacks {name}")
    return shapes[name]


def _count(shapes: Iterable[str], pattern: str) -> int:
    found = [int(m[1]) for name in shapes if (m := re.match(pattern, name))]
    return 1 + max(found, default=-1)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
