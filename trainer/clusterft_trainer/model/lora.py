"""Low-rank additions (LoRA) to the attention and feed-forward layers of the trained parts, made by peft.

Owns which layers get one, and the names of the additions in checkpoints and exports. The weights themselves stay
frozen. Refuses a part without such layers. peft is imported here alone and only when asked for: it costs seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from clusterft_trainer import imports
from clusterft_trainer.config import Lora, PartName
from clusterft_trainer.errors import DataError

_ADAPTER = "default"  # peft's name for the only set of additions; a part of the weights' names while training
_ADDED = re.compile(rf"\.(lora_[AB])\.{_ADAPTER}\.weight$")
_UNET = r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)|.*\.ff\.net\.(0\.proj|2)"
_TEXT = r".*\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"


def add(module: Any, part: PartName, lora: Lora, seed: int) -> None:
    """Freeze `module` in place and give its layers trainable additions, which at first add nothing."""
    module.requires_grad_(False)
    layers = targets(dict(module.named_modules()), part)
    # The additions begin at random: alike on every rank, and untouched by what was drawn before.
    with imports.peft() as peft, torch.random.fork_rng(devices=[]):
        config = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=alpha(lora),
            lora_dropout=lora.dropout,
            target_modules="|".join(re.escape(name) for name in layers),
        )
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, module, adapter_name=_ADAPTER)
    for name, weight in module.named_parameters():
        weight.requires_grad_(_ADDED.search(name) is not None)


def targets(modules: Mapping[str, Any], part: PartName) -> list[str]:
    """The layers that get an addition: not those of the first encoder's last layer, whose output is not used."""
    pattern = re.compile(_UNET if part == "unet" else _TEXT)
    found = [name for name in modules if pattern.fullmatch(name)]
    if part == "text_encoder_1":
        numbers = {name: int(m[1]) for name in found if (m := re.search(r"\blayers\.(\d+)\.", name))}
        last = max(numbers.values(), default=0)
        found = [name for name in found if numbers.get(name) != last]
    if not found:
        raise DataError(
            f"learn.lora: {part} of this model has no attention or feed-forward layer that is used.",
            "Give an SDXL model, or leave learn.lora out.",
        )
    return found


def alpha(lora: Lora) -> float:
    """An addition is scaled by alpha / rank: by 1 where no alpha is given."""
    return float(lora.rank) if lora.alpha is None else lora.alpha


def additions(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of a denoiser's named weights that belong to LoRA, without peft's adapter name.

    `unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight` is (rank, in), its `lora_B`
    (out, rank). Names in, names out: the weights may come from a gathered or a saved state just as well.
    """
    return {_ADDED.sub(r".\1.weight", name): t for name, t in weights.items() if _ADDED.search(name)}
