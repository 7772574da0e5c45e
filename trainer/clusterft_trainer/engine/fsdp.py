"""PyTorch's FSDP2: every weight is cut into rows, one run of rows a rank.

Owns which modules are gathered together, and the way from sharded tensors to pieces.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from clusterft_trainer.config import TrainConfig
from clusterft_trainer.dist import Place
from clusterft_trainer.engine import groups, optimizers
from clusterft_trainer.engine.base import Engine, Moved, Source
from clusterft_trainer.engine.pieces import Piece

# Blocks of about equal size, each gathered as one: small enough to fit beside the rest, and not too small to send.
_BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock", "CLIPEncoderLayer")


class FsdpEngine(Engine):
    """Weights, gradients and optimizer state, cut over all ranks."""

    kind = "fsdp"
    replicated = False

    def __init__(self, config: TrainConfig, place: Place, model: Any) -> None:
        self.bare = model
        self.averages = place.world
        mesh = init_device_mesh("cpu" if place.device == "cpu" else "cuda", (place.world,))
        half = torch.bfloat16 if config.precision == "bf16" else None
        # Inputs are cast by the model itself: the size ids must stay float32.
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for module in list(model.modules()):
            if type(module).__name__ in _BLOCKS:
                fully_shard(module, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        self._clip = config.learn.clip
        self._names = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self._optimizer = optimizers.build(groups.of(model, config.learn), config.learn, device=place.device)

    def forward(self, *inputs: Any) -> torch.Tensor:
        """Gathers each block as it comes."""
        return self.bare(*inputs)

    def micro(self, last: bool) -> AbstractContextManager[None]:
        """Gradients of a step are exchanged once."""
        model: FSDPModule = self.bare
        model.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Leaves each rank with the gradients of its rows."""
        loss.backward()

    def step(self) -> Moved:
        """Clip by the norm over all ranks, and move the rows."""
        gradients = [p.grad for _, p in self._names if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self._clip is not None:
            torch.nn.utils.clip_grads_with_norm_([p for _, p in self._names], self._clip, norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return Moved(float(whole))

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Of the optimizer."""
        return self._optimizer.param_groups

    def pieces(self) -> list[Piece]:
        """This rank's rows; a weight with fewer rows than there are ranks leaves some without any."""
        return [piece for name, p in self._names if (piece := self._piece(name, p)) is not None]

    def _piece(self, name: str, parameter: Any) -> Piece | None:
        local = parameter.to_local()
        if local.numel() == 0:
            return None
        _, offsets = compute_local_shape_and_global_offset(
            parameter.shape, parameter.device_mesh, parameter.placements
        )
        row = parameter.numel() // parameter.shape[0]
        states = {
            key: value.to_local().view(-1)
            for key, value in self._optimizer.state.get(parameter, {}).items()
            if isinstance(value, DTensor) and value.shape == parameter.shape
        }
        return Piece(name, tuple(parameter.shape), offsets[0] * row, local.detach().view(-1), states)

    @property
    def count(self) -> float:
        """Every weight's count is the same."""
        for _, parameter in self._names:
            step = self._optimizer.state.get(parameter, {}).get("step")
            if step is not None:
                return float(step)
        return float(self.groups[0].get("step", 0))

    def load(self, source: Source) -> None:
        """Read this rank's rows."""
        keys = source.states if source.count else ()
        for _, parameter in self._names if keys else ():
            state = self._optimizer.state[parameter]
            state |= {key: torch.zeros_like(parameter.detach()) for key in keys}
            if isinstance(self._optimizer, torch.optim.AdamW):
                # a fused kernel wants its count on its own device
                device = parameter.device if self.groups[0].get("fused") else "cpu"
                state["step"] = torch.tensor(float(source.count), device=device)
        for group in self.groups:
            if "step" in group:
                group["step"] = int(source.count)
        for piece in self.pieces():
            piece.weight.copy_(source.read("weight", piece.name, piece.offset, piece.end))
            for key in keys:
                piece.states[key].copy_(source.read(key, piece.name, piece.offset, piece.end))
        self._forget_gathered()

    def take(self, values: dict[str, torch.Tensor]) -> None:
        """Overwrite the rows."""
        for piece in self.pieces():
            piece.weight.copy_(values[piece.name])
        self._forget_gathered()

    def _forget_gathered(self) -> None:
        """Without a backward the root keeps what it gathered, and would compute with old weights."""
        for module in self.bare.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
