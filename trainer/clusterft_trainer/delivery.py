"""The finished model: weights put together from all ranks, written by rank 0, and proven by reading them back.

What was not trained is read from the model's own file again: an engine may hold it rounded or in pieces.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from clusterft_trainer import dist, export, metrics
from clusterft_trainer.build import Run
from clusterft_trainer.config import TrainConfig
from clusterft_trainer.engine import pieces
from clusterft_trainer.engine.base import Engine
from clusterft_trainer.engine.ema import Ema
from clusterft_trainer.model import files, lora, proof
from clusterft_trainer.model.parts import FORMATS


def deliver(run: Run, step: int, name: str) -> None:
    """All ranks call this, since weights may have to be gathered; rank 0 writes the file."""
    if run.place.leads:
        metrics.phase("export")
    with run.learner.engine.averaged():
        weights = whole(run.learner.engine, run.ema)
    folder = run.run_dir / "export"
    dist.on_lead(run.place, lambda: write(run.config, run.model, weights, folder, (name, step)))


def whole(engine: Engine, ema: Ema | None) -> dict[str, torch.Tensor]:
    """The trained weights on rank 0, in full precision: the running mean of them where there is one."""
    if ema is not None:
        return pieces.assemble(ema.parts(), engine.shapes)
    if engine.kind == "ddp":  # rank 0 has it all, and the others need no copy of it
        trained = [(n, p) for n, p in engine.bare.named_parameters() if p.requires_grad and dist.leads()]
        return {name: weight.detach().to("cpu", torch.float32) for name, weight in trained}
    return pieces.assemble([(p.name, p.offset, p.weight) for p in engine.pieces()], engine.shapes)


def write(
    config: TrainConfig, model: str, weights: Mapping[str, torch.Tensor], folder: Path, what: tuple[str, int]
) -> None:
    """The file, and a diffusers folder where one is wanted."""
    began, (name, step) = time.monotonic(), what
    path = folder / f"{name}.safetensors"
    # In the format that is written: what was not trained needs no more, and host memory is short here.
    parts = files.load(model, config.tokenizers, config.vae, FORMATS[config.output.dtype])
    if config.learn.lora is not None:
        added = lora.additions(weights)
        export.lora_file(parts, added, lora.alpha(config.learn.lora), config, path)
        metrics.saved("export", path, step, began)
        return
    draft = path.with_name(f".new-{path.name}")
    try:
        export.single_file(parts, weights, config, draft)
        proof.prove(draft, parts, weights)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    metrics.saved("export", path, step, began)
    if config.output.diffusers:
        export.diffusers_folder(parts, weights, config, folder / name)
        metrics.saved("export", folder / name, step, began)
