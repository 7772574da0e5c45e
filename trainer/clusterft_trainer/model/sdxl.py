"""The SDXL model while it is trained: frozen encoders outside, one trained module inside.

Owns Denoiser, which holds everything that is trained because an engine takes exactly one module, what of it is
frozen, and Encoders: the VAE and the untrained text encoders, which stay outside of the engine, as it would cast
and count them. Names of weights begin with the part: unet, text_encoder_1, text_encoder_2. Refuses to read files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from clusterft_trainer import objective
from clusterft_trainer.config import Compute, Learn, PartName
from clusterft_trainer.config.base import Dtype
from clusterft_trainer.dataset import Batch
from clusterft_trainer.errors import RunError
from clusterft_trainer.model import attention, lora, selection, text
from clusterft_trainer.model.parts import Parts

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
TEXT: tuple[PartName, PartName] = ("text_encoder_1", "text_encoder_2")
_CACHE_BYTES = 2 << 30  # latents and text states that a rank keeps in memory
# A size is compiled for training, for held-out loss and for samples, each with its own number of samples.
_COMPILES_PER_SIZE = 4


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the UNet is told: the states of each frozen text encoder, the token ids for each trained one."""

    time_ids: torch.Tensor  # (B, 6) float32: bfloat16 would turn 1100 into 1104
    hidden_1: torch.Tensor | None = None  # (B, 75 x pieces + 2, width)
    hidden_2: torch.Tensor | None = None
    pooled: torch.Tensor | None = None  # (B, projection), of the second
    tokens_1: torch.Tensor | None = None  # (B, pieces, 77) int64
    tokens_2: torch.Tensor | None = None


class Denoiser(nn.Module):
    """The UNet, trained or not, and those text encoders that are."""

    def __init__(self, unet: Any, text_encoder_1: Any | None, text_encoder_2: Any | None) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder_1 = text_encoder_1
        self.text_encoder_2 = text_encoder_2

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, given: Conditioning) -> torch.Tensor:
        """What the model predicts: the noise, or v."""
        hidden_1, hidden_2, pooled = given.hidden_1, given.hidden_2, given.pooled
        if self.text_encoder_1 is not None and given.tokens_1 is not None:
            hidden_1, _ = text.states(self.text_encoder_1, given.tokens_1)
        if self.text_encoder_2 is not None and given.tokens_2 is not None:
            hidden_2, pooled = text.states(self.text_encoder_2, given.tokens_2)
        if hidden_1 is None or hidden_2 is None or pooled is None:
            raise ValueError("Denoiser needs, for each text encoder, its states, or the encoder and tokens")
        kind = next(self.unet.parameters()).dtype  # unet.dtype asks every module: 5 % of a small model's step
        hidden = torch.cat([hidden_1.to(kind), hidden_2.to(kind)], -1)
        extra = {"text_embeds": pooled.to(kind), "time_ids": given.time_ids}
        output = self.unet(noisy.to(kind), timesteps, hidden, added_cond_kwargs=extra, return_dict=False)
        prediction: torch.Tensor = output[0]
        return prediction


def build_denoiser(parts: Parts, learn: Learn, compute: Compute, seed: int = 0) -> Denoiser:
    """Join what is trained and freeze the rest; `seed` is for the first values of LoRA's additions."""
    attention.choose(parts.unet, compute)
    modules: dict[PartName, Any] = {name: parts.module(name) for name in ("unet", *TEXT)}
    for name, module in modules.items():
        module.requires_grad_(False)
        if name not in learn.trained:
            module.eval()
        elif learn.lora is not None:
            lora.add(module.train(), name, learn.lora, seed)
        else:
            _thaw(module.train(), name, learn)
    if learn.gradient_checkpointing:
        # A frozen UNet too: the way back to a text encoder leads through its activations.
        parts.unet.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False))
        for name in TEXT:
            if name in learn.trained:
                modules[name].activation_checkpointing_enable({"use_reentrant": False})
    one, two = (modules[name] if name in learn.trained else None for name in TEXT)
    return Denoiser(parts.unet, one, two)


def _thaw(module: Any, name: PartName, learn: Learn) -> None:
    """Let a frozen part's weights move, as far as they are chosen and used."""
    if name == "unet" and learn.unet is not None:
        weights = dict(module.named_parameters())
        for chosen in selection.selected(weights, learn.unet.parts):
            weights[chosen].requires_grad_(True)
        return
    module.requires_grad_(True)
    if name == "text_encoder_1":
        # Without a gradient for them, data parallelism would wait for one.
        for idle in text.unused(module):
            idle.requires_grad_(False)


def compile_unet(denoiser: Denoiser, sizes: int) -> None:
    """Compile the UNet in place, once for each of `sizes` bucket sizes; names of weights stay as they are."""
    # Beyond its limits torch would go on uncompiled, and only log it.
    limit = _COMPILES_PER_SIZE * sizes
    settings = torch.compiler.config
    settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, limit)
    denoiser.unet.compile(dynamic=False, recompile_limit=limit)


@dataclass(frozen=True, slots=True)
class Formats:
    """Number formats of what is frozen."""

    vae: Dtype = "fp32"
    text: Dtype = "fp32"


class Encoders:
    """The frozen part of the model, with a memory of what it has encoded."""

    def __init__(
        self, parts: Parts, denoiser: Denoiser, device: str, tokens: int = text.PIECE, formats: Formats = Formats()
    ) -> None:
        self.vae = _frozen(parts.vae, device, formats.vae)
        frozen_1, frozen_2 = denoiser.text_encoder_1 is None, denoiser.text_encoder_2 is None
        self.text_encoder_1 = _frozen(parts.text_encoder_1, device, formats.text) if frozen_1 else None
        self.text_encoder_2 = _frozen(parts.text_encoder_2, device, formats.text) if frozen_2 else None
        text.check_end(parts.text_encoder_2, parts.tokenizers[1])
        self._tokenizers = parts.tokenizers
        self._longest = tokens
        self.device = device
        self._moments: dict[int, torch.Tensor] = {}
        self._texts: dict[str, tuple[torch.Tensor, ...]] = {}
        self._free = _CACHE_BYTES

    def known(self, index: int) -> bool:
        """Whether a sample's latents are in memory, so that its picture need not be decoded."""
        return index in self._moments

    @property
    def factor(self) -> int:
        """Pixels for one latent, 8 for SDXL."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def latents(self, batch: Batch, draw: objective.Draw) -> torch.Tensor:
        """Scaled latents of a batch, float32, sampled with the draw's own noise."""
        if batch.pixels is None:
            moments = torch.stack([self._moments[i] for i in batch.indices]).to(self.device)
        else:
            pixels = (batch.pixels.to(self.device).float() / 127.5 - 1).to(self.vae.dtype)
            # One by one: kernels differ with the batch, and a sample's latents must not depend, in any bit, on
            # which others it is encoded with: else a resumed run would not repeat the one that was interrupted.
            each = [self.vae.encode(one).latent_dist.parameters for one in pixels.split(1)]
            # and in one layout: sums are added up in memory's order
            moments = torch.cat(each).float().contiguous()
            for index, row in zip(batch.indices, moments.cpu(), strict=True):
                _refuse_overflow(index, row, self.vae.dtype)
                if index not in self._moments and self._reserve(row):
                    self._moments[index] = row.clone()
        mean, log_variance = moments.chunk(2, 1)
        spread = torch.exp(0.5 * log_variance.clamp(-30, 20))
        sampled = mean + spread * draw.latent_noise.to(self.device)
        return sampled * float(self.vae.config.scaling_factor)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Shape of one sample's latents."""
        channels = int(self.vae.config.latent_channels)
        return channels, height // self.factor, width // self.factor

    def tokens(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids for both encoders, (B, pieces, 77), on the device."""
        one, two = (text.token_ids(t, captions, self._longest).to(self.device) for t in self._tokenizers)
        return one, two

    @torch.no_grad()
    def condition(self, captions: list[str], time_ids: torch.Tensor) -> Conditioning:
        """Everything that the UNet is told about a batch."""
        one, two = self.text_encoder_1, self.text_encoder_2
        ids_1, ids_2 = self.tokens(captions) if one is None or two is None else (None, None)
        told = self._states(captions) if one is not None or two is not None else []
        hidden_1 = told.pop(0) if one is not None else None
        hidden_2, pooled = told if two is not None else (None, None)
        return Conditioning(
            time_ids.to(self.device),
            hidden_1=hidden_1,
            hidden_2=hidden_2,
            pooled=pooled,
            tokens_1=ids_1 if one is None else None,
            tokens_2=ids_2 if two is None else None,
        )

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels in [0, 255], uint8 (B, H, W, 3), on the CPU."""
        scaled = latents.float() / float(self.vae.config.scaling_factor)
        pictures = self.vae.decode(scaled.to(self.vae.dtype)).sample.float()
        return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu()

    def _states(self, captions: list[str]) -> list[torch.Tensor]:
        """What the frozen encoders say: states of the first, states and pooled of the second, as far as frozen."""
        new = [c for c in dict.fromkeys(captions) if c not in self._texts]
        fresh: dict[str, tuple[torch.Tensor, ...]] = {}
        for caption in new:  # one by one, for the same reason as latents
            encoders = zip((self.text_encoder_1, self.text_encoder_2), self.tokens([caption]), strict=True)
            found = [text.states(encoder, ids) for encoder, ids in encoders if encoder is not None]
            row = tuple(column[0] for pair in found for column in pair if column is not None)
            fresh[caption] = row
            if self._reserve(*row):
                self._texts[caption] = tuple(t.to("cpu", copy=True) for t in row)
        rows = [fresh[c] if c in fresh else self._texts[c] for c in captions]
        return [torch.stack([t.to(self.device) for t in column]) for column in zip(*rows, strict=True)]

    def _reserve(self, *tensors: torch.Tensor) -> bool:
        size = sum(t.numel() * t.element_size() for t in tensors)
        if size > self._free:
            return False
        self._free -= size
        return True


def _frozen(module: Any, device: str, kind: Dtype) -> Any:
    # past diffusers' own `to`, which warns of a cast even where there is none
    nn.Module.to(module, device=device, dtype=DTYPES[kind])
    return module.eval().requires_grad_(False)


def _refuse_overflow(index: int, moments: torch.Tensor, kind: torch.dtype) -> None:
    """SDXL's own VAE does this in half precision; every loss after it would be no number."""
    if not moments.isfinite().all():
        raise RunError(
            "nan",
            f"The VAE's latents of sample {index} are not finite in {str(kind).removeprefix('torch.')}.",
            "Set compute.vae_dtype: fp32, or vae: to one that was repaired for half precision.",
            everywhere=False,
        )
