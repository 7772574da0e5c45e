"""The SDXL training objective: tensors in, loss out. No model, no files, no global state.

Owns the noise schedule, the noise draw, the micro-conditioning ids and the loss weighting. Every
random number of a sample is a function of (seed, epoch, sample index), so that the loss of a step
does not depend on how many ranks share it, on resuming, or on what was drawn before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from clusterft_trainer.buckets import Bucket, Fit


@dataclass(frozen=True, slots=True)
class Schedule:
    """The diffusion process: how much of the picture is left at each timestep."""

    alphas_cumprod: torch.Tensor  # float64, on the CPU

    @property
    def steps(self) -> int:
        """Number of timesteps, 1000 for SDXL."""
        return len(self.alphas_cumprod)

    def at(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors of picture and noise, float32, shaped to multiply (B, C, H, W)."""
        kept = self.alphas_cumprod[timesteps.cpu()].view(-1, 1, 1, 1)
        signal, noise = kept.sqrt().float(), (1 - kept).sqrt().float()
        return signal.to(timesteps.device), noise.to(timesteps.device)


@dataclass(frozen=True, slots=True)
class Draw:
    """The random part of one micro-batch."""

    timesteps: torch.Tensor  # (B,) int64
    noise: torch.Tensor  # (B, C, H, W) float32
    latent_noise: torch.Tensor  # the VAE's own sampling noise


def scaled_linear(steps: int, first: float, last: float) -> Schedule:
    """Latent diffusion's schedule: betas are linear in their square root."""
    betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    return Schedule(torch.cumprod(1 - betas, 0))


def key(seed: int, epoch: int, index: int, purpose: str) -> int:
    """A 63-bit number that belongs to one sample in one epoch, for one purpose."""
    text = f"{purpose}:{seed}:{epoch}:{index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def draw(keys: list[int], shape: tuple[int, ...], schedule: Schedule) -> Draw:
    """Timestep and noise of each sample from its own generator, on the CPU so that all devices agree."""
    timesteps, noises, latent_noises = [], [], []
    for sample_key in keys:
        generator = torch.Generator().manual_seed(sample_key)
        timesteps.append(torch.randint(schedule.steps, (1,), generator=generator))
        noises.append(torch.randn(shape, generator=generator))
        latent_noises.append(torch.randn(shape, generator=generator))
    return Draw(torch.cat(timesteps), torch.stack(noises), torch.stack(latent_noises))


def noisy(latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, schedule: Schedule) -> torch.Tensor:
    """The forward process."""
    signal, spread = schedule.at(timesteps)
    return signal * latents + spread * noise


def time_ids(width: int, height: int, fit: Fit, bucket: Bucket) -> list[float]:
    """SDXL's six size numbers: original size, the crop that was really applied, target size."""
    return [float(n) for n in (height, width, fit.top, fit.left, bucket.height, bucket.width)]


def sample_losses(prediction: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each sample, in float32 whatever the model computes in."""
    return (prediction.float() - noise.float()).square().flatten(1).mean(1)


def weighted(losses: torch.Tensor, weights: torch.Tensor, real: int, copies: int) -> torch.Tensor:
    """A rank's part of the global mean.

    Gradients are averaged over ranks and micro-batches afterwards; `copies` = ranks x micro-batches
    cancels that, so each of the step's `real` samples has weight 1 / real wherever it is computed.
    """
    return (losses * weights).sum() * (copies / real)


def denoise_times(schedule: Schedule, count: int) -> list[int]:
    """Timesteps of a short sampling run, noisiest first, evenly spread."""
    count = min(count, schedule.steps)
    return [round((schedule.steps - 1) * (1 - i / count)) for i in range(count)]


def denoise(
    latents: torch.Tensor, noise: torch.Tensor, now: int, then: int | None, schedule: Schedule
) -> torch.Tensor:
    """One deterministic (DDIM) step from timestep `now` to `then`; None is the clean picture."""
    kept = float(schedule.alphas_cumprod[now])
    clean = (latents - (1 - kept) ** 0.5 * noise) / kept**0.5
    if then is None:
        return clean
    target = float(schedule.alphas_cumprod[then])
    return target**0.5 * clean + (1 - target) ** 0.5 * noise
