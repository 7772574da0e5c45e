"""Runs modules that have no storage and counts what the real ones would compute and hold.

Everything happens on the meta device, where a tensor is a shape. Owns the two modes that watch: `Meter` sees every
operation (FLOPs by torch's own formulas, bytes alive and their peak), `Kernels` puts in place of meta's attention
one that costs what the fused kernels cost, casts as CUDA's autocast does, and keeps what compiled blocks keep.
Refuses to see what no tensor holds: workspaces of cuDNN and cuBLAS, and gaps in the allocator, are `arithmetic`'s
allowances.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

# The lists of CUDA's autocast, as far as SDXL's modules use them.
_LOWER = frozenset({functional.linear, functional.conv2d, torch.matmul, torch.bmm, torch.baddbmm})
_FULL = frozenset({functional.layer_norm, functional.group_norm, functional.softmax, functional.mse_loss})
_TIMES = frozenset({torch.mul, torch.Tensor.mul, torch.Tensor.__mul__})


class Meter(TorchDispatchMode):
    """Counts FLOPs and the bytes of tensors that were made while it watches and are still alive."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.flops = 0
        self.live = 0
        self.peak = 0
        self._refs: dict[int, weakref.ref[Any]] = {}
        weights = [t for m in modules for t in (*m.parameters(), *m.buffers())]
        # held, so that no later storage can take over the id of one of these
        self._own = [t.untyped_storage() for t in weights]
        self._ids = {id(s) for s in self._own}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return out

    def _watch(self, storage: Any) -> None:
        key = id(storage)
        if key in self._ids or key in self._refs:
            return
        size = storage.nbytes()

        def gone(_: object) -> None:
            del self._refs[key]
            self.live -= size

        self._refs[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


class Kernels(TorchFunctionMode):
    """Attention as the fused kernels do it, autocast to `low` where that is given, what compiled blocks keep."""

    def __init__(self, meter: Meter, low: torch.dtype | None, compiled: bool = False) -> None:
        super().__init__()
        self._meter = meter
        self._low = low
        self._compiled = compiled
        self._gate: weakref.ref[Any] | None = None
        self._cast: dict[int, torch.Tensor] | None = {}

    def leave_forward(self) -> None:
        """Autocast forgets its copies of the weights; what the backward pass needs, the graph holds."""
        self._cast = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One call of torch's Python surface."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            query, key, value = (self._to(t, self._low) for t in args[:3])
            return _Fused.apply(self._meter, query, key, value)
        if self._low is not None and func in _LOWER:
            args, kwargs = self._all(args, self._low), {k: self._to(v, self._low) for k, v in kwargs.items()}
        elif self._low is not None and func in _FULL:
            args = self._all(args, torch.float32)
            kwargs = {k: self._to(v, torch.float32) for k, v in kwargs.items()}
        return self._kept(func, args, kwargs) if self._compiled else func(*args, **kwargs)

    def _kept(self, func: Any, args: Any, kwargs: Any) -> Any:
        """As torch's compiler cuts blocks: what an elementwise operation hands to another one is made anew.

        In SDXL's blocks that is what a gate multiplies by, and what a group norm hands to SiLU. What goes into a
        product or a convolution is kept.
        """
        if func is functional.gelu:
            out = func(*args, **kwargs)
            self._gate = weakref.ref(out)
            return out
        if func is functional.silu:
            return _Unkept.apply(args[0])
        gate = None if self._gate is None else self._gate()
        if func in _TIMES and gate is not None and args[1] is gate:
            return _Gated.apply(*args)
        return func(*args, **kwargs)

    def _all(self, args: Any, dtype: torch.dtype) -> Any:
        return tuple(self._to(a, dtype) for a in args)

    def _to(self, value: Any, dtype: torch.dtype | None) -> Any:
        if dtype is None or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        if value.dtype == dtype:
            return value
        if self._cast is None or not (value.is_leaf and value.requires_grad):
            return value.to(dtype)
        if id(value) not in self._cast:
            self._cast[id(value)] = value.to(dtype)
        return self._cast[id(value)]


class _Fused(torch.autograd.Function):
    """Attention that keeps its inputs, its output and one number for each row, never the whole score matrix.

    Its backward pass is counted without the scores that the kernel computes anew: that is no useful work.
    """

    @staticmethod
    def forward(ctx: Any, meter: Meter, query: Any, key: Any, value: Any) -> Any:
        batch, heads, length, _ = query.shape
        # the kernels lay it out so that the heads can be joined without a copy
        out = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        ctx.meter = meter
        ctx.products = sdpa_flop_count(query.shape, key.shape, value.shape)
        meter.flops += ctx.products
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        inputs = ctx.saved_tensors[:3]
        query, key, value = ctx.needs_input_grad[1:4]
        # dV = P'dO; dP = dO V' for both others; dQ = dS K; dK = dS'Q: each half of what forward cost
        ctx.meter.flops += ctx.products // 2 * (value + (query or key) + query + key)
        wanted = zip(inputs, (query, key, value), strict=True)
        return (None, *(torch.empty_like(t) if need else None for t, need in wanted))


class _Gated(torch.autograd.Function):
    """A product that does not keep its second factor."""

    @staticmethod
    def forward(ctx: Any, value: Any, gate: Any) -> Any:
        ctx.save_for_backward(value)
        return value * gate

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (value,) = ctx.saved_tensors
        return torch.empty_like(grads[0]), grads[0] * value


class _Unkept(torch.autograd.Function):
    """SiLU that does not keep what it was given."""

    @staticmethod
    def forward(ctx: Any, given: Any) -> Any:
        return torch.empty_like(given)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return torch.empty_like(grads[0])
