"""Names and shapes of SDXL's original single-file layout, from those of diffusers and transformers.

Pure, and one table for both directions: each tensor of a module has one place in the file, `places` says which.
Whoever reads asks where a module's tensors lie, whoever writes what lies at each place. Generic over block counts
and widths, so that the full model and a tiny one take the same path. Refuses a tensor that it cannot place: a key
lost here would load silently as random weights elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Tensors = dict[str, torch.Tensor]
UNET = "model.diffusion_model."
TEXT_1 = "conditioner.embedders.0.transformer.text_model."
TEXT_2 = "conditioner.embedders.1.model."
VAE = "first_stage_model."
PREFIX = {"unet": UNET, "text_encoder_1": TEXT_1, "text_encoder_2": TEXT_2, "vae": VAE}
LOGIT_SCALE = TEXT_2 + "logit_scale"

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
_QKV = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a module's tensor lies in the single file, and in which form."""

    key: str
    form: Literal["same", "transposed", "convolution"] = "same"
    third: int | None = None  # it is the first, second or last third of the rows there


def places(part: str, names: Iterable[str]) -> dict[str, Place]:
    """The place of each tensor of 'unet', 'text_encoder_1', 'text_encoder_2' or 'vae'."""
    given = list(names)
    if part == "unet":
        return _unet_places(given)
    if part == "vae":
        return _vae_places(given)
    if part == "text_encoder_1":
        return {n: Place(TEXT_1 + plain(n)) for n in given}
    return {n: _open_clip_place(plain(n)) for n in given}


def plain(name: str) -> str:
    """A name as torch gave it before anything was wrapped around a module, and without CLIP's prefix.

    torch.compile puts `_orig_mod.` into names; transformers puts `text_model.` before some encoders' names, and
    from 5.6 on no longer before others'.
    """
    return name.replace("_orig_mod.", "").removeprefix("text_model.")


def pieces(found: Mapping[str, Place]) -> dict[str, list[str]]:
    """For each place in the file, the tensors that it consists of, in their order."""
    out: dict[str, list[str]] = {}
    for name in sorted(found, key=lambda n: found[n].third or 0):
        out.setdefault(found[name].key, []).append(name)
    return out


def put(tensors: Sequence[torch.Tensor], form: str) -> torch.Tensor:
    """What the file holds, from what the module holds."""
    tensor = tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
    if form == "transposed":
        return tensor.T
    return tensor[:, :, None, None] if form == "convolution" and tensor.ndim == 2 else tensor


def take(tensor: torch.Tensor, form: str) -> torch.Tensor:
    """What the module holds, from what the file holds."""
    if form == "transposed":
        return tensor.T.contiguous()
    # some files keep the autoencoder's attention as the plain matrices that it is
    return tensor[:, :, 0, 0].contiguous() if form == "convolution" and tensor.ndim == 4 else tensor


def stored(part: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """All tensors of one module under their names in the file."""
    found = places(part, tensors)
    return {key: put([tensors[n] for n in names], found[names[0]].form) for key, names in pieces(found).items()}


def _unet_places(names: list[str]) -> dict[str, Place]:
    """Diffusers' blocks become one numbered row each of input and output blocks."""
    bare = [plain(n) for n in names]
    row = 1 + max(int(m[4]) for n in bare if (m := _BLOCK.match(n)) and m[1] == "down")
    attended = {int(m[2]) for n in bare if (m := _BLOCK.match(n)) and (m[1], m[3]) == ("up", "attentions")}
    return {n: Place(UNET + _unet_name(plain(n), row + 1, attended)) for n in names}


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


def _vae_places(names: list[str]) -> dict[str, Place]:
    """The autoencoder; its attention is a convolution of width 1 there."""
    last = max(int(m[2]) for n in names if (m := re.match(r"decoder\.(up)_blocks\.(\d+)", n)))
    out = {}
    for name in names:
        renamed = _vae_name(name, last)
        matrix = ".mid.attn_1." in renamed and ".norm." not in renamed and renamed.endswith(".weight")
        out[name] = Place(VAE + renamed, "convolution" if matrix else "same")
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


def _open_clip_place(name: str) -> Place:
    """The second text encoder in open_clip's names: fused attention input, transposed projection."""
    if name == "text_projection.weight":
        return Place(TEXT_2 + "text_projection", "transposed")
    if match := _QKV.fullmatch(name):
        layer, which, leaf = match.groups()
        return Place(f"{TEXT_2}transformer.resblocks.{layer}.attn.in_proj_{leaf}", third="qkv".index(which))
    return Place(TEXT_2 + _open_clip_name(name))


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
