"""FLOPs of training on one sample, for any bucket.

Counted by running the modules on the meta device, never derived from a rule of thumb; multiply and add are two.
Useful is what the mathematics needs: forward, and backward as far as something trained lies there. What gradient
checkpointing or an attention kernel computes a second time is no useful work, and what frozen encoders do is told
apart. Refuses to touch a live module: it is copied without its weights first.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.utils.checkpoint import checkpoint

from clusterft_trainer.estimate import blueprint
from clusterft_trainer.estimate.blueprint import Modules
from clusterft_trainer.estimate.meter import Kernels, Meter
from clusterft_trainer.model import text

IDS = text.PIECE + 2


@dataclass(frozen=True, slots=True)
class StepFlops:
    """FLOPs for one sample."""

    forward: int  # of what is trained, and of what lies between that and the loss
    backward: int
    text: int  # frozen text encoders, where their states are not in memory
    vae: int  # encoding the picture, where its latents are not in memory

    @property
    def useful(self) -> int:
        """What MFU counts: neither frozen encoders nor anything computed twice."""
        return self.forward + self.backward


@dataclass(frozen=True, slots=True)
class Ran:
    """What one forward and backward of a batch came to."""

    forward: int  # FLOPs
    backward: int  # FLOPs, recomputation included
    kept: int  # bytes alive between forward and backward
    peak: int  # bytes alive at the worst moment, weights and finished gradients excepted


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward and backward is made with."""

    samples: int
    width: int  # pixels
    height: int
    tokens: int = text.PIECE
    low: torch.dtype | None = None  # what autocast casts to
    checkpointing: bool = False
    compiled: bool = False  # the blocks
    hold: bool = False  # keep the gradients, as a single process does until its step


def count(modules: Modules, width: int, height: int, tokens: int = text.PIECE) -> StepFlops:
    """FLOPs of one sample of width x height pixels with captions of up to `tokens` ids."""
    ran = run(modules, Batch(1, width, height, tokens))
    encoded = encoding(modules, Batch(1, width, height, tokens))
    return StepFlops(ran.forward, ran.backward, encoded.text, encoded.vae)


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the frozen encoders come to for a batch."""

    text: int  # FLOPs
    vae: int
    peak: int  # bytes


def encoding(modules: Modules, batch: Batch) -> Encoded:
    """Run the frozen encoders, each in the number format of its weights."""
    frozen, peaks = 0, [0]
    with torch.no_grad():
        for encoder in (modules.text_encoder_1, modules.text_encoder_2):
            if encoder is not None and not trains(encoder):
                meter = _watched(encoder, _ids(batch.samples, batch.tokens), text.states)
                frozen += meter.flops
                peaks.append(meter.peak)
        if modules.vae is None:
            return Encoded(frozen, 0, max(peaks))
        shape = (batch.samples, 3, batch.height, batch.width)
        pixels = torch.empty(shape, device="meta", dtype=modules.vae.dtype)
        meter = _watched(modules.vae, pixels, lambda vae, given: vae.encode(given))
    return Encoded(frozen, meter.flops, max(*peaks, meter.peak))


def run(modules: Modules, batch: Batch) -> Ran:
    """Forward and backward of a batch."""
    encoders = [e for e in (modules.text_encoder_1, modules.text_encoder_2) if e is not None and trains(e)]
    trained = (modules.unet, *encoders)
    inputs = _Inputs(modules, batch)
    meter = Meter(trained)
    kernels = Kernels(meter, batch.low, batch.compiled)
    _checkpoint(modules, kernels if batch.checkpointing else None)
    weights = [w for module in trained for w in module.parameters() if w.requires_grad]
    hooks = [w.register_post_accumulate_grad_hook(_forget) for w in weights if not batch.hold]
    try:
        with meter:
            with kernels:
                hidden, pooled = inputs.conditioning()
                loss = inputs.unet(hidden, pooled).float().square().mean()
                kernels.leave_forward()
            forward, kept = meter.flops, meter.live
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
        for weight in weights:
            weight.grad = None
        _checkpoint(modules, None)
    return Ran(forward, meter.flops - forward, kept, meter.peak)


def _checkpoint(modules: Modules, kernels: Kernels | None) -> None:
    """Switch gradient checkpointing; what is computed anew is computed with the same kernels."""
    encoders = [e for e in (modules.text_encoder_1, modules.text_encoder_2) if e is not None]
    if kernels is None:
        modules.unet.disable_gradient_checkpointing()
        for encoder in encoders:
            encoder.activation_checkpointing_disable()
        return
    again = {"use_reentrant": False, "context_fn": lambda: (contextlib.nullcontext(), kernels)}
    modules.unet.enable_gradient_checkpointing(lambda module, *args: checkpoint(module.__call__, *args, **again))
    for encoder in encoders:
        encoder.activation_checkpointing_enable(again)


def trains(module: Any) -> bool:
    """Whether any of its weights moves."""
    return any(weight.requires_grad for weight in module.parameters())


class StepTable:
    """Useful FLOPs of a sample, by bucket. Nothing is counted before the first question.

    Every operation of SDXL costs a constant, or in proportion to the area, or (attention) to its square. So the
    first three areas that are asked for are counted, a second or two each at full size, and tell all others
    exactly. A size that some level of the UNet would pad is counted by itself.
    """

    def __init__(self, modules: Modules, tokens: int = text.PIECE) -> None:
        self._grid = modules.grid
        self._count = cache(lambda width, height: count(modules, width, height, tokens))
        self._known: dict[int, StepFlops] = {}  # by area, in units of the grid

    def __call__(self, width: int, height: int) -> int:
        """Useful FLOPs of one sample of that size in pixels."""
        return self.whole(width, height).useful

    def whole(self, width: int, height: int) -> StepFlops:
        """All of it."""
        if width % self._grid or height % self._grid:
            padded: StepFlops = self._count(width, height)
            return padded
        area = width * height // self._grid**2
        if area not in self._known:
            enough = len(self._known) >= 3
            self._known[area] = self._fitted(area) if enough else self._count(width, height)
        return self._known[area]

    def _fitted(self, area: int) -> StepFlops:
        points = list(self._known.items())[:3]
        rows = zip(*((f.forward, f.backward, f.text, f.vae) for _, f in points), strict=True)
        return StepFlops(*(_parabola([a for a, _ in points], values, area) for values in rows))


def step_table(denoiser: Any, encoders: Any = None, tokens: int = text.PIECE) -> StepTable:
    """The table of a live `sdxl.Denoiser` and the frozen `sdxl.Encoders` beside it, which are left as they are.

    To be called before an engine wraps the denoiser and before it is compiled. Nothing is counted before the first
    question.
    """
    frozen = (None, None, None)
    if encoders is not None:
        frozen = (encoders.text_encoder_1, encoders.text_encoder_2, encoders.vae)
    given = (denoiser.unet, denoiser.text_encoder_1 or frozen[0], denoiser.text_encoder_2 or frozen[1], frozen[2])
    modules = Modules(*(None if m is None else blueprint.copied(m) for m in given))
    modules.unet.set_attn_processor(AttnProcessor2_0())  # flash and xformers have no meta kernels
    return StepTable(modules, tokens)


class _Inputs:
    """Tensors without storage that the modules take, in the shapes of a batch."""

    def __init__(self, modules: Modules, batch: Batch) -> None:
        self._modules = modules
        self._batch = batch.samples
        self._tokens = batch.tokens
        settings, self._kind = modules.unet.config, modules.unet.dtype
        shape = (
            batch.samples,
            settings.in_channels,
            batch.height // modules.factor,
            batch.width // modules.factor,
        )
        self._latents = torch.empty(shape, device="meta", dtype=self._kind)
        self._times = torch.zeros(batch.samples, device="meta", dtype=torch.int64)
        self._sizes = torch.empty(batch.samples, 6, device="meta")
        self._width = int(settings.cross_attention_dim)
        self._pooled = int(settings.projection_class_embeddings_input_dim - 6 * settings.addition_time_embed_dim)

    def conditioning(self) -> tuple[Any, Any]:
        """Text states: trained encoders run, frozen ones' are there."""
        first, second = self._modules.text_encoder_1, self._modules.text_encoder_2
        pooled = torch.empty(self._batch, self._pooled, device="meta", dtype=self._kind)
        states = []
        for encoder in (first, second):
            if encoder is not None and trains(encoder):
                found, projected = text.states(encoder, _ids(self._batch, self._tokens))
                pooled = pooled if projected is None else projected
                states.append(found)
        rest = self._width - sum(s.shape[-1] for s in states)
        if rest:
            states.append(torch.empty(self._batch, self._tokens + 2, rest, device="meta", dtype=self._kind))
        return torch.cat([s.to(self._kind) for s in states], -1), pooled.to(self._kind)

    def unet(self, hidden: Any, pooled: Any) -> Any:
        """The prediction."""
        told = {"text_embeds": pooled, "time_ids": self._sizes}
        return self._modules.unet(self._latents, self._times, hidden, added_cond_kwargs=told, return_dict=False)[0]


def _ids(batch: int, tokens: int) -> torch.Tensor:
    return torch.zeros(batch, max(1, tokens // text.PIECE), IDS, device="meta", dtype=torch.int64)


def _watched(module: Any, given: torch.Tensor, encode: Any) -> Meter:
    meter = Meter((module,))
    with Kernels(meter, None), meter:
        encode(module, given)
    return meter


def _forget(weight: Any) -> None:
    weight.grad = None  # a finished gradient is the engine's, and counted there


def _parabola(at: list[int], values: tuple[int, ...], area: int) -> int:
    """The value at another place of the parabola through three points, exactly."""
    found = Fraction(0)
    for place, value in zip(at, values, strict=True):
        others = [other for other in at if other != place]
        found += value * Fraction(math.prod(area - o for o in others), math.prod(place - o for o in others))
    return int(found)
