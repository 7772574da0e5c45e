"""Names and shapes of SDXL's original single-file layout, from those of diffusers and transformers.

Pure: a dictionary of tensors in, another out. Generic over block counts and widths, so that the
full model and a tiny one take the same path. Refuses a tensor that it cannot place: a key lost here
would load silently as random weights elsewhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch

Tensors = dict[str, torch.Tensor]
UNET = "model.diffusion_model."
TEXT_1 = "conditioner.embedders.0.transformer.text_model."
TEXT_2 = "conditioner.embedders.1.model."
VAE = "first_stage_model."

_UNET_FIXED = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_TEXT_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
# What CLIP training ends with, ln 100. Diffusers folders do not keep the value; nothing that makes
# pictures reads it, but strict loaders miss the key.
_LOGIT_SCALE = math.log(100.0)


def single_file(unet: Tensors, text_1: Tensors, text_2: Tensors, vae: Tensors) -> Tensors:
    """All tensors of a model under their single-file names, contiguous."""
    parts = (
        (UNET, unet_layout(unet)),
        (TEXT_1, clip_layout(text_1)),
        (TEXT_2, open_clip_layout(text_2)),
        (VAE, vae_layout(vae)),
    )
    return {prefix + k: v.contiguous() for prefix, part in parts for k, v in part.items()}


def unet_layout(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Diffusers' blocks become one numbered row each of input and output blocks."""
    names = list(tensors)
    row = 1 + max(int(m[4]) for n in names if (m := _BLOCK.match(n)) and m[1] == "down")
    attended = {int(m[2]) for n in names if (m := _BLOCK.match(n)) and (m[1], m[3]) == ("up", "attentions")}
    return {_unet_name(n, row + 1, attended): t for n, t in tensors.items()}


def _unet_name(name: str, row: int, attended: set[int]) -> str:
    """`row` is the number of numbered blocks that one block of diffusers fills."""
    stem, _, leaf = name.rpartition(".")
    if stem in _UNET_FIXED:
        return f"{_UNET_FIXED[stem]}.{leaf}"
    if match := _MIDDLE.fullmatch(name):
        kind, number, rest = match.groups()
        if kind == "attentions":
            return f"middle_block.1.{rest}"
        return f"middle_block.{2 * int(number)}.{_renamed(rest, _RESNET)}"
    match = _BLOCK.fullmatch(name)
    if match is None:
        raise ValueError(f"the single-file layout has no place for UNet tensor {name}")
    side, kind, rest = match[1], match[3], match[5]
    block, number = int(match[2]), int(match[4])
    if kind == "downsamplers":
        return f"input_blocks.{row * (block + 1)}.0.{rest.replace('conv.', 'op.')}"
    if kind == "upsamplers":
        return f"output_blocks.{row * block + row - 1}.{2 if block in attended else 1}.{rest}"
    place = (
        f"input_blocks.{row * block + number + 1}" if side == "down" else (f"output_blocks.{row * block + number}")
    )
    if kind == "attentions":
        return f"{place}.1.{rest}"
    return f"{place}.0.{_renamed(rest, _RESNET)}"


def vae_layout(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The autoencoder; its attention is a convolution of width 1 there."""
    last = max(int(m[2]) for n in tensors if (m := re.match(r"decoder\.(up)_blocks\.(\d+)", n)))
    out: Tensors = {}
    for name, tensor in tensors.items():
        renamed = _vae_name(name, last)
        linear = ".mid.attn_1." in renamed and renamed.endswith(".weight") and tensor.ndim == 2
        out[renamed] = tensor[:, :, None, None] if linear else tensor
    return out


def _vae_name(name: str, last: int) -> str:
    half, _, inner = name.partition(".")
    if half in ("quant_conv", "post_quant_conv") or inner.startswith(("conv_in.", "conv_out.")):
        return name
    if inner.startswith("conv_norm_out."):
        return f"{half}.norm_out.{inner.rpartition('.')[2]}"
    if match := _MIDDLE.fullmatch(inner):
        kind, number, rest = match.groups()
        if kind == "attentions":
            return f"{half}.mid.attn_1.{_renamed(rest, _VAE_ATTENTION)}"
        return f"{half}.mid.block_{int(number) + 1}.{_shortcut(rest)}"
    match = _BLOCK.fullmatch(inner)
    if match is None:
        raise ValueError(f"the single-file layout has no place for VAE tensor {name}")
    side, block, kind, number, rest = match.groups()
    # the decoder counts its levels from the picture, diffusers from the latents
    level = int(block) if side == "down" else last - int(block)
    if kind == "resnets":
        return f"{half}.{side}.{level}.block.{number}.{_shortcut(rest)}"
    return f"{half}.{side}.{level}.{side}sample.{rest}"


def clip_layout(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The first text encoder keeps its names, with or without the prefix that transformers dropped."""
    plain = {n.removeprefix("text_model."): t for n, t in tensors.items()}
    return {n: t for n, t in plain.items() if not n.endswith("position_ids")}


def open_clip_layout(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The second text encoder in open_clip's names: fused attention input, transposed projection."""
    plain = {n.removeprefix("text_model."): t for n, t in tensors.items()}
    out: Tensors = {"logit_scale": torch.tensor(_LOGIT_SCALE)}
    for name, tensor in plain.items():
        if name.endswith("position_ids") or ".self_attn.k_proj." in name or ".v_proj." in name:
            continue
        if name == "text_projection.weight":
            out["text_projection"] = tensor.T
        elif ".self_attn.q_proj." in name:
            joined = [plain[name.replace("q_proj", f"{p}_proj")] for p in "qkv"]
            layer, leaf = name.split(".")[2], name.rpartition(".")[2]
            out[f"transformer.resblocks.{layer}.attn.in_proj_{leaf}"] = torch.cat(joined)
        else:
            out[_open_clip_name(name)] = tensor
    return out


def _open_clip_name(name: str) -> str:
    fixed = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    if name in fixed:
        return fixed[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _TEXT_LAYER:
        raise ValueError(f"the single-file layout has no place for text encoder tensor {name}")
    return f"transformer.resblocks.{match[1]}.{_TEXT_LAYER[match[2]]}.{match[3]}"


def _renamed(rest: str, table: Mapping[str, str]) -> str:
    stem, _, leaf = rest.rpartition(".")
    if stem not in table:
        raise ValueError(f"the single-file layout has no place for {rest}")
    return f"{table[stem]}.{leaf}"


def _shortcut(rest: str) -> str:
    return rest.replace("conv_shortcut.", "nin_shortcut.")
