"""The SDXL training objective: tensors in, loss out. No model, no files, no global state.

Owns the noise schedule, the random draw, the micro-conditioning ids, the target, the loss and its
weights, and the way back from noise to a picture. Refuses an objective that cannot be learned.

Every random number of a sample is a function of (seed, epoch, sample index), so that the loss of a
step does not depend on how many ranks share it, on resuming, or on what was drawn before. In full:

    key           key(seed, epoch, index, "noise"), 63 bits
    timestep      from the chance ((key >> 11) + 1/2) / 2^52, through `Objective.timestep`
    generator     torch.Generator().manual_seed(key), on the CPU so that all devices agree; then in order
    noise, the VAE's own sampling noise         randn(2, C, H, W)
    if noise_offset, one number for a channel   randn(C)
    if input_perturbation                       randn(C, H, W)

Torch's CPU generator reads the low 32 bits of its seed. Two samples in four billion therefore share
their noise; not their timestep, which comes from the high bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from torch.nn.functional import mse_loss

from clusterft_trainer import config
from clusterft_trainer.buckets import Bucket, Fit
from clusterft_trainer.errors import ConfigError

_DEBIASED_MOST = 1000.0  # SNR that the debiased weight stops at, as in kohya's trainer
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Schedule:
    """The diffusion process: how much of the picture is left at each timestep."""

    alphas_cumprod: torch.Tensor  # float64, on the CPU

    @property
    def steps(self) -> int:
        """Number of timesteps, 1000 for SDXL."""
        return len(self.alphas_cumprod)

    @property
    def snr(self) -> torch.Tensor:
        """Signal to noise ratio of each timestep, float64; 0 where nothing of the picture is left."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    def with_zero_terminal_snr(self) -> Schedule:
        """Shift and scale the signal's factor: the first stays, the last is 0 (Lin et al. 2305.08891, alg. 1)."""
        signal = self.alphas_cumprod.sqrt()
        first, last = signal[0], signal[-1]
        return Schedule(((signal - last) * (first / (first - last))) ** 2)


@dataclass(frozen=True, slots=True)
class Draw:
    """The random part of one micro-batch, and what follows from its timesteps."""

    timesteps: torch.Tensor  # (B,) int64
    noise: torch.Tensor  # (B, C, H, W) float32, with its offset: what there is to predict
    seen: torch.Tensor  # the noise that is mixed in: the same, or with a perturbation on top
    latent_noise: torch.Tensor  # the VAE's own sampling noise
    factors: torch.Tensor  # (4, B) float32: of picture, of noise; the loss's weight; its delta

    def to(self, device: torch.device | str) -> Draw:
        """The same on another device."""
        noise = self.noise.to(device)
        return Draw(
            timesteps=self.timesteps.to(device),
            noise=noise,
            seen=noise if self.seen is self.noise else self.seen.to(device),
            latent_noise=self.latent_noise.to(device),
            factors=self.factors.to(device),
        )

    @property
    def signal(self) -> torch.Tensor:
        """How much of the picture is left, (B, 1, 1, 1)."""
        return self.factors[0].view(-1, 1, 1, 1)

    @property
    def spread(self) -> torch.Tensor:
        """How much noise is mixed in, (B, 1, 1, 1)."""
        return self.factors[1].view(-1, 1, 1, 1)


@dataclass(frozen=True, slots=True)
class Objective:
    """What is learned, for one model and one section of settings; made by `build`."""

    settings: config.Objective
    schedule: Schedule
    prediction: Literal["epsilon", "v"]
    table: torch.Tensor  # (4, steps) float32, on the CPU: the factors of a draw, for each timestep

    def timestep(self, chance: float) -> int:
        """The timestep that a number in (0, 1) stands for."""
        chosen = self.settings.timesteps
        if chosen.kind == "cubic":  # T2I-Adapter, 2302.08453, section 3.4
            chance = 1 - chance**3
        elif chosen.kind == "logit-normal":  # SD3, 2403.03206, section 3.1; tanh cannot overflow
            chance = 0.5 + 0.5 * math.tanh((chosen.mean + chosen.spread * _NORMAL.inv_cdf(chance)) / 2)
        return self._within(chance)

    def draw(self, keys: Sequence[int], shape: tuple[int, ...]) -> Draw:
        """Timestep and noise of each sample from its own key; safe to call from several threads."""
        times = [self.timestep(((k >> 11) + 0.5) / 2**52) for k in keys]
        return self._noised(keys, times, shape, self.settings.input_perturbation)

    def fixed_draw(
        self, indices: Sequence[int], level: int, levels: int, seed: int, shape: tuple[int, ...]
    ) -> Draw:
        """What never changes while a model is trained: evenly spread timesteps, noise by (seed, index, level).

        Without input perturbation, which is there to make training harder.
        """
        keys = [key(seed, level, i, "held-out") for i in indices]
        times = [self._within((level + 0.5) / levels)] * len(keys)
        return self._noised(keys, times, shape, 0.0)

    def noisy(self, latents: torch.Tensor, drawn: Draw) -> torch.Tensor:
        """The forward process: what the model sees."""
        return torch.addcmul(drawn.signal * latents, drawn.spread, drawn.seen)

    def target(self, latents: torch.Tensor, drawn: Draw) -> torch.Tensor:
        """What the model should answer."""
        if self.prediction == "epsilon":
            return drawn.noise
        return drawn.signal * drawn.noise - drawn.spread * latents

    def losses(self, prediction: torch.Tensor, latents: torch.Tensor, drawn: Draw) -> torch.Tensor:
        """The weighted loss of each sample, (B,), in float32 whatever the model computes in."""
        squares = mse_loss(prediction.float(), self.target(latents, drawn), reduction="none")
        if self.settings.loss != "mse":
            # Pseudo-Huber as kohya and diffusers have it: 2 delta (sqrt(d^2 + delta^2) - delta), and 2 (...) for
            # smooth-l1; written so that small differences do not cancel out.
            delta = drawn.factors[3].view(-1, 1, 1, 1)
            squares = 2 * squares / ((squares + delta.square()).sqrt() + delta)
            if self.settings.loss == "huber":
                squares = squares * delta
        losses = squares.flatten(1).mean(1)
        return losses * drawn.factors[2] if self.weighs else losses

    @property
    def weighs(self) -> bool:
        """Whether noise levels count differently."""
        return self.settings.min_snr is not None or self.settings.debiased

    def denoise_times(self, count: int) -> list[int]:
        """Timesteps of a short sampling run, noisiest first, ending above the least noisy ("trailing").

        They begin at the very last timestep, without which zero terminal SNR would be for nothing.
        """
        steps = self.schedule.steps
        count = min(count, steps)
        return [round(steps * (1 - i / count)) - 1 for i in range(count)]

    def denoise(self, latents: torch.Tensor, output: torch.Tensor, now: int, then: int | None) -> torch.Tensor:
        """One deterministic (DDIM) step from timestep `now` to `then`; None is the clean picture."""
        kept = float(self.schedule.alphas_cumprod[now])
        signal, spread = kept**0.5, (1 - kept) ** 0.5
        if self.prediction == "v":
            clean, noise = signal * latents - spread * output, signal * output + spread * latents
        else:
            clean, noise = (latents - spread * output) / signal, output
        if then is None:
            return clean
        target = float(self.schedule.alphas_cumprod[then])
        return target**0.5 * clean + (1 - target) ** 0.5 * noise

    def _within(self, chance: float) -> int:
        """The trained timestep at a share of the way from the least noisy to the noisiest."""
        chosen = self.settings.timesteps
        return min(chosen.last, chosen.first + int(chance * (chosen.last - chosen.first + 1)))

    def _noised(self, keys: Sequence[int], times: list[int], shape: tuple[int, ...], perturbation: float) -> Draw:
        """The recipe of the module's text; one generator and few calls, since every step waits for it."""
        offset = self.settings.noise_offset
        pairs = torch.empty((len(keys), 2, *shape))
        shifts = torch.empty((len(keys), shape[0])) if offset else None
        extra = torch.empty((len(keys), *shape)) if perturbation else None
        generator = torch.Generator()
        for number, sample_key in enumerate(keys):
            generator.manual_seed(sample_key)
            pairs[number].normal_(generator=generator)
            if shifts is not None:
                shifts[number].normal_(generator=generator)
            if extra is not None:
                extra[number].normal_(generator=generator)
        noise, latent_noise = pairs.unbind(1)
        if shifts is not None:
            noise = noise + offset * shifts.view(*shifts.shape, *[1] * (len(shape) - 1))
        seen = noise if extra is None else noise + perturbation * extra
        timesteps = torch.tensor(times)
        return Draw(timesteps, noise, seen, latent_noise, self.table[:, timesteps])


def build(
    settings: config.Objective,
    *,
    steps: int,
    beta_start: float,
    beta_end: float,
    prediction: Literal["epsilon", "v"],
    zero_terminal_snr: bool,
) -> Objective:
    """The objective for a model whose `prediction` and `zero_terminal_snr` the settings have decided already."""
    if settings.prediction not in ("auto", prediction):
        raise ValueError(f"{prediction} is built, but the settings ask for {settings.prediction}")
    if prediction == "epsilon" and zero_terminal_snr:
        raise ConfigError(
            "A model that predicts epsilon cannot be trained with zero terminal SNR: its last timestep is pure "
            "noise, which holds the whole answer and nothing of the picture.",
            "Set objective.prediction: v, or objective.zero_terminal_snr: false.",
        )
    if settings.timesteps.last >= steps:
        raise ConfigError(
            f"objective.timesteps.last: {settings.timesteps.last} lies behind the model's last timestep.",
            f"Set it to {steps - 1} or less: the model has {steps} timesteps.",
        )
    plain = scaled_linear(steps, beta_start, beta_end)
    schedule = plain.with_zero_terminal_snr() if zero_terminal_snr else plain
    snr = (plain if settings.snr_of == "plain" else schedule).snr
    rows = (
        schedule.alphas_cumprod.sqrt(),
        (1 - schedule.alphas_cumprod).sqrt(),
        _weights(settings, prediction, snr),
        _deltas(settings, schedule),
    )
    return Objective(settings, schedule, prediction, torch.stack(rows).float())


def scaled_linear(steps: int, first: float, last: float) -> Schedule:
    """Latent diffusion's schedule: betas are linear in their square root."""
    betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    return Schedule(torch.cumprod(1 - betas, 0))


def key(seed: int, epoch: int, index: int, purpose: str) -> int:
    """A 63-bit number that belongs to one sample in one epoch, for one purpose."""
    text = f"{purpose}:{seed}:{epoch}:{index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def weighted(losses: torch.Tensor, weights: torch.Tensor, real: int, copies: int) -> torch.Tensor:
    """A rank's part of the global mean.

    Gradients are averaged over ranks and micro-batches afterwards; `copies` = ranks x micro-batches
    cancels that, so each of the step's `real` samples has weight 1 / real wherever it is computed.
    """
    return (losses * weights).sum() * (copies / real)


def time_ids(size: tuple[int, int], fit: Fit, bucket: Bucket, crop: Literal["true", "kohya"]) -> list[float]:
    """SDXL's six numbers: original height and width, top and left of the crop, target height and width."""
    left, top = (fit.left, fit.top) if crop == "true" else _letterbox(size, bucket)
    return [float(n) for n in (size[1], size[0], top, left, bucket.height, bucket.width)]


def _letterbox(size: tuple[int, int], bucket: Bucket) -> tuple[float, float]:
    """Left and top that kohya's trainer tells the model: the picture laid inside of the bucket, nothing cut off.

    In floating point and rounded down, as it does, so that a model trained there sees the same numbers here.
    """
    ratio = size[0] / size[1]
    if bucket.width / bucket.height > ratio:
        return (bucket.width - bucket.height * ratio) // 2, 0.0
    return 0.0, (bucket.height - bucket.width / ratio) // 2


def _weights(settings: config.Objective, prediction: str, snr: torch.Tensor) -> torch.Tensor:
    """How much each timestep counts, float64."""
    if settings.min_snr is not None:  # 2303.09556, section 3.4: min(SNR, gamma) on x0, told in what is predicted
        counted = snr.clamp(max=settings.min_snr)
        # 0 at a terminal SNR of 0, as the formula says: snr_of: plain lets that timestep count a little
        return counted / snr if prediction == "epsilon" else counted / (snr + 1)
    if settings.debiased:  # 2310.08442
        counted = snr.clamp(max=_DEBIASED_MOST)
        return counted.rsqrt() if prediction == "epsilon" else 1 / (counted + 1)
    return torch.ones_like(snr)


def _deltas(settings: config.Objective, schedule: Schedule) -> torch.Tensor:
    """Where huber and smooth-l1 turn linear: 1 where there is no noise, huber_delta where there is nothing else.

    The forms of kohya's and diffusers' huber_schedule (2403.16728), float64.
    """
    least, kept = settings.huber_delta, schedule.alphas_cumprod
    if settings.huber_schedule == "exponential":
        return torch.exp(math.log(least) * torch.arange(schedule.steps, dtype=torch.float64) / schedule.steps)
    if settings.huber_schedule == "snr":
        sigma = ((1 - kept) / kept).sqrt()  # infinite at a terminal SNR of 0, where delta is the least
        return (1 - least) / (1 + sigma) ** 2 + least
    return torch.full_like(kept, least)
