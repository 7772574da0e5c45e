"""Which weights move, how fast, and when: parameter groups, AdamW and the warm-up.

Refuses to hold state of its own: the rate of a step is a function of the step.
"""

from __future__ import annotations

from typing import Any

import torch

from clusterft_trainer.config import Learn
from clusterft_trainer.model.sdxl import Denoiser


def build(model: Denoiser, learn: Learn) -> torch.optim.Optimizer:
    """AdamW over one group for each trained part; `base` keeps a group's full rate."""
    groups: list[dict[str, Any]] = []
    for part, module in ((learn.unet, model.unet), (learn.trained.get("text_encoder_1"), model.text)):
        if part is not None and module is not None:
            weights = [p for p in module.parameters() if p.requires_grad]
            groups.append({"params": weights, "lr": part.rate, "base": part.rate})
    return torch.optim.AdamW(groups, weight_decay=learn.weight_decay, fused=True)


def warmup(step: int, steps: int) -> float:
    """Share of the full rate in step 1, 2, ...: a line up to 1, then constant."""
    return min(1.0, step / (steps + 1))


def set_rates(optimizer: Any, factor: float) -> float:
    """Apply the factor to every group; the first group's rate is the one to report."""
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * factor
    return float(optimizer.param_groups[0]["lr"])
