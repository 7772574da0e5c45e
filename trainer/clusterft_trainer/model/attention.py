"""Which kernel computes the UNet's attention.

Owns the choice and the one processor that hands the work to a kernel from outside torch. Refuses a kernel that is
not installed or has no GPU here, rather than to fall back to another.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import AttnProcessor2_0

from clusterft_trainer.config import Compute
from clusterft_trainer.errors import ConfigError

_OTHERWISE = "Set compute.attention: auto, which takes torch's own fastest kernel."


class Dispatched:
    """Attention of an SDXL block, without mask, through diffusers' table of kernels."""

    _attention_backend: Any = None  # the name by which diffusers' set_attention_backend finds and sets it

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        **rest: Any,
    ) -> torch.Tensor:
        """States in, states out; the parameter names are those by which diffusers calls."""
        if any(value is not None for value in rest.values()):
            raise ValueError(f"attention of an SDXL block takes no {', '.join(rest)}")
        told = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        # (B, length, heads, width of a head), as the table wants it
        query, key, value = (
            layer(states).unflatten(-1, (attn.heads, -1))
            for layer, states in ((attn.to_q, hidden_states), (attn.to_k, told), (attn.to_v, told))
        )
        mixed = dispatch_attention_fn(query, key, value, backend=self._attention_backend).flatten(2)
        out: torch.Tensor = attn.to_out[1](attn.to_out[0](mixed))
        return out


def choose(unet: Any, compute: Compute) -> None:
    """Set the kernel for every attention block."""
    kind = compute.attention
    if kind in ("auto", "sdpa"):
        unet.set_attn_processor(AttnProcessor2_0())
        return
    if not torch.cuda.is_available():
        raise ConfigError(f"compute.attention: {kind} needs an NVIDIA GPU, and there is none here.", _OTHERWISE)
    unet.set_attn_processor(Dispatched())
    try:
        unet.set_attention_backend(kind)  # "flash" and "xformers" are diffusers' names too
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"compute.attention: {kind} cannot be used here: {error}", f"Install it, or: {_OTHERWISE}"
        ) from error
