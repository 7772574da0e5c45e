"""Which library's class a name stands for, and how the settings reach it.

A library is imported when its optimizer is chosen, never before. Refuses a library that is missing or does not
work here, before anything is trained; a setting that has no meaning for a name was refused by `config.refusals`.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from clusterft_trainer.config import Learn, TrainConfig
from clusterft_trainer.config.learn import JOINED, ROUNDS_ITSELF, OptimizerName
from clusterft_trainer.dist import Place
from clusterft_trainer.engine.optimizer_state import States, Value
from clusterft_trainer.engine.stretches import FusedBackward, InStretches, Joining
from clusterft_trainer.engine.stretches import set_rates as set_rates
from clusterft_trainer.errors import ConfigError

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class _Library:
    module: str
    name: str
    package: str  # as pip calls it
    settings: Mapping[str, Any] = field(default_factory=dict)  # ours, whatever the job says


# foreach would hold an update of every weight at once, which is as much memory as the model.
_SINGLE = {"foreach": False}
_BNB, _AO, _PO = "bitsandbytes", "torchao", "pytorch_optimizer"
_LIBRARIES: dict[OptimizerName, _Library] = {
    "adamw": _Library("torch.optim", "AdamW", "torch"),
    "adamw-8bit": _Library("bitsandbytes.optim", "AdamW8bit", _BNB),
    "paged-adamw-8bit": _Library("bitsandbytes.optim", "PagedAdamW8bit", _BNB),
    "lion-8bit": _Library("bitsandbytes.optim", "Lion8bit", _BNB),
    "ao-adamw-8bit": _Library("torchao.optim", "AdamW8bit", _AO),
    "ao-adamw-4bit": _Library("torchao.optim", "AdamW4bit", _AO),
    "ao-adamw-fp8": _Library("torchao.optim", "AdamWFp8", _AO),
    # The rate is the job's, not one that the class would find from the size of the weights.
    "adafactor": _Library(
        "transformers.optimization",
        "Adafactor",
        "transformers",
        {"scale_parameter": False, "relative_step": False},
    ),
    "lion": _Library(_PO, "Lion", _PO, _SINGLE),
    "came": _Library(_PO, "CAME", _PO, _SINGLE),
    "stable-adamw": _Library(_PO, "StableAdamW", _PO, _SINGLE | {"kahan_sum": False}),
    "prodigy": _Library(_PO, "Prodigy", _PO, _SINGLE),
    "schedule-free-adamw": _Library(_PO, "ScheduleFreeAdamW", _PO, _SINGLE),
}
_SHORT = 4096  # numbers of a tensor, below which bitsandbytes keeps state in full
_CPU_ADAM = _Library("deepspeed.ops.adam", "DeepSpeedCPUAdam", "deepspeed", {"adamw_mode": True})


def build(
    groups: Groups,
    learn: Learn,
    *,
    device: str,
    offload: bool = False,
    weights: Literal["fp32", "bf16"] = "fp32",
) -> torch.optim.Optimizer:
    """The optimizer for groups with params, lr, base and name; with offload, it steps in the host's memory."""
    name = learn.optimizer.name
    library = _CPU_ADAM if offload else _LIBRARIES[name]
    kind = _load(library, name, device)
    settings = _settings(learn, library, device, weights == "bf16")

    def make(given: Groups) -> torch.optim.Optimizer:
        if library.package == _BNB:
            _lay_out(given)
        try:
            return kind(given, **settings)
        except ValueError as error:
            raise ConfigError(
                f"learn.optimizer: {name} refuses its settings: {error}.",
                "Change betas, eps, weight_decay or the rate, or leave them out.",
            ) from error
        except RuntimeError as error:
            if not offload:
                raise
            raise ConfigError(
                "engine.offload: DeepSpeed's cpu_adam could not be built on this node: "
                f"{error.__cause__ or error}.",
                "Use the image that `clusterft up` builds, which has it, install ninja and a C++ compiler, "
                "or set engine.offload: none.",
            ) from error

    rounds = weights == "bf16" and name not in ROUNDS_ITSELF
    joining = _joining(name, library)
    if learn.optimizer.fused_backward:
        return FusedBackward(groups, make, rounds=rounds, joining=joining)
    # bitsandbytes waits for the GPU after each tensor
    if rounds or library.package == _BNB:
        return InStretches(groups, make, rounds=rounds, joining=joining)
    return make(groups)


def _joining(name: OptimizerName, library: _Library) -> Joining | None:
    if name not in JOINED:
        return None
    return Joining(_SHORT, _in_full) if library.package == _BNB else Joining()


def _in_full(library: Any, group: dict[str, Any], target: torch.Tensor, length: int) -> None:
    """bitsandbytes decides by a tensor's length whether its state is quantised: here by that of its weights."""
    if length >= _SHORT:
        return
    kept, library.args.min_8bit_size = library.args.min_8bit_size, target.numel() + 1
    try:
        library.init_state(group, target, 0, 0)
    finally:
        library.args.min_8bit_size = kept


def _load(library: _Library, name: OptimizerName, device: str) -> Any:
    on_cpu = device.startswith("cpu")
    if library.package == _AO and not _compiler(on_cpu):
        raise ConfigError(
            f"learn.optimizer: {name} compiles its step, and there is no C++ compiler on this node.",
            "Add g++ to image.packages in job.yaml, or use adamw-8bit.",
        )
    try:
        kind = getattr(importlib.import_module(library.module), library.name)
        if library.package == _BNB:
            probe = torch.nn.Parameter(torch.zeros(4096, device=device))  # as many elements as it quantises
            probe.grad = torch.ones_like(probe)
            kind([probe]).step()
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"learn.optimizer: {name} comes from the package {library.package}, which does not work on this node: "
            f"{error}.",
            f"Add {library.package} to image.pip in job.yaml and run `clusterft up`, or use another optimizer.",
        ) from error
    return kind


def _compiler(on_cpu: bool) -> str | None:
    asked = os.environ.get("CXX" if on_cpu else "CC")
    names = ("g++", "clang++") if on_cpu else ("gcc", "cc", "clang")
    return next((found for n in ((asked,) if asked else names) if (found := shutil.which(n))), None)


def _settings(learn: Learn, library: _Library, device: str, bf16: bool) -> dict[str, Any]:
    chosen = learn.optimizer
    settings = {**library.settings, "weight_decay": learn.weight_decay}
    if chosen.betas is not None:
        settings["betas"] = chosen.betas
    if chosen.eps is not None:
        settings["eps"] = chosen.eps
    if library.package == "torch":
        settings["fused"] = torch.device(device).type in ("cpu", "cuda")
    if library.package == _AO:
        settings["bf16_stochastic_round"] = bf16
    if chosen.name == "prodigy":
        settings["safeguard_warmup"] = (
            learn.warmup_steps > 0
        )  # else its estimate grows while the rate is held down
    return settings


def _lay_out(groups: Groups) -> None:
    """bitsandbytes does so in its first step, after it has laid out the state in the weight's former order."""
    for group in groups:
        for weight in group["params"]:
            weight.data = weight.data.contiguous()


@contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Stands around what looks at the weights from outside: samples, held-out loss, export.

    schedule-free-adamw trains one set of weights and publishes another. Its own way back is not exact to the bit,
    so the trained ones are kept on the host meanwhile (4 bytes a weight). For all others this does nothing.
    """
    if not any("train_mode" in group for group in optimizer.param_groups):
        yield
        return
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    kept = [weight.detach().to("cpu", copy=True) for weight in weights]
    optimizer.eval()
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, trained in zip(weights, kept, strict=True):
                weight.copy_(trained)
        for group in optimizer.param_groups:
            group["train_mode"] = True


class Mover:
    """An optimizer over whole weights, and its state in the words of checkpoints."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.fused = isinstance(optimizer, FusedBackward)
        self._states = States(optimizer)

    @property
    def groups(self) -> Groups:
        """Where rates are set."""
        found: Groups = self.optimizer.param_groups
        return found

    @property
    def count(self) -> int:
        """Steps taken, by the first weight that has taken any."""
        steps = (self._states.steps(weight) for group in self.groups for weight in group["params"])
        return next((count for count in steps if count), 0)

    def elements(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Numbers for each of the weight's; under the same names for every weight that was stepped."""
        return self._states.elements(weight)

    def rest(self, weight: torch.Tensor) -> dict[str, Value]:
        """All other state of the weight, less what `count` says: nothing is left of plain AdamW."""
        said = self._states.counter(self.count)
        return {key: v for key, v in self._states.others(weight).items() if key not in said or v != said[key]}

    def restore(
        self, weight: torch.Tensor, elements: dict[str, torch.Tensor], rest: dict[str, Value], count: float
    ) -> None:
        """Continue from there."""
        self._states.load(weight, elements, self._states.counter(int(count)) | rest)


def mover(groups: Groups, config: TrainConfig, place: Place) -> Mover:
    """For whole weights, as plain data parallelism has them."""
    return Mover(build(groups, config.learn, device=place.device, weights=config.weights))
