"""The finished model as one safetensors file that ComfyUI and A1111 read.

Owns number format, header and the atomic write; `layout` owns the names. Refuses to write a weight
that is not finite in the chosen format.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from clusterft_trainer import dist, metrics
from clusterft_trainer.config import TrainConfig
from clusterft_trainer.dist import Place
from clusterft_trainer.errors import RunError, storing
from clusterft_trainer.model import layout
from clusterft_trainer.model.sdxl import Denoiser, Encoders

if TYPE_CHECKING:
    from accelerate import Accelerator

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def header(config: TrainConfig, at: float) -> dict[str, str]:
    """What the file says about itself (the modelspec fields; all values are strings)."""
    side = config.data.resolution
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": config.output.name,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)),
        "modelspec.prediction_type": "epsilon",
    }


def write(path: Path, tensors: layout.Tensors, config: TrainConfig) -> None:
    """Cast, check and write; a kill in the middle leaves no file of the final name."""
    from safetensors.torch import save_file

    kind = _DTYPES[config.output.dtype]
    cast = {n: t.to(kind) if t.is_floating_point() else t for n, t in tensors.items()}
    broken = [n for n, t in cast.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise RunError(
            "export",
            f"{len(broken)} weights are not finite as {config.output.dtype}, {broken[0]} first.",
            "Set output.dtype to bf16 or fp32; the checkpoint holds the weights in full.",
        )
    draft = path.with_suffix(".new")
    with storing("The export", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(cast, str(draft), metadata=header(config, time.time()))
        draft.chmod(0o644)  # safetensors makes it private, but a model is for others to load
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)


def finish(
    config: TrainConfig,
    run_dir: Path,
    place: Place,
    accelerator: Accelerator,
    trained: tuple[torch.nn.Module, Encoders],
    step: int,
) -> None:
    """All ranks call this, since weights may have to be gathered; rank 0 writes the file."""
    began = time.monotonic()
    model, encoders = trained
    weights = dist.full_weights(accelerator, model)
    path = run_dir / "export" / f"{config.output.name}.safetensors"

    def save() -> None:
        bare = accelerator.unwrap_model(model)
        tensors = _collect(bare, encoders, weights)
        write(path, tensors, config)
        metrics.saved("export", path, step, began)

    dist.on_lead(place, save)


def _collect(model: Denoiser, encoders: Encoders, weights: layout.Tensors) -> layout.Tensors:
    text = model.text if model.text is not None else encoders.text
    if text is None:
        raise ValueError("neither the denoiser nor the encoders hold the text encoders")
    first = {f"text.first.{n}": t for n, t in text.first.state_dict().items()}
    second = {f"text.second.{n}": t for n, t in text.second.state_dict().items()}
    every = {n: t.detach().cpu() for n, t in (first | second | weights).items()}
    return layout.single_file(
        unet=_under(every, "unet."),
        text_1=_under(every, "text.first."),
        text_2=_under(every, "text.second."),
        vae={n: t.detach().cpu() for n, t in encoders.vae.state_dict().items()},
    )


def _under(tensors: layout.Tensors, prefix: str) -> layout.Tensors:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
