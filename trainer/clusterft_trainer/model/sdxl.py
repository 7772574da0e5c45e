"""The SDXL model while it is trained: frozen encoders outside, one trained module inside.

Owns Denoiser, which holds everything that is trained because an engine takes exactly one module, what of it is
frozen, and Encoders: the VAE and the untrained text encoders, which stay outside of the engine, as it would cast
and count them. Names of weights begin with the part: unet, text_encoder_1, text_encoder_2. Refuses to read files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import xxhash
from torch import nn
from torch.utils.checkpoint import checkpoint

from clusterft_trainer import objective
from clusterft_trainer.config import Compute, Learn, PartName
from clusterft_trainer.config.base import Dtype
from clusterft_trainer.dataset import Batch, Tokens
from clusterft_trainer.errors import RunError
from clusterft_trainer.model import attention, layout, lora, selection, text
from clusterft_trainer.model.parts import Parts
from clusterft_trainer.words import PIECE

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
TEXT: tuple[PartName, PartName] = ("text_encoder_1", "text_encoder_2")
_CACHE_BYTES = 2 << 30  # latents and text states that a rank keeps in memory
# A size is compiled for training, for held-out loss and for samples, each with its own number of samples.
_COMPILES_PER_SIZE = 4
_BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D", "CLIPEncoderLayer")


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


def compile_blocks(denoiser: Denoiser, sizes: int) -> None:
    """Compile blocks in place, each kind once for each of `sizes` bucket sizes; names of weights stay as they are.

    Not the whole UNet: its 70 transformer blocks are of two kinds and its 17 of convolutions of twelve, so less
    is compiled, and backward still hands over its gradients block by block.
    """
    blocks = [block for block in denoiser.modules() if type(block).__name__ in _BLOCKS]
    kinds = len({_kind(block) for block in blocks})
    # Beyond its limits torch would go on uncompiled, and only log it.
    limit = _COMPILES_PER_SIZE * sizes * kinds
    settings = torch.compiler.config
    settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, limit)
    for block in blocks:
        block.compile(dynamic=False, recompile_limit=limit)


def _kind(block: nn.Module) -> tuple[object, ...]:
    return type(block), tuple((name, tuple(weight.shape)) for name, weight in block.named_parameters())


@dataclass(frozen=True, slots=True)
class Formats:
    """Number formats of what is frozen."""

    vae: Dtype = "fp32"
    text: Dtype = "fp32"
    take: Literal["mean", "sample"] = "sample"  # of what the VAE says of a picture


class Encoders:
    """The frozen part of the model, with a memory of what it has encoded."""

    def __init__(
        self, parts: Parts, denoiser: Denoiser, device: str, tokens: int = PIECE, formats: Formats = Formats()
    ) -> None:
        self.vae = _frozen(parts.vae, device, formats.vae)
        frozen_1, frozen_2 = denoiser.text_encoder_1 is None, denoiser.text_encoder_2 is None
        self.text_encoder_1 = _frozen(parts.text_encoder_1, device, formats.text) if frozen_1 else None
        self.text_encoder_2 = _frozen(parts.text_encoder_2, device, formats.text) if frozen_2 else None
        text.check_end(parts.text_encoder_2, parts.tokenizers[1])
        self.words = text.words(parts.tokenizers, tokens)
        self._take = formats.take
        self.device = device
        self._moments: dict[int, torch.Tensor] = {}
        self._texts: dict[str, tuple[torch.Tensor, ...]] = {}
        self._free = _CACHE_BYTES

    def known(self, key: int) -> bool:
        """Whether the latents of a batch's key are in memory, so that its picture need not be decoded."""
        return key in self._moments

    @property
    def factor(self) -> int:
        """Pixels for one latent, 8 for SDXL."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def latents(self, batch: Batch, draw: objective.Draw) -> torch.Tensor:
        """Scaled latents of a batch, float32: cached as they are, others sampled with the draw's own noise."""
        scale = float(self.vae.config.scaling_factor)
        if not batch.places and batch.latents is not None:
            return batch.latents.to(self.device, non_blocking=True) * scale
        places = list(batch.places)
        mean, log_variance = self._encoded(batch).chunk(2, 1)
        made = mean
        if self._take == "sample":
            spread = torch.exp(0.5 * log_variance.clamp(-30, 20))
            made = mean + spread * draw.latent_noise.to(self.device)[places]
        if batch.latents is not None:
            whole = batch.latents.to(self.device, copy=True)
            whole[places] = made
            made = whole
        return made * scale

    def _encoded(self, batch: Batch) -> torch.Tensor:
        """What the VAE says of those pictures of a batch that are not cached, made now or remembered."""
        keys = [batch.keys[p] for p in batch.places]
        if batch.pixels is None:
            return torch.stack([self._moments[key] for key in keys]).to(self.device)
        pixels = (batch.pixels.to(self.device, non_blocking=True).float() / 127.5 - 1).to(self.vae.dtype)
        # One by one: kernels differ with the batch, and a sample's latents must not depend, in any bit, on
        # which others it is encoded with: else a resumed run would not repeat the one that was interrupted.
        each = [self.vae.encode(one).latent_dist.parameters for one in pixels.split(1)]
        # and in one layout: sums are added up in memory's order
        moments = torch.cat(each).float().contiguous()
        for place, key, row in zip(batch.places, keys, moments.cpu(), strict=True):
            _refuse_overflow(batch.indices[place], row, self.vae.dtype)
            if key not in self._moments and self._reserve(row):
                self._moments[key] = row.clone()
        return moments

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Shape of one sample's latents."""
        channels = int(self.vae.config.latent_channels)
        return channels, height // self.factor, width // self.factor

    def tokens(self, captions: list[str]) -> Tokens:
        """Token ids for both encoders, (B, pieces, 77), on the device."""
        one, two = (ids.to(self.device) for ids in text.all_ids(self.words, captions))
        return one, two

    def told(self, batch: Batch) -> Conditioning:
        """Everything that the UNet is told about a batch."""
        return self.condition(batch.captions, batch.time_ids, batch.tokens, batch.states)

    @torch.no_grad()
    def condition(
        self,
        captions: list[str],
        time_ids: torch.Tensor,
        tokens: Tokens | None = None,
        states: tuple[torch.Tensor, ...] | None = None,
    ) -> Conditioning:
        """The same for any captions; what is known of them already is given."""
        one, two = self.text_encoder_1, self.text_encoder_2
        ids_1 = ids_2 = hidden_1 = hidden_2 = pooled = None
        if one is None or two is None:
            given = self.tokens(captions) if tokens is None else tokens
            ids_1, ids_2 = (ids.to(self.device, non_blocking=True) for ids in given)
        if states is not None:
            hidden_1, hidden_2, pooled = (row.to(self.device, non_blocking=True) for row in states)
        elif one is not None or two is not None:
            said = self._states(captions, tokens)
            hidden_1 = said.pop(0) if one is not None else None
            hidden_2, pooled = said if two is not None else (None, None)
        return Conditioning(
            time_ids.to(self.device, non_blocking=True),
            hidden_1=hidden_1 if one is not None else None,
            hidden_2=hidden_2 if two is not None else None,
            pooled=pooled if two is not None else None,
            tokens_1=ids_1 if one is None else None,
            tokens_2=ids_2 if two is None else None,
        )

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels in [0, 255], uint8 (B, H, W, 3), on the CPU."""
        scaled = latents.float() / float(self.vae.config.scaling_factor)
        pictures = self.vae.decode(scaled.to(self.vae.dtype)).sample.float()
        return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu()

    def _states(self, captions: list[str], tokens: Tokens | None) -> list[torch.Tensor]:
        """What the frozen encoders say: states of the first, states and pooled of the second, as far as frozen."""
        new = [c for c in dict.fromkeys(captions) if c not in self._texts]
        fresh: dict[str, tuple[torch.Tensor, ...]] = {}
        for caption in new:  # one by one, for the same reason as latents
            at = captions.index(caption)
            ids = self.tokens([caption]) if tokens is None else [t[at : at + 1].to(self.device) for t in tokens]
            encoders = zip((self.text_encoder_1, self.text_encoder_2), ids, strict=True)
            found = [text.states(encoder, row) for encoder, row in encoders if encoder is not None]
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


def identity(modules: Sequence[Any], kind: Dtype, beside: str = "") -> str:
    """What tells frozen modules from others, in whichever files they lie: a hash of every weight, of the number
    format that they compute in, and of what else decides."""
    state = xxhash.xxh3_128(f"{kind}:{beside}".encode())
    for module in modules:
        for name, weight in sorted(module.state_dict().items()):
            state.update(f"{layout.plain(name)}:{weight.dtype}:{tuple(weight.shape)}".encode())
            state.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def _refuse_overflow(index: int, moments: torch.Tensor, kind: torch.dtype) -> None:
    """SDXL's own VAE does this in half precision; every loss after it would be no number."""
    if not moments.isfinite().all():
        raise RunError(
            "nan",
            f"The VAE's latents of sample {index} are not finite in {str(kind).removeprefix('torch.')}.",
            "Set compute.vae_dtype: fp32, or vae: to one that was repaired for half precision.",
            everywhere=False,
        )
