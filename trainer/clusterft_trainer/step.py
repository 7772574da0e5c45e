"""One optimizer step: forward and backward over a rank's micro-batches, then the weights move.

Owns the way from a decoded batch to a loss. Refuses to go on after a loss or a gradient that is not a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from clusterft_trainer import objective
from clusterft_trainer.dataset import Batch, Work
from clusterft_trainer.engine.base import Engine
from clusterft_trainer.errors import RunError
from clusterft_trainer.model.sdxl import Encoders
from clusterft_trainer.objective import Objective

# From width and height of a sample to seconds of one card at its peak; None where the peak is unknown.
Useful = Callable[[int, int], float | None]


def unknown(width: int, height: int) -> float | None:
    """Where there is no card, or none that is known."""
    return None


@dataclass(frozen=True, slots=True)
class Learner:
    """What turns batches into moved weights."""

    engine: Engine
    encoders: Encoders
    objective: Objective
    seed: int
    useful: Useful = unknown  # arithmetic that training cannot do without, for MFU


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one rank knows of a step."""

    loss: float  # this rank's part: all ranks' parts add up to the mean over the global batch
    norm: float | None
    applied: bool


def take(learner: Learner, work: Work, step: int) -> Outcome:
    """One step. What draws from torch's own generator gets the same numbers on every rank and in every resume."""
    torch.manual_seed(objective.key(learner.seed, 0, step, "step"))
    engine = learner.engine
    losses: list[torch.Tensor] = []
    for number, batch in enumerate(work.micro):
        with engine.micro(last=number == len(work.micro) - 1):
            each = sample_losses(learner, batch, work.position.epoch)
            loss = objective.weighted(each, batch.weights.to(each.device), work.real, engine.averages)
            engine.backward(loss)
        losses.append(loss.detach())
    moved = engine.step()
    # asked for only now: it waits for the device
    total = float(torch.stack(losses).sum()) / engine.averages
    return Outcome(total, moved.norm, moved.applied)


def sample_losses(learner: Learner, batch: Batch, epoch: int) -> torch.Tensor:
    """The loss of each sample of a micro-batch."""
    encoders, learned = learner.encoders, learner.objective
    shape = encoders.latent_shape(batch.bucket.width, batch.bucket.height)
    keys = [objective.key(learner.seed, epoch, i, "noise") for i in batch.indices]
    drawn = learned.draw(keys, shape).to(encoders.device)
    latents = encoders.latents(batch, drawn)
    given = encoders.condition(batch.captions, batch.time_ids)
    prediction = learner.engine.forward(learned.noisy(latents, drawn), drawn.timesteps, given)
    return learned.losses(prediction, latents, drawn)


def refuse_nan(step: int, loss: float, broken_gradient: bool, samples: list[str]) -> None:
    """Raise before a step is saved whose weights are, or will be, no numbers."""
    if math.isfinite(loss) and not broken_gradient:
        return
    what = (
        f"loss of step {step} is {loss}" if not math.isfinite(loss) else f"gradient of step {step} is not finite"
    )
    shown = ", ".join(samples[:8]) + (f" and {len(samples) - 8} more" if len(samples) > 8 else "")
    raise RunError(
        "nan",
        f"The {what}; its weights are not saved. The samples of that step: {shown}.",
        "Lower learn.*.rate, or raise learn.warmup_steps; then start again: training "
        "continues from the last checkpoint.",
    )
