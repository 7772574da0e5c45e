"""Stepping one weight after the other: bfloat16 weights with stochastic rounding, and steps during backward.

One instance of the library's optimizer serves all weights, with a group for each: what a library counts in its
group is then counted for each weight, as often as that weight is stepped. A bfloat16 weight is stepped on a
float32 copy that exists for the time of its step, so a library's state is float32 as well, and is rounded back
stochastically.

Refuses optimizers that look at several weights at once (`config.learn.FUSABLE` tells which do not). Owns no
arithmetic: that is the library's and `rounding`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

# Its functions take the process group of the moment of import for their default, and torch's optimizers import it
# when they are made. A group kept so outlives destroy_process_group, and its threads can abort an ending process.
import torch.distributed.nn.functional

from clusterft_trainer.engine.rounding import Noise, round_stochastically_

# Bytes of gradients whose mean over the ranks is under way while backward goes on.
IN_FLIGHT = 64 << 20

Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Single:
    """One weight: what the library steps instead of it (itself, or a float32 copy), and its two groups."""

    target: torch.nn.Parameter
    group: dict[str, Any]  # the library's
    owner: int  # index of the group that the trainer gave it, which has the rate
    place: int  # among all weights; keys its random numbers


class OneByOne(torch.optim.Optimizer):
    """The library's optimizer, one weight at a time; `param_groups` are the trainer's, rates can be set there."""

    def __init__(self, groups: list[dict[str, Any]], make: Make, *, rounds: bool) -> None:
        super().__init__(groups, {})
        self._noise = Noise()
        owned = [(owner, weight) for owner, group in enumerate(self.param_groups) for weight in group["params"]]
        targets = [_target(weight, rounds) for _, weight in owned]
        self.library = make(
            [
                {**self.param_groups[owner], "params": [target]}
                for (owner, _), target in zip(owned, targets, strict=True)
            ]
        )
        self.singles = {
            weight: Single(target, group, owner, place)
            for place, ((owner, weight), target, group) in enumerate(
                zip(owned, targets, self.library.param_groups, strict=True)
            )
        }

    def state_of(self, weight: torch.Tensor) -> dict[str, Any]:
        """What the library keeps for this weight; empty before its first step."""
        state: dict[str, Any] = self.library.state.get(self.singles[weight].target, {})
        return state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Step every weight that has a gradient."""
        for weight, single in self.singles.items():
            if weight.grad is not None:
                self._step(weight, single)

    def _step(self, weight: torch.Tensor, single: Single) -> None:
        _set(single.group, float(self.param_groups[single.owner]["lr"]))
        self.library.param_groups = [single.group]
        target = single.target
        if target is weight:
            self.library.step()
            return
        target.data = weight.detach().float().contiguous()
        target.grad = weight.grad.float().contiguous()
        self.library.step()
        target.grad = None
        weight.copy_(round_stochastically_(target.data, self._noise.bits(single.place, target.data)))
        target.data = target.data.new_empty(0)


class FusedBackward(OneByOne):
    """Steps each weight when backward has finished its gradient, which is then forgotten.

    With several ranks it takes the mean of the gradient over them first, in the order of backward, which is the
    same everywhere: the model must not be wrapped for data parallelism as well, and must start alike on all ranks.
    """

    def __init__(
        self, groups: list[dict[str, Any]], make: Make, *, rounds: bool, in_flight: int = IN_FLIGHT
    ) -> None:
        super().__init__(groups, make, rounds=rounds)
        self._ranks = dist.get_world_size() if dist.is_initialized() else 1
        self._most = in_flight
        self._pending: deque[tuple[torch.Tensor, Any]] = deque()  # weights, and when their mean will be there
        self._bytes = 0
        self._square: torch.Tensor | float = 0.0
        for weight in self.singles:
            weight.register_post_accumulate_grad_hook(self._ready)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Finish the weights whose gradients are still on their way; to be called after each backward."""
        self._finish(0)

    def take_norm(self) -> float:
        """Norm of all gradients since it was last asked for; waits for the device."""
        norm = float(self._square) ** 0.5
        self._square = 0.0
        return norm

    @torch.no_grad()
    def _ready(self, weight: torch.Tensor) -> None:
        if self._ranks == 1:
            self._complete(weight)
            return
        weight.grad.div_(self._ranks)
        self._pending.append((weight, dist.all_reduce(weight.grad, async_op=True)))
        self._bytes += weight.grad.nbytes
        self._finish(self._most)

    def _finish(self, most: int) -> None:
        while self._bytes > most:
            weight, mean = self._pending.popleft()
            mean.wait()
            self._bytes -= weight.grad.nbytes
            self._complete(weight)

    def _complete(self, weight: torch.Tensor) -> None:
        self._square = self._square + torch.linalg.vector_norm(weight.grad, dtype=torch.float32).square()
        self._step(weight, self.singles[weight])
        weight.grad = None


def set_rates(groups: list[dict[str, Any]], factor: float) -> float:
    """Give every group this share of its full rate, its `base`; the first group's rate is the one to report."""
    for group in groups:
        _set(group, group["base"] * factor)
    return float(groups[0]["lr"])


def _set(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], torch.Tensor):  # torchao compiles its step around that very tensor
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _target(weight: torch.nn.Parameter, rounds: bool) -> torch.nn.Parameter:
    if not rounds or weight.dtype is not torch.bfloat16:
        return weight
    return torch.nn.Parameter(torch.empty(0, dtype=torch.float32, device=weight.device))
