"""A full copy on each rank: one process alone, or PyTorch's data parallelism.

Owns autocast, loss scaling under fp16, and the choice between an ordinary step and one fused into the backward.
"""

from __future__ import annotations

import contextlib
import math
from contextlib import AbstractContextManager
from typing import Any

import torch

from clusterft_trainer.config import TrainConfig
from clusterft_trainer.dist import Place
from clusterft_trainer.engine import groups, optimizers, pieces
from clusterft_trainer.engine.base import Engine, Moved, Source
from clusterft_trainer.engine.pieces import Piece
from clusterft_trainer.engine.stretches import FusedBackward

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class PlainEngine(Engine):
    """Copies that see each other's gradients."""

    kind = "ddp"
    replicated = True

    def __init__(self, config: TrainConfig, place: Place, model: Any) -> None:
        self.bare = model
        self.averages = place.world
        self._place = place
        self._clip = config.learn.clip
        half = _HALF.get(config.precision)
        # Weights in bfloat16 compute in it by themselves.
        self._cast = half if config.weights == "fp32" else None
        if config.weights == "bf16":
            model.to(torch.bfloat16)
        device = "cpu" if place.device == "cpu" else "cuda"
        self._scaler = torch.amp.GradScaler(device, enabled=config.precision == "fp16")
        self._device = device
        self._names = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self._moves = optimizers.mover(groups.of(model, config.learn), config, place)
        self._wrapped = model
        if place.world > 1 and not self._moves.fused:
            self._wrapped = torch.nn.parallel.DistributedDataParallel(
                model,
                device_ids=None if device == "cpu" else [place.local_rank],
                gradient_as_bucket_view=True,
                # Otherwise gradients are exchanged in another layout from the second step on, and three or more
                # ranks add them up in another order: a resumed run, which has a first step again, would differ.
                find_unused_parameters=place.world > 2,
                broadcast_buffers=False,
            )

    def forward(self, *inputs: Any) -> torch.Tensor:
        """In half precision where the run asks for it, with full weights."""
        model = self._wrapped if torch.is_grad_enabled() else self.bare
        with torch.autocast(self._device, self._cast, enabled=self._cast is not None):
            return model(*inputs)

    def micro(self, last: bool) -> AbstractContextManager[None]:
        """Gradients of a step are exchanged once."""
        if last or self._wrapped is self.bare:
            return contextlib.nullcontext()
        return self._wrapped.no_sync()

    def backward(self, loss: torch.Tensor) -> None:
        """Scaled under fp16; fused, the weights have moved when it returns."""
        self._scaler.scale(loss).backward()
        if self._moves.fused:
            self._moves.optimizer.step()

    def step(self) -> Moved:
        """Clip, move, forget; an overflow under fp16 leaves the weights alone, and says so."""
        optimizer = self._moves.optimizer
        if isinstance(optimizer, FusedBackward):
            return Moved(optimizer.take_norm())
        self._scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in self._names], self._clip or math.inf)
        before = self._scaler.get_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return Moved(float(norm), self._scaler.get_scale() >= before)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Of the optimizer."""
        return self._moves.groups

    def pieces(self) -> list[Piece]:
        """An equal part of every weight, though all is here: so each rank writes as much as another."""
        found = []
        for name, parameter in self._names:
            flat = parameter.detach().view(-1)
            first, end = pieces.slice_of(flat.numel(), self._place.rank, self._place.world)
            if first == end:
                continue
            states = {k: v.view(-1)[first:end] for k, v in self._moves.elements(parameter).items()}
            found.append(Piece(name, tuple(parameter.shape), first, flat[first:end], states))
        return found

    @property
    def count(self) -> float:
        """As the optimizer counts."""
        return self._moves.count

    def rest(self) -> dict[str, dict[str, Any]]:
        """What the optimizer keeps beside elements: factors, blocks, their maps."""
        return {name: found for name, p in self._names if (found := self._moves.rest(p))}

    def load(self, source: Source) -> None:
        """Every rank reads everything."""
        for name, parameter in self._names:
            numel = parameter.numel()
            parameter.data.view(-1).copy_(source.read("weight", name, 0, numel))
            rest = dict(source.rest.get(name, {}))
            if source.count and (source.states or rest):
                shape = parameter.shape
                elements = {k: source.read(k, name, 0, numel).view(shape) for k in source.states}
                self._moves.restore(parameter, elements, rest, source.count)

    def take(self, values: dict[str, torch.Tensor]) -> None:
        """Ranks own slices: each hands its own to all."""
        with torch.no_grad():
            whole = {name: parameter.detach() for name, parameter in self._names}
            given = {n: values[n] for n in whole if n in values}
            pieces.spread(given, whole)

    @property
    def exposed(self) -> float | None:
        """By torch's own account: the mean of the first steps, then of each hundredth."""
        if self._wrapped is self.bare:
            return None
        said = self._wrapped._get_ddp_logging_data()
        nanoseconds = said.get("avg_backward_comm_time", 0) - said.get("avg_backward_compute_comm_overlap_time", 0)
        return max(0, nanoseconds) / 1e9

    def averaged(self) -> AbstractContextManager[None]:
        """With the weights that the optimizer publishes, where those are others than it trains."""
        return optimizers.averaged(self._moves.optimizer)

    def scalars(self) -> dict[str, float]:
        """Dynamic loss scaling, under fp16."""
        return {k: float(v) for k, v in self._scaler.state_dict().items()}

    def take_scalars(self, scalars: dict[str, float]) -> None:
        """The reverse."""
        if scalars and self._scaler.is_enabled():
            counts = {name: int(scalars[name]) for name in ("growth_interval", "_growth_tracker")}
            self._scaler.load_state_dict(scalars | counts)
