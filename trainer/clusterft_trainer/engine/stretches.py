"""Stepping weights in stretches: bfloat16 weights with stochastic rounding, and steps during backward.

SDXL has 2375 weights, and a library's step costs the host a fifth of a millisecond and more for each, with a wait
for the GPU where the library is bitsandbytes: one to two seconds a step, whatever the GPU can do. So weights that
follow one another lie in one piece of memory, of which they are views, and are stepped as one tensor. That is done
for optimizers that decide about each number alone, or about blocks of 256 (`config.learn.JOINED`): each weight
begins a block, and gets the very bits that it would get alone. For others a stretch is one weight.

One instance of the library's optimizer serves all stretches, with a group for each: what a library counts in its
group is then counted for each, as often as that is stepped. Stretches in bfloat16 are stepped on a float32 copy
that exists for the time of the step, so a library's state is float32 as well, and are rounded back stochastically.

Refuses optimizers that look at several weights at once (`config.learn.FUSABLE` tells which do not). Owns no
arithmetic: that is the library's and `rounding`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

# Its functions take the process group of the moment of import for their default, and torch's optimizers import it
# when they are made. A group kept so outlives destroy_process_group, and its threads can abort an ending process.
import torch.distributed.nn.functional

from clusterft_trainer.engine.rounding import Noise, round_stochastically_

# Bytes of gradients whose mean over the ranks is under way while backward goes on.
IN_FLIGHT = 64 << 20
# Numbers of a stretch. Its step holds some 14 bytes for each; below a million the host is slower than the GPU.
LENGTH = 1 << 24
# Each weight of a stretch begins at a multiple: the blocks of bitsandbytes, and what kernels like.
BLOCK = 256

Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


_OF_BLOCKS = frozenset({"absmax1", "absmax2"})  # bitsandbytes' scales
_MAPS = {"state1": "qmap1", "state2": "qmap2"}  # what its codes stand for
_STEP = "step"

# Before the first step of a stretch: the library, its group, the tensor, and the length of each of its weights.
Begin = Callable[[Any, dict[str, Any], torch.Tensor, int], None]


def _begin(library: Any, group: dict[str, Any], target: torch.Tensor, length: int) -> None:
    """Most libraries begin by themselves."""


@dataclass(frozen=True)
class Joining:
    """How a library's optimizer takes several weights as one tensor."""

    short: int = 0  # weights of fewer numbers are treated in another way, and have stretches of their own
    begin: Begin = _begin


@dataclass(eq=False)
class Stretch:
    """Weights that are stepped as one tensor."""

    starts: dict[torch.nn.Parameter, int]  # the weights, and where each begins in the whole
    whole: torch.Tensor  # their memory; of a weight that stays alone, its own, in its shape
    target: torch.nn.Parameter  # what the library steps: that memory, or a float32 copy
    group: dict[str, Any]  # the library's
    owner: int  # index of the group that the trainer gave them, which has the rate
    place: int  # among all stretches; keys its random numbers
    joined: bool
    missing: int  # gradients that this backward still owes
    _paddings: dict[tuple[int, torch.dtype], torch.Tensor] = field(default_factory=dict)

    def begun(self) -> bool:
        """Whether any weight has a gradient."""
        return any(weight.grad is not None for weight in self.starts)

    def gradient(self) -> torch.Tensor:
        """Of the whole; where one weight has none while others have, it is nothing."""
        if self.joined:
            return torch.cat(list(self._gradients()))
        found: torch.Tensor = next(iter(self.starts)).grad
        return found

    def forget(self) -> None:
        """Let the weights' gradients go."""
        for weight in self.starts:
            weight.grad = None
        self.missing = len(self.starts)

    def part(self, weight: torch.nn.Parameter, key: str, value: Any) -> Any:
        """What one weight has of an entry of the state, which has a value for each number, block, or tensor."""
        first, end = self.starts[weight], self.starts[weight] + weight.numel()
        if key in _OF_BLOCKS:
            return value[first // BLOCK : -(-end // BLOCK)]
        if isinstance(value, torch.Tensor) and value.numel() == self.whole.numel():
            return value.view(-1)[first:end].view(weight.shape)
        return value

    def _gradients(self) -> Iterator[torch.Tensor]:
        kind = next(weight.grad.dtype for weight in self.starts if weight.grad is not None)
        for weight in self.starts:
            none = weight.grad is None
            yield torch.zeros_like(weight, dtype=kind).reshape(-1) if none else weight.grad.reshape(-1)
            if weight.numel() % BLOCK:
                yield self._padding(-weight.numel() % BLOCK, kind)

    def _padding(self, numel: int, kind: torch.dtype) -> torch.Tensor:
        found = self._paddings.get((numel, kind))
        if found is None:
            found = self._paddings[numel, kind] = torch.zeros(numel, dtype=kind, device=self.whole.device)
        return found


class InStretches(torch.optim.Optimizer):
    """The library's optimizer, a stretch at a time; `param_groups` are the trainer's, rates can be set there."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        make: Make,
        *,
        rounds: bool,
        joining: Joining | None = None,
    ) -> None:
        super().__init__(groups, {})
        self._noise, self._joining = Noise(), joining
        runs = [(o, run) for o, group in enumerate(self.param_groups) for run in _runs(group["params"], joining)]
        joined = joining is not None
        laid = [_laid(run, joined) for _, run in runs]
        targets = [_target(run, whole, rounds, joined) for (_, run), (whole, _) in zip(runs, laid, strict=True)]
        self.library: Any = make(
            [{**self.param_groups[o], "params": [target]} for (o, _), target in zip(runs, targets, strict=True)]
        )
        every = zip(runs, laid, targets, self.library.param_groups, strict=True)
        self.stretches = [
            Stretch(starts, whole, target, group, owner, place, joined, len(run))
            for place, ((owner, run), (whole, starts), target, group) in enumerate(every)
        ]
        self.of = {weight: stretch for stretch in self.stretches for weight in stretch.starts}

    def state_of(self, weight: torch.nn.Parameter) -> dict[str, Any]:
        """What the library keeps for this weight, in its shape; empty before its first step."""
        stretch = self.of[weight]
        state: dict[str, Any] = self.library.state.get(stretch.target, {})
        return {k: stretch.part(weight, k, v) for k, v in state.items()} if stretch.joined else state

    def take_state(self, weight: torch.nn.Parameter, given: dict[str, Any]) -> None:
        """Make this the weight's state; what a library counts for a tensor, all weights of a stretch share."""
        stretch = self.of[weight]
        if not stretch.joined:
            self.library.state[stretch.target] = given
            return
        state = self.library.state[stretch.target]
        for key, value in given.items():
            if key not in _OF_BLOCKS and (key == _STEP or getattr(value, "shape", None) != weight.shape):
                state[key] = value
                continue
            if key not in state:
                codes = given.get(_MAPS.get(key, ""))
                state[key] = self._room(stretch.whole, key, value.dtype).fill_(_nothing_in(codes))
            stretch.part(weight, key, state[key]).copy_(value)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Step every weight that has a gradient."""
        for stretch in self.stretches:
            if stretch.begun():
                self._step(stretch, stretch.gradient())

    def _step(self, stretch: Stretch, gradient: torch.Tensor) -> None:
        _set(stretch.group, float(self.param_groups[stretch.owner]["lr"]))
        self.library.param_groups = [stretch.group]
        target, whole = stretch.target, stretch.whole
        copied = target.numel() == 0
        if copied:
            target.data, gradient = whole.float().contiguous(), gradient.float().contiguous()
        if self._joining is not None and not self.library.state.get(target):
            self._joining.begin(self.library, stretch.group, target, next(iter(stretch.starts)).numel())
        target.grad = gradient
        self.library.step()
        if copied:
            whole.copy_(round_stochastically_(target.data, self._noise.bits(stretch.place, target.data)))
            target.data = target.data.new_empty(0)
        if copied or stretch.joined:
            target.grad = None

    def _room(self, whole: torch.Tensor, key: str, kind: torch.dtype) -> torch.Tensor:
        """For an entry of a stretch's state."""
        if key in _OF_BLOCKS:
            return torch.zeros(whole.numel() // BLOCK, dtype=kind, device=whole.device)
        if hasattr(self.library, "get_state_buffer"):  # bitsandbytes: memory that may move to the host
            found: torch.Tensor = self.library.get_state_buffer(whole, dtype=kind)
            return found
        return torch.zeros_like(whole, dtype=kind)


class FusedBackward(InStretches):
    """Steps each stretch when backward has finished its gradients, which are then forgotten.

    With several ranks it takes the mean of the gradients over them first, in the order of backward, which is the
    same everywhere: the model must not be wrapped for data parallelism as well, and must start alike on all ranks.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        make: Make,
        *,
        rounds: bool,
        joining: Joining | None = None,
        in_flight: int = IN_FLIGHT,
    ) -> None:
        super().__init__(groups, make, rounds=rounds, joining=joining)
        self._ranks = dist.get_world_size() if dist.is_initialized() else 1
        self._most = in_flight
        self._pending: deque[tuple[Stretch, torch.Tensor, Any]] = deque()  # and when their mean will be there
        self._bytes = 0
        self._square: torch.Tensor | float = 0.0
        for weight in self.of:
            weight.register_post_accumulate_grad_hook(self._ready)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Finish what is still on its way; to be called after each backward."""
        for stretch in self.stretches:
            if stretch.begun():  # some of its weights took no part
                self._take(stretch)
        self._finish(0)

    def take_norm(self) -> float:
        """Norm of all gradients since it was last asked for; waits for the device."""
        norm = float(self._square) ** 0.5
        self._square = 0.0
        return norm

    @torch.no_grad()
    def _ready(self, weight: torch.nn.Parameter) -> None:
        stretch = self.of[weight]
        stretch.missing -= 1
        if not stretch.missing:
            self._take(stretch)

    def _take(self, stretch: Stretch) -> None:
        gradient = stretch.gradient()
        stretch.forget()
        if self._ranks == 1:
            self._complete(stretch, gradient)
            return
        gradient.div_(self._ranks)
        self._pending.append((stretch, gradient, dist.all_reduce(gradient, async_op=True)))
        self._bytes += gradient.nbytes
        self._finish(self._most)

    def _finish(self, most: int) -> None:
        while self._bytes > most:
            stretch, gradient, mean = self._pending.popleft()
            mean.wait()
            self._bytes -= gradient.nbytes
            self._complete(stretch, gradient)

    def _complete(self, stretch: Stretch, gradient: torch.Tensor) -> None:
        self._square = self._square + torch.linalg.vector_norm(gradient, dtype=torch.float32).square()
        self._step(stretch, gradient)
        stretch.target.grad = None


def set_rates(groups: list[dict[str, Any]], factor: float) -> float:
    """Give every group this share of its full rate, its `base`; the first group's rate is the one to report."""
    for group in groups:
        _set(group, group["base"] * factor)
    return float(groups[0]["lr"])


def _nothing_in(codes: torch.Tensor | None) -> int:
    """What stands for nothing between weights: the largest code of a block scales all others."""
    return 0 if codes is None else int(codes.abs().argmin())


def _set(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], torch.Tensor):  # torchao compiles its step around that very tensor
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _runs(weights: list[torch.nn.Parameter], joining: Joining | None) -> Iterator[list[torch.nn.Parameter]]:
    """Weights that go together: neighbours, so that backward finishes them soon after one another."""
    if joining is None:
        yield from ([weight] for weight in weights)
        return
    open_runs: dict[tuple[bool, torch.dtype], list[torch.nn.Parameter]] = {}
    for weight in weights:
        run = open_runs.setdefault((weight.numel() < joining.short, weight.dtype), [])
        if run and sum(w.numel() for w in run) + weight.numel() > LENGTH:
            yield list(run)
            run.clear()
        run.append(weight)
    yield from open_runs.values()


def _laid(run: list[torch.nn.Parameter], joined: bool) -> tuple[torch.Tensor, dict[torch.nn.Parameter, int]]:
    """Memory for a run, with its weights as views of it, and where each begins."""
    if not joined:
        return run[0].detach(), {run[0]: 0}
    starts, numel = {}, 0
    for weight in run:
        starts[weight] = numel
        numel += -(-weight.numel() // BLOCK) * BLOCK
    whole = torch.zeros(numel, dtype=run[0].dtype, device=run[0].device)
    for weight, start in starts.items():
        place = whole[start : start + weight.numel()].view(weight.shape)
        weight.data = place.copy_(weight.detach())
    return whole, starts


def _target(run: list[torch.nn.Parameter], whole: torch.Tensor, rounds: bool, joined: bool) -> torch.nn.Parameter:
    if rounds and whole.dtype is torch.bfloat16:
        return torch.nn.Parameter(torch.empty(0, dtype=torch.float32, device=whole.device))
    return torch.nn.Parameter(whole) if joined else run[0]
