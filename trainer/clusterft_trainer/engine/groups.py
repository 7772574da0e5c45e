"""Which weights share a rate: one parameter group for each trained part."""

from __future__ import annotations

from typing import Any

from clusterft_trainer.config import Learn


def of(model: Any, learn: Learn) -> list[dict[str, Any]]:
    """Groups as an optimizer takes them; `base` keeps the full rate, `name` the part."""
    found = []
    for name, part in learn.trained.items():
        weights = [p for n, p in model.named_parameters() if p.requires_grad and n.startswith(f"{name}.")]
        if weights:
            found.append({"params": weights, "lr": part.rate, "base": part.rate, "name": name})
    return found
