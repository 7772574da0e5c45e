"""What a library's optimizer keeps for one weight, taken out and put back, so that the next step is bit-equal.

Two kinds: `elements` have a number for each of the weight's, in its shape and for every weight under the same
names, so they can be cut and put together like the weight. `others` are the rest: counters, factors, quantised
blocks with their scales and maps, and what a library counts in its groups.

Values are the live ones, not copies. Refuses to know files, ranks or engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch

from clusterft_trainer.engine.stretches import InStretches

Value: TypeAlias = torch.Tensor | float | int

_ADAM = frozenset({"exp_avg", "exp_avg_sq"})
# By the library's class; those that are not here quantise or factor some weights and others not.
_ELEMENTS = {
    "AdamW": _ADAM,
    "DeepSpeedCPUAdam": _ADAM,
    "StableAdamW": _ADAM,
    "Lion": frozenset({"exp_avg"}),
    "CAME": frozenset({"exp_avg"}),
    "Prodigy": _ADAM | {"s", "p0"},
    "ScheduleFreeAdamW": frozenset({"z", "exp_avg_sq"}),
}
# What pytorch_optimizer counts or estimates in a group, for all weights of it.
_RUNNING = ("step", "d", "d_max", "d_hat", "d_numerator", "d_de_nom", "weight_sum", "lr_max")
_OF_GROUP = "group."
_STEP = "step"  # Prodigy counts from 1


class States:
    """The state of one optimizer, by its weights."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._library = optimizer.library if isinstance(optimizer, InStretches) else optimizer
        self._names = _ELEMENTS.get(type(self._library).__name__, frozenset())
        self._owners = {w: i for i, group in enumerate(optimizer.param_groups) for w in group["params"]}

    def elements(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Tensors of the weight's shape; none before its first step."""
        return {key: value for key, value in self._state(weight).items() if key in self._names}

    def others(self, weight: torch.Tensor) -> dict[str, Value]:
        """Everything else, under keys that `load` understands."""
        group = self._group(weight)
        if group.get("train_mode") is False:
            raise RuntimeError("the weights are the averaged ones now: leave `averaged` before saving")
        found: dict[str, Value] = {}
        for key, value in self._state(weight).items():
            if key not in self._names and value is not None:  # None: a part of the method that is switched off
                found.update(_flat(key, value))
        return found | {_OF_GROUP + key: group[key] for key in _RUNNING if key in group}

    def load(self, weight: torch.Tensor, elements: dict[str, torch.Tensor], others: dict[str, Value]) -> None:
        """Make this the weight's state; dtypes are kept, devices are the library's."""
        own: dict[str, Value] = {}
        for key, value in others.items():
            if key.startswith(_OF_GROUP):
                self._group(weight)[key.removeprefix(_OF_GROUP)] = _copy(value, weight.device)
            else:
                own[key] = value
        values = elements | own
        names = dict.fromkeys(key.partition(".")[0] for key in values)
        if not names:
            return
        built = {key: self._built(weight, key, values) for key in names}
        if self._in_stretches:
            self._optimizer.take_state(weight, built)
        else:
            self._library.state[weight] = built

    def steps(self, weight: torch.Tensor) -> int:
        """How many steps the weight has made, as the library counts; waits for the device."""
        state = self._state(weight)
        if not state:
            return 0
        return int(state[_STEP]) if _STEP in state else int(self._group(weight)[_STEP]) - self._first

    def counter(self, count: int) -> dict[str, Value]:
        """What of `others` says that a weight has made so many steps."""
        return {_OF_GROUP + _STEP: count + self._first} if self._by_group else {_STEP: count}

    @property
    def _by_group(self) -> bool:
        return type(self._library).__module__.startswith("pytorch_optimizer.")

    @property
    def _first(self) -> int:
        return 1 if type(self._library).__name__ == "Prodigy" else 0

    @property
    def _in_stretches(self) -> bool:
        return self._optimizer is not self._library

    def _group(self, weight: torch.Tensor) -> dict[str, Any]:
        if self._in_stretches:
            return self._optimizer.of[weight].group
        return self._library.param_groups[self._owners[weight]]

    def _state(self, weight: torch.Tensor) -> dict[str, Any]:
        if self._in_stretches:
            return self._optimizer.state_of(weight)
        return self._library.state.get(weight, {})

    def _built(self, weight: torch.Tensor, key: str, values: Mapping[str, Any]) -> Any:
        """One entry of a weight's state."""
        if key == _STEP:
            return self._step(weight, int(values[key]))
        if key not in values:
            return _packed(self._library, weight, key, values)
        value = values[key]
        if isinstance(value, torch.Tensor) and value.shape == weight.shape:
            return self._laid_out(weight, value)
        return _copy(value, weight.device)

    def _step(self, weight: torch.Tensor, count: int) -> Value:
        module, group = type(self._library).__module__, self._group(weight)
        if module.startswith("torchao."):
            return torch.tensor(float(count))
        if module.startswith("torch."):
            return torch.tensor(float(count), device=weight.device if group.get("fused") else "cpu")
        return count

    def _laid_out(self, weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """As the library would lay it out: kernels walk weight and state in one order."""
        like = weight.detach()
        if self._in_stretches:  # which has memory for it, or steps a copy, which is contiguous
            like = like.contiguous()
        return torch.empty_like(like, dtype=value.dtype).copy_(value)


def _is_packed(value: Any) -> bool:
    """Whether it is one of torchao's tensors, which are made of others."""
    return hasattr(value, "__tensor_flatten__") and type(value).__module__.startswith("torchao.")


def _flat(key: str, value: Any) -> Iterator[tuple[str, Value]]:
    if _is_packed(value):
        for name in value.__tensor_flatten__()[0]:
            yield f"{key}.{name}", getattr(value, name)
    else:
        yield key, int(value) if key == _STEP else value


def _packed(library: Any, weight: torch.Tensor, key: str, values: Mapping[str, Any]) -> Any:
    buffer = library._new_buffer(weight.detach(), key == "exp_avg")  # the second moment has no sign
    for name in buffer.__tensor_flatten__()[0]:
        getattr(buffer, name).copy_(values[f"{key}.{name}"])
    return buffer


def _copy(value: Value, device: torch.device) -> Value:
    return value.to(device, copy=True) if isinstance(value, torch.Tensor) else value
