"""Proves an exported single file: read back, it computes what the live weights compute in its number format.

Owns the reading back, which is not our own: safetensors opens the file and diffusers' converters name its tensors,
so that a mistake of our layout cannot cancel itself out. One module after the other, weights widened to float32
layer by layer: a full-size proof needs little more memory than the file. Refuses a file that differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clusterft_trainer.errors import RunError
from clusterft_trainer.model import architecture, layout
from clusterft_trainer.model.parts import Parts

Tensors = dict[str, torch.Tensor]
_PROMPT = "a photo of a cat on a red chair"
# Share of the largest live value. The weights are bit-equal and so is the arithmetic; a single wrong tensor shows
# in the percents.
_TOLERANCE = 1e-4
_SIDE = 8  # of the latents: 64 pixels
_REMEDY = "The checkpoint is untouched: export it again; if it fails again, please report it."


@dataclass(frozen=True)
class Proof:
    """The largest differences between file and live weights, as shares of the largest live value."""

    hidden: float  # penultimate states of both text encoders
    pooled: float
    prediction: float  # of the UNet
    pixels: float

    @property
    def worst(self) -> float:
        """The largest of them; not a number if one of them is none."""
        every = (self.hidden, self.pooled, self.prediction, self.pixels)
        return math.nan if any(math.isnan(d) for d in every) else max(every)


def prove(path: Path, parts: Parts, trained: Mapping[str, torch.Tensor]) -> Proof:
    """Compare the file with the weights it was made of (`trained`, and the others from `parts`)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file, torch.no_grad():
            found = _compare(_Stored(file), parts, trained)
    except (OSError, KeyError, RuntimeError, ValueError, SafetensorError) as error:
        raise RunError("export", f"{path} cannot be read back: {error}", _REMEDY) from error
    if not found.worst <= _TOLERANCE:
        raise RunError(
            "export",
            f"{path} does not compute what the trained weights compute: text states differ by {found.hidden:.1%}, "
            f"pooled text by {found.pooled:.1%}, the UNet's output by {found.prediction:.1%}, "
            f"pixels by {found.pixels:.1%}.",
            _REMEDY,
        )
    return found


def _compare(stored: _Stored, parts: Parts, trained: Mapping[str, torch.Tensor]) -> Proof:
    live: dict[str, tuple[torch.Tensor, ...]] = {}
    read: dict[str, tuple[torch.Tensor, ...]] = {}
    runs: tuple[
        tuple[str, Callable[[Any, dict[str, tuple[torch.Tensor, ...]]], tuple[torch.Tensor, ...]]], ...
    ] = (
        ("text_encoder_1", lambda module, _: _text(module, parts.tokenizers[0])),
        ("text_encoder_2", lambda module, _: _text(module, parts.tokenizers[1])),
        ("unet", _denoised),
        ("vae", lambda module, _: (module.float().decode(_noise(module.config.latent_channels)).sample,)),
    )
    for part, compute in runs:
        config = architecture.settings(parts.module(part))
        dtype = stored.dtype(part)
        for weights, results in ((parts.weights(part, trained), live), (stored.weights(part, config), read)):
            module = architecture.build(part, config)
            names = {layout.plain(n): n for n in module.state_dict()}
            # both take the same way through the number format, or rounding would show as a difference
            module.load_state_dict({names[layout.plain(n)]: t for n, t in weights.items()}, assign=True)
            with _rounded(module.eval(), dtype):
                results[part] = compute(module, live)  # the UNet is told the same by both
    hidden = [_differ(live[part][0], read[part][0]) for part in ("text_encoder_1", "text_encoder_2")]
    return Proof(
        hidden=max(hidden) if not any(map(math.isnan, hidden)) else math.nan,
        pooled=_differ(live["text_encoder_2"][1], read["text_encoder_2"][1]),
        prediction=_differ(live["unet"][0], read["unet"][0]),
        pixels=_differ(live["vae"][0], read["vae"][0]),
    )


class _Stored:
    """The file as other programs read it."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._names: list[str] = list(file.keys())

    def dtype(self, part: str) -> torch.dtype:
        """The number format of a part's weights."""
        name = next(n for n in self._names if n.startswith(layout.PREFIX[part]) and n.endswith(".weight"))
        dtype: torch.dtype = self._file.get_tensor(name).dtype
        return dtype

    def weights(self, part: str, config: dict[str, Any]) -> Tensors:
        """A part's weights under diffusers' names, by diffusers' own converters."""
        from diffusers.loaders import single_file_utils as theirs

        prefix = layout.PREFIX[part]
        tensors = {n: self._file.get_tensor(n) for n in self._names if n.startswith(prefix)}
        if part == "unet":
            return theirs.convert_ldm_unet_checkpoint(tensors, config)
        if part == "vae":
            return theirs.convert_ldm_vae_checkpoint(tensors, config)
        if part == "text_encoder_1":
            found = theirs.convert_ldm_clip_checkpoint(tensors)
        else:
            found = theirs.convert_open_clip_checkpoint(_Sized(config), tensors, prefix=prefix)
        return {n: t for n, t in found.items() if not n.endswith("position_ids")}


class _Sized:
    """Of a text encoder, what diffusers' converter asks for where the file has no projection: its settings."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config


def _text(module: Any, tokenizer: Any) -> tuple[torch.Tensor, ...]:
    tokens = tokenizer([_PROMPT], padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    found = module(tokens.input_ids, output_hidden_states=True)
    pooled = found.text_embeds if hasattr(found, "text_embeds") else found.pooler_output
    return found.hidden_states[-2], pooled


def _denoised(module: Any, live: Mapping[str, tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    hidden = torch.cat([live["text_encoder_1"][0], live["text_encoder_2"][0]], -1)
    ids = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]])
    told = {"text_embeds": live["text_encoder_2"][1], "time_ids": ids}
    noise = _noise(module.config.in_channels)
    return (module(noise, torch.tensor([500]), hidden, added_cond_kwargs=told, return_dict=False)[0],)


def _noise(channels: int) -> torch.Tensor:
    return torch.randn((1, channels, _SIDE, _SIDE), generator=torch.Generator().manual_seed(0))


@contextmanager
def _rounded(module: Any, dtype: torch.dtype) -> Iterator[None]:
    """Compute in float32 with weights as `dtype` holds them, widened only while a layer is at work."""
    handles, kept = [], {}

    def widen(layer: Any, _: Any) -> None:
        kept[layer] = dict(layer._parameters)
        for name, weight in kept[layer].items():
            if weight is not None:
                wide = weight.detach().to("cpu", dtype).to(torch.float32)
                layer._parameters[name] = torch.nn.Parameter(wide, requires_grad=False)

    def restore(layer: Any, *_: Any) -> None:
        layer._parameters.update(kept.pop(layer))

    for layer in module.modules():
        if layer._parameters:
            handles += [layer.register_forward_pre_hook(widen), layer.register_forward_hook(restore)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _differ(live: torch.Tensor, read: torch.Tensor) -> float:
    largest = (live - read).abs().max() / live.abs().max().clamp_min(1e-12)
    return float(largest)
