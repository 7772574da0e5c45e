"""What a loaded SDXL model consists of: the nouns that reading, training and export share.

Owns the types alone; `files` fills them, `export` writes them. Refuses nothing: whatever is in here was checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from clusterft_trainer.config import Objective
from clusterft_trainer.model import layout

FORMATS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
MODULES = ("unet", "text_encoder_1", "text_encoder_2", "vae")


@dataclass(frozen=True)
class Diffusion:
    """The noise that a model was trained with, and what it predicts of it; the defaults are SDXL's own."""

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012  # betas are the squares of a straight line between the roots ("scaled_linear")
    prediction: Literal["epsilon", "v"] = "epsilon"
    zero_terminal_snr: bool = False

    def under(self, objective: Objective) -> Diffusion:
        """As it is trained and exported: the settings go before what the file says."""
        asked, zero = objective.prediction, objective.zero_terminal_snr
        return replace(
            self,
            prediction=self.prediction if asked == "auto" else asked,
            zero_terminal_snr=self.zero_terminal_snr if zero is None else zero,
        )


@dataclass(slots=True)
class Parts:
    """A loaded model, on the CPU and in float32 unless asked for otherwise; nothing is frozen or moved yet."""

    unet: Any  # UNet2DConditionModel
    vae: Any  # AutoencoderKL
    text_encoder_1: Any  # CLIPTextModel, whose names have no `text_model.` from transformers 5.6 on
    text_encoder_2: Any  # CLIPTextModelWithProjection
    tokenizers: tuple[Any, Any]  # CLIPTokenizer with each encoder's own padding
    diffusion: Diffusion
    # Tensors of a single file that no module holds, under their names there: logit_scale, position_ids
    # (always int64), v_pred, ztsnr, denoiser.*. A round trip writes them back.
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    origin: Path = Path()

    def module(self, name: str) -> Any:
        """One of MODULES by its name."""
        if name not in MODULES:
            raise KeyError(name)
        return getattr(self, name)

    def weights(self, name: str, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """All weights of a module, without CLIP's prefix: those trained (named `unet.…`) before its own.

        What an engine has cut into pieces must be among `trained`, frozen or not: a piece is no weight.
        """
        given = {
            layout.plain(n.removeprefix(f"{name}.")): t for n, t in trained.items() if n.startswith(f"{name}.")
        }
        own = {layout.plain(n): t for n, t in self.module(name).state_dict().items()}
        unknown = sorted(given.keys() - own.keys())
        if unknown:
            raise ValueError(f"{name} has no weight named {unknown[0]}")
        wrong = [n for n, t in given.items() if own[n].numel() and tuple(own[n].shape) != tuple(t.shape)]
        if wrong:
            raise ValueError(f"{name}: {wrong[0]} was trained in another shape than it has")
        cut = [n for n, t in own.items() if n not in given and (t.numel() == 0 or hasattr(t, "device_mesh"))]
        if cut:
            raise ValueError(f"{name} holds a piece of {cut[0]}, which must be gathered before it is exported")
        return {n: given.get(n, t) for n, t in own.items() if not n.endswith("position_ids")}
