"""One optimizer step: forward and backward over a rank's micro-batches, then the weights move.

Owns the way from a decoded batch to a loss. Refuses to go on after a loss or a gradient that is not a number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from clusterft_trainer import objective
from clusterft_trainer.dataset import Batch, Work
from clusterft_trainer.engine.base import Engine
from clusterft_trainer.errors import RunError, storing
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
    each: torch.Tensor  # loss of each sample that this rank has computed, still on the device


def take(learner: Learner, work: Work, step: int) -> Outcome:
    """One step. What draws from torch's own generator gets the same numbers on every rank and in every resume."""
    torch.manual_seed(objective.key(learner.seed, 0, step, "step"))
    engine = learner.engine
    losses: list[torch.Tensor] = []
    all_each: list[torch.Tensor] = []
    for number, batch in enumerate(work.micro):
        with engine.micro(last=number == len(work.micro) - 1):
            each = sample_losses(learner, batch, work.position.epoch)
            loss = objective.weighted(each, batch.weights.to(each.device), work.real, engine.averages)
            engine.backward(loss)
        losses.append(loss.detach())
        all_each.append(each.detach())
    moved = engine.step()
    # asked for only now: it waits for the device
    total = float(torch.stack(losses).sum()) / engine.averages
    return Outcome(total, moved.norm, moved.applied, torch.cat(all_each))


def sample_losses(learner: Learner, batch: Batch, epoch: int) -> torch.Tensor:
    """The loss of each sample of a micro-batch."""
    encoders, learned = learner.encoders, learner.objective
    shape = encoders.latent_shape(batch.bucket.width, batch.bucket.height)
    keys = [objective.key(learner.seed, epoch, i, "noise") for i in batch.indices]
    drawn = learned.draw(keys, shape).to(encoders.device)
    latents = encoders.latents(batch, drawn)
    given = encoders.told(batch)
    prediction = learner.engine.forward(learned.noisy(latents, drawn), drawn.timesteps, given)
    return learned.losses(prediction, latents, drawn)


@dataclass(frozen=True, slots=True)
class Broken:
    """What there is to know about a step that gave no number."""

    step: int
    epoch: int
    loss: float
    norm: float | None  # on the rank that tells
    samples: dict[str, float]  # each sample's loss, by name


def refuse_nan(broken: Broken, dump: Path) -> None:
    """Raise before a step is saved whose weights are, or will be, no numbers; what is known goes into a file."""
    body = {key: _spelled(value) for key, value in asdict(broken).items()}
    with storing("What is known of the broken step, in", dump):
        dump.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    what = (
        f"loss of step {broken.step} is {broken.loss}"
        if not math.isfinite(broken.loss)
        else f"gradient of step {broken.step} is not finite"
    )
    names = [n for n, loss in broken.samples.items() if not math.isfinite(loss)] or list(broken.samples)
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    raise RunError(
        "nan",
        f"The {what}; its weights are not saved. Samples to look at: {shown}; all of them are in {dump}.",
        "Lower learn.*.rate, or raise learn.warmup_steps; then start again: training "
        "continues from the last checkpoint.",
    )


def _spelled(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {k: _spelled(v) for k, v in value.items()}
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
