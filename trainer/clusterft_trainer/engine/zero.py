"""DeepSpeed ZeRO: optimizer state, gradients and weights cut into slices of flattened groups.

Owns DeepSpeed's settings and the way from its slices to pieces. DeepSpeed is called directly: accelerate would
wrap it, and hide that its backward also steps. Refuses nothing; what cannot work is refused with the settings.
"""

from __future__ import annotations

import contextlib
import math
from contextlib import AbstractContextManager
from typing import Any

import torch

from clusterft_trainer import imports
from clusterft_trainer.config import TrainConfig, Zero
from clusterft_trainer.dist import Place
from clusterft_trainer.engine import groups, optimizers
from clusterft_trainer.engine.base import Engine, Moved, Source
from clusterft_trainer.engine.pieces import Piece


class ZeroEngine(Engine):
    """ZeRO stage 1, 2 or 3."""

    averages: int

    def __init__(self, config: TrainConfig, settings: Zero, place: Place, model: Any) -> None:
        deepspeed = imports.deepspeed()
        if place.device == "cpu":
            # This op would be compiled on first use; gloo does the same work without a compiler.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        trained = [p for p in model.parameters() if p.requires_grad]
        self.kind = f"zero-{settings.stage}"
        self.replicated = settings.stage < 3
        self.bare = model
        self._stage = settings.stage
        # DeepSpeed divides the loss by the micro-batches itself, and averages over the ranks.
        self.averages = place.world * config.batch.accumulate
        # DeepSpeed has its own name for the process group that is there already.
        deepspeed.init_distributed("gloo" if place.device == "cpu" else "nccl", auto_mpi_discovery=False)
        originals: dict[str, torch.Tensor] = {}
        if config.precision != "fp32":
            # DeepSpeed makes its full-precision originals from half-precision copies: what those lack is lost.
            moving = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
            originals = {name: weight.detach().to("cpu", copy=True) for name, weight in moving}
        offload = settings.offload == "optimizer"
        rule = optimizers.build(groups.of(model, config.learn), config.learn, device=place.device, offload=offload)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=rule,
            config=deepspeed_config(config, settings, sum(p.numel() for p in trained)),
            dist_init_required=False,
        )
        self._names = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        if originals:
            self.take({p.name: originals[p.name].view(-1)[p.offset : p.end] for p in self.pieces()})
        if config.precision == "fp16":
            # The training loop tells a gradient that stays broken, with the samples of the step.
            self._optimizer.loss_scaler.raise_error_at_min_scale = False

    def forward(self, *inputs: Any) -> torch.Tensor:
        """Through DeepSpeed, which gathers weights under stage 3."""
        return self._engine(*inputs)

    def micro(self, last: bool) -> AbstractContextManager[None]:
        """Tell DeepSpeed where a step ends."""
        self._engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Also reduces the gradients to their owners."""
        self._engine.backward(loss)

    def step(self) -> Moved:
        """Move the slices, and give all ranks the new weights."""
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        if norm is not None and norm < 0:
            norm = math.inf  # DeepSpeed's sign for a gradient that is no number
        # It also leaves out the step where nothing is scaled: there that is no overflow but the end.
        skipped = self._engine.fp16_enabled() and bool(self._optimizer.overflow)
        return Moved(None if norm is None else float(norm), not skipped)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Of the optimizer inside."""
        found: list[dict[str, Any]] = self._optimizer.param_groups
        return found

    def pieces(self) -> list[Piece]:
        """The slices of this rank that lie inside of weights; padding belongs to nobody."""
        found = [self._piece(name, parameter) for name, parameter in self._names]
        return [piece for piece in found if piece is not None]

    def _piece(self, name: str, parameter: Any) -> Piece | None:
        if self._stage == 3:
            return self._piece_of_three(name, parameter)
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        flat = self._optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        at = mapping.hp_fragment_address
        return Piece(
            name,
            tuple(parameter.shape),
            mapping.lp_fragment_address.start,
            flat.data.narrow(0, at.start, at.numel),
            self._states(flat, at.start, at.numel),
        )

    def _piece_of_three(self, name: str, parameter: Any) -> Piece | None:
        group, first, numel = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
        flat = self._optimizer.fp32_partitioned_groups_flat[group]
        offset = self._engine.global_rank * numel
        real = min(numel, parameter.ds_numel - offset)  # the last rank's slice is padded
        if real <= 0:
            return None
        weight = flat.data.narrow(0, first, real)
        return Piece(name, tuple(parameter.ds_shape), offset, weight, self._states(flat, first, real))

    def _states(self, flat: Any, first: int, numel: int) -> dict[str, torch.Tensor]:
        state = self._inner.state.get(flat, {})
        return {k: v.narrow(0, first, numel) for k, v in state.items() if _elementwise(v, flat)}

    @property
    def _inner(self) -> Any:
        return self._optimizer.optimizer

    @property
    def _flats(self) -> list[Any]:
        if self._stage == 3:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return list(self._optimizer.single_partition_of_fp32_groups)

    @property
    def count(self) -> float:
        """Torch's optimizers count for each tensor, others for a group; all counts are equal."""
        for flat in self._flats:
            step = self._inner.state.get(flat, {}).get("step")
            if step is not None:
                return float(step)
        return float(self.groups[0].get("step", 0))

    def load(self, source: Source) -> None:
        """Fill this rank's slices, then all ranks' weights from them."""
        if source.states and source.count:
            for flat in self._flats:
                state = self._inner.state[flat]
                state |= {key: torch.zeros_like(flat.data) for key in source.states}
            self._recount(source.count)
        for piece in self.pieces():
            piece.weight.copy_(source.read("weight", piece.name, piece.offset, piece.end))
            for key in source.states if source.count else ():
                piece.states[key].copy_(source.read(key, piece.name, piece.offset, piece.end))
        self._adopt()

    def _recount(self, count: float) -> None:
        """DeepSpeed's own Adam counts in integers, torch's in tensors, others in their groups."""
        if type(self._inner).__name__ == "DeepSpeedCPUAdam":
            for flat in self._flats:
                self._inner.state[flat]["step"] = int(count)
        elif isinstance(self._inner, torch.optim.AdamW):
            fused = self.groups[0].get("fused")
            for flat in self._flats:
                # a fused kernel wants its count on its own device
                device = flat.device if fused else "cpu"
                self._inner.state[flat]["step"] = torch.tensor(float(count), device=device)
        else:
            for group in self.groups:
                group["step"] = int(count)

    def take(self, values: dict[str, torch.Tensor]) -> None:
        """Overwrite the slices, then what computes."""
        for piece in self.pieces():
            piece.weight.copy_(values[piece.name])
        self._adopt()

    def _adopt(self) -> None:
        if self._stage < 3:
            self._optimizer.update_lp_params()
            for index in range(len(self._optimizer.bit16_groups)):
                self._optimizer._update_model_bit16_weights(index)
            return
        self._optimizer._partition_all_parameters()
        for index in range(len(self._optimizer.fp16_groups)):
            self._optimizer._reassign_or_swap_out_partitioned_parameters(index)
        kept = self._optimizer.persistent_parameters
        if kept:
            kept[0].all_gather(kept)

    def scalars(self) -> dict[str, float]:
        """Dynamic loss scaling, under fp16."""
        scaler = self._optimizer.loss_scaler
        names = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
        return {n: float(getattr(scaler, n)) for n in names if hasattr(scaler, n) and self._engine.fp16_enabled()}

    def take_scalars(self, scalars: dict[str, float]) -> None:
        """The reverse."""
        for name, value in scalars.items():
            setattr(self._optimizer.loss_scaler, name, value if name == "cur_scale" else int(value))


def _elementwise(value: object, flat: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == flat.shape


def deepspeed_config(config: TrainConfig, engine: Zero, parameters: int) -> dict[str, Any]:
    """DeepSpeed's settings. A bucket never needs more room than all gradients take."""
    bucket = max(1, min(parameters, 500_000_000))
    zero: dict[str, Any] = {
        "stage": engine.stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "overlap_comm": False,
        "contiguous_gradients": True,
    }
    if engine.stage == 3:
        zero["stage3_prefetch_bucket_size"] = bucket // 10
    if engine.offload == "optimizer":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": config.batch.per_slot,
        "gradient_accumulation_steps": config.batch.accumulate,
        "gradient_clipping": config.learn.clip or 0.0,
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16", "initial_scale_power": 16},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 40,
    }
