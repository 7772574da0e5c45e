"""What can be made of a checkpoint without going on training: an export, sample pictures.

One process, no launcher. Owns the way from a checkpoint's folder to whole weights. Refuses a checkpoint that
is not whole, and one whose files are not what its manifest says.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clusterft_trainer import delivery, dist, metrics, sample
from clusterft_trainer.build import objective_of
from clusterft_trainer.builtin import MODEL, materialise
from clusterft_trainer.checkpoint import shards
from clusterft_trainer.checkpoint.keeper import EMA, WEIGHT
from clusterft_trainer.checkpoint.manifest import NAME, Found, survey
from clusterft_trainer.checkpoint.shards import Shards
from clusterft_trainer.config import Samples, TrainConfig
from clusterft_trainer.dist import Place
from clusterft_trainer.errors import ConfigError, DataError, storing
from clusterft_trainer.model import files, sdxl
from clusterft_trainer.step import Learner


@dataclass(frozen=True, slots=True)
class Chosen:
    """A checkpoint, read."""

    found: Found
    config: TrainConfig
    weights: dict[str, torch.Tensor]
    model: str


def read(folder: Path, *, mean: bool, model: str | None) -> Chosen:
    """Whole weights of a checkpoint, or of a run's newest one; `mean`: the running mean where there is one."""
    found = find(folder)
    m = found.manifest
    for name, said in m.files.items():
        fault = shards.check(found.folder / name, said["size"], said["xxh3"])
        if fault:
            raise DataError(f"{found.folder} is corrupt: {fault}.", "Choose an older checkpoint.")
    try:
        config = TrainConfig.model_validate(m.config)
    except ValueError as error:
        raise ConfigError(
            f"{found.folder} was written by another version: {error}", "Use that version."
        ) from error
    stored = Shards(found.folder, [n for n in m.files if n.endswith(".safetensors")])
    kind = EMA if mean and EMA in stored.kinds else WEIGHT
    weights = {n: stored.read(kind, n, 0, math.prod(shape)).view(shape) for n, shape in stored.shapes.items()}
    weights = _published(config, weights, stored)
    where = model or config.model
    if where == MODEL:
        where = str(materialise("tiny", 0, found.folder.absolute().parents[2] / ".clusterft" / "builtin"))
    return Chosen(found, config, weights, where)


def _published(config: TrainConfig, weights: dict[str, torch.Tensor], stored: Shards) -> dict[str, torch.Tensor]:
    """schedule-free-adamw trains one set of weights and publishes another, which follows from its state."""
    if config.learn.optimizer.name != "schedule-free-adamw" or "z" not in stored.kinds:
        return weights
    first = (config.learn.optimizer.betas or (0.9, 0.999))[0]
    if first == 0:
        return weights
    return {n: w.lerp(stored.read("z", n, 0, w.numel()).view_as(w), 1 - 1 / first) for n, w in weights.items()}


def find(folder: Path) -> Found:
    """The checkpoint in a folder: itself, or the newest in a run's or in its checkpoints folder."""
    folder = folder.absolute()
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist.", "Give a run's folder, or one of its checkpoints.")
    if NAME.fullmatch(folder.name):
        found, broken = survey(folder.parent)
        found = [f for f in found if f.folder.name == folder.name]
        broken = [sentence for sentence in broken if sentence.startswith(folder.name)]
    else:
        inner = folder / "checkpoints"
        found, broken = survey(inner if inner.is_dir() else folder)
    if not found:
        why = f" ({'; '.join(broken)})" if broken else ""
        raise DataError(
            f"There is no complete checkpoint in {folder}{why}.",
            "Give a run's folder, or one of its checkpoints/step-* folders.",
        )
    return found[0]


def export(chosen: Chosen, out: Path, changes: dict[str, Any]) -> None:
    """The model as a file, in the format that the run's settings or `changes` of its output section say."""
    output = chosen.config.output.model_validate(chosen.config.output.model_dump() | changes)
    config = chosen.config.model_copy(update={"output": output})
    delivery.write(config, chosen.model, chosen.weights, out, (output.name, chosen.found.manifest.step))


class _Still:
    """What a sampler needs of an engine, with weights that do not move."""

    replicated = True

    def __init__(self, denoiser: sdxl.Denoiser, device: str) -> None:
        self.bare = denoiser
        self._kind = "cpu" if device == "cpu" else "cuda"

    def forward(self, *inputs: Any) -> torch.Tensor:
        with torch.autocast(self._kind, torch.bfloat16, enabled=self._kind == "cuda"):
            output: torch.Tensor = self.bare(*inputs)
        return output


def draw(chosen: Chosen, settings: Samples, out: Path, place: Place) -> None:
    """A grid of pictures from the weights of a checkpoint."""
    began = time.monotonic()
    dist.join(place)
    config = chosen.config
    parts = files.load(chosen.model, config.tokenizers, config.vae)
    denoiser = sdxl.build_denoiser(parts, config.learn, config.compute, config.seed)
    known = dict(denoiser.named_parameters())
    missing = [n for n in chosen.weights if n not in known]
    if missing:
        raise DataError(
            f"{chosen.model} has no {missing[0]}, which {chosen.found.folder} has trained.",
            "Give the model that was trained, with --model.",
        )
    with torch.no_grad():
        for name, values in chosen.weights.items():
            known[name].copy_(values)
    encoders = sdxl.Encoders(parts, denoiser, place.device, config.data.captions.tokens)
    engine: Any = _Still(denoiser.to(place.device), place.device)
    learner = Learner(engine, encoders, objective_of(config, parts.diffusion), config.seed)
    side = config.data.resolution
    with storing("The samples", out):
        out.parent.mkdir(parents=True, exist_ok=True)
    sampler = sample.Sampler(settings, side, (side, side), out.parent, place)
    drawn = sampler.draw_to(learner, out)
    metrics.saved("sample", drawn, chosen.found.manifest.step, began)
