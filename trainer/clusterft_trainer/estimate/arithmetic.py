"""Bytes in a slot, in a node and on disk, from shapes and settings alone. Torch-free.

Owns what each engine and each optimizer keeps, term by term, so that a reader can check every line; `meter`
measured the activations. Constants that no shape tells are named below with their reason. Refuses to hide an
allowance in another term: what is assumed stands in a line of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from clusterft_trainer.config import Ddp, Fsdp, TrainConfig, Zero
from clusterft_trainer.config.learn import ROUNDS_ITSELF, OptimizerName
from clusterft_trainer.estimate.devices import GIB

WIDTH = {"fp32": 4, "bf16": 2, "fp16": 2}
FULL = 4
CONTEXT = 600_000_000  # CUDA context, kernels, workspaces of cuBLAS and cuDNN: 0.4 to 0.8 GB by card and driver
NCCL = 350_000_000  # channels and buffers of a communicator
PROCESS = 3_500_000_000  # host: Python, torch with CUDA, and libraries, resident in each rank
RECORDS = 128 << 20  # disk: what a run writes beside checkpoints and exports
LATENTS = 2 * GIB  # host: what a rank remembers of latents and text states, at most
_QUANTISED = 4096  # elements from which bitsandbytes and torchao quantise a state
_BLOCK = {"adamw-8bit": 256, "paged-adamw-8bit": 256, "lion-8bit": 256}
_BLOCK |= {"ao-adamw-8bit": 256, "ao-adamw-4bit": 128, "ao-adamw-fp8": 256}
_BUCKET = 500_000_000  # elements of DeepSpeed's reduce bucket; engine.zero sets the same
_LIVE = 1_000_000_000  # weights that ZeRO-3 keeps gathered at most, DeepSpeed's default
_IN_FLIGHT = 64 << 20  # bytes of gradients on their way in a fused backward over several ranks


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the model."""

    part: str
    shape: tuple[int, ...]
    trained: bool

    @property
    def numel(self) -> int:
        """Its elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Inventory:
    """The weights of a model, and how FSDP groups them."""

    weights: tuple[Weight, ...]
    block: int  # elements of the largest block that FSDP gathers as one
    rest: int  # elements outside of all such blocks, which it keeps gathered

    def count(self, parts: Iterable[str], trained: bool | None = None) -> int:
        """Elements of some parts, of the trained, the frozen or all weights."""
        wanted = set(parts)
        return sum(w.numel for w in self.weights if w.part in wanted and trained in (None, w.trained))

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts, in the order of the model."""
        return tuple(dict.fromkeys(w.part for w in self.weights))

    @property
    def trained(self) -> int:
        """Elements that move."""
        return self.count(self.parts, True)

    @property
    def engaged(self) -> tuple[str, ...]:
        """Parts that the engine holds: the UNet, and encoders of which something is trained."""
        return tuple(p for p in self.parts if p == "unet" or self.count([p], True))

    @property
    def beside(self) -> tuple[str, ...]:
        """Frozen encoders."""
        return tuple(p for p in self.parts if p not in self.engaged)


@dataclass(frozen=True, slots=True)
class Term:
    """One line of a sum of bytes."""

    name: str
    bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """How many processes share the work."""

    nodes: int
    slots: int  # of each node

    @property
    def world(self) -> int:
        """All of them."""
        return self.nodes * self.slots


@dataclass(frozen=True, slots=True)
class Transient:
    """Bytes that live only while something is computed, as measured on the meta device."""

    activations: int  # forward and backward, at the worst moment
    beside: int  # gradients included: the worst moment where they are made from nothing in each step
    encoding: int  # the frozen encoders on one sample: they take one after the other


def state_bytes(name: OptimizerName, shapes: Iterable[tuple[int, ...]], weights: str = "fp32") -> int:
    """Optimizer state for whole tensors; scales, maps and factors included, counters not."""
    small = 2 if weights == "bf16" and name in ROUNDS_ITSELF else FULL
    return sum(_state(name, shape, small) for shape in shapes)


def _state(name: OptimizerName, shape: tuple[int, ...], small: int) -> int:
    """`small` is the width of a number where nothing is quantised."""
    n = math.prod(shape)
    if name in _BLOCK:
        return _quantised(name, n, small)
    if name in ("adafactor", "came"):
        return _factored(name, shape)
    per_weight = {"adamw": 2, "lion": 1, "stable-adamw": 2, "prodigy": 4, "schedule-free-adamw": 2}[name]
    return per_weight * FULL * n


def _quantised(name: OptimizerName, n: int, small: int) -> int:
    moments, block = (1 if name.startswith("lion") else 2), _BLOCK[name]
    whole_blocks = n % block == 0 or not name.startswith("ao-")
    if n < _QUANTISED or not whole_blocks:
        return moments * small * n
    codes = n // 2 if "4bit" in name else n
    return moments * (codes + 4 * -(-n // block))


def _factored(name: OptimizerName, shape: tuple[int, ...]) -> int:
    """Means over rows and over columns in place of the second moment, for tensors of two dimensions and more."""
    n = math.prod(shape)
    factors = n if len(shape) < 2 else n // shape[-1] + n // shape[-2]
    if name == "adafactor":
        return FULL * factors
    return FULL * (n + (factors if len(shape) < 2 else 2 * factors))


def vram(config: TrainConfig, inventory: Inventory, cluster: Cluster, transient: Transient) -> tuple[Term, ...]:
    """Everything that one slot holds at the worst moment of a step."""
    engine = config.engine
    if isinstance(engine, Zero):
        terms = _zero(config, engine, inventory, cluster.world)
    elif isinstance(engine, Fsdp):
        terms = _fsdp(config, inventory, cluster.world)
    else:
        terms = _ddp(config, inventory, cluster.world)
    terms += _means(config, inventory, cluster.world)
    terms += _passing(config, inventory, cluster, transient)
    terms.append(Term("CUDA and libraries", CONTEXT, "allowance for context, kernels and workspaces"))
    if cluster.world > 1:
        terms.append(Term("NCCL", NCCL, "allowance for channels and buffers"))
    return tuple(term for term in terms if term.bytes)


def _ddp(config: TrainConfig, inventory: Inventory, world: int) -> list[Term]:
    held, moving = inventory.count(inventory.engaged), inventory.trained
    width = WIDTH[config.weights]
    terms = [Term("weights", width * held, f"{_count(held)} in {config.weights}, whole in each slot")]
    if config.learn.optimizer.fused_backward:
        under_way = _IN_FLIGHT if world > 1 else 0
        terms.append(Term("gradients", under_way, "each is used and forgotten in the backward pass"))
    elif world > 1:
        why = f"{_count(moving)} in {config.weights}; they lie in the buckets that are exchanged"
        terms.append(Term("gradients", width * moving, why))
    elif config.batch.accumulate > 1:
        terms.append(Term("gradients", width * moving, f"{_count(moving)} in {config.weights}"))
    state = _optimizer(config, inventory)
    terms.append(Term("optimizer", 0 if _paged(config) else state, f"{config.learn.optimizer.name}, whole"))
    return terms


def _zero(config: TrainConfig, engine: Zero, inventory: Inventory, world: int) -> list[Term]:
    held, moving, width = inventory.count(inventory.engaged), inventory.trained, WIDTH[config.precision]
    here = 1 if engine.offload == "none" else 0
    cut = f"1/{world} of {_count(moving)}"
    weights = width * held // (world if engine.stage == 3 else 1)
    where = "cut over all slots" if engine.stage == 3 else "whole in each slot"
    gradients = width * moving // (1 if engine.stage == 1 else world)
    bucket = width * min(moving, _BUCKET)
    exchanged = bucket if engine.stage < 3 else bucket + width * min(held, _LIVE)
    return [
        Term("weights", weights, f"{_count(held)} in {config.precision}, {where}"),
        Term("full weights", here * FULL * moving // world, f"{cut} in fp32, which the optimizer moves"),
        Term("gradients", here * gradients, "whole in each slot" if engine.stage == 1 else f"{cut}"),
        Term("optimizer", here * _optimizer(config, inventory) // world, f"{config.learn.optimizer.name}, {cut}"),
        Term("communication", exchanged, "DeepSpeed's buckets" + (" and gathered weights" * (engine.stage == 3))),
    ]


def _fsdp(config: TrainConfig, inventory: Inventory, world: int) -> list[Term]:
    held, moving, width = inventory.count(inventory.engaged), inventory.trained, WIDTH[config.precision]
    gathered = width * (inventory.rest + 2 * inventory.block) + FULL * inventory.block
    return [
        Term("weights", FULL * held // world, f"1/{world} of {_count(held)} in fp32"),
        Term("gradients", FULL * moving // world, f"1/{world} of {_count(moving)} in fp32"),
        Term("optimizer", _optimizer(config, inventory) // world, f"{config.learn.optimizer.name}, 1/{world}"),
        Term("communication", gathered, "two gathered blocks, what lies outside of blocks, one block's gradients"),
    ]


def _means(config: TrainConfig, inventory: Inventory, world: int) -> list[Term]:
    ema = config.learn.ema
    if ema is None or ema.device == "cpu":
        return []
    return [Term("EMA", FULL * inventory.trained // world, f"1/{world} of the trained weights in fp32")]


def _passing(config: TrainConfig, inventory: Inventory, cluster: Cluster, transient: Transient) -> list[Term]:
    """Frozen encoders stay; of backward, encoding and the step only the largest counts, for they take turns."""
    terms = []
    for part in inventory.beside:
        kind = config.compute.vae_dtype if part == "vae" else config.compute.text_dtype
        count = inventory.count([part])
        terms.append(Term(part.replace("_", " "), WIDTH[kind] * count, f"{_count(count)} in {kind}, frozen"))
    lone = isinstance(config.engine, Ddp) and cluster.world == 1 and config.batch.accumulate == 1
    fused = config.learn.optimizer.fused_backward
    training = transient.beside if lone and not fused else transient.activations
    left = WIDTH[config.weights] * inventory.trained if lone and not fused else 0
    moments = {
        "activations" + (" and gradients" if left else ""): training,
        "encoding pictures": transient.encoding,
        "step" + (" and gradients" if left else ""): _stepping(config, inventory, cluster.world) + left,
    }
    name = max(moments, key=lambda n: moments[n])
    others = ", ".join(f"{n} {_size(b)}" for n, b in moments.items() if n != name)
    terms.append(Term(name, moments[name], f"measured on the meta device; not at the same time: {others}"))
    return terms


def _stepping(config: TrainConfig, inventory: Inventory, world: int) -> int:
    """What exists only while the weights are moved."""
    if isinstance(config.engine, Zero):
        return 0 if config.engine.offload == "optimizer" else FULL * inventory.trained // world
    largest = max((w.numel for w in inventory.weights if w.trained), default=0)
    # One stretch at a time, of which the largest is one weight: full copies of it, its gradient and the update. To
    # round it: its gradient as it was, full copies of both, random bits, and which numbers are none.
    rounds = config.weights == "bf16" and config.learn.optimizer.name not in ROUNDS_ITSELF
    return (15 if rounds else 3 * FULL) * largest


def host(config: TrainConfig, inventory: Inventory, cluster: Cluster) -> tuple[Term, ...]:
    """Host memory of one node."""
    share = cluster.slots / cluster.world  # of what is cut over all slots
    moving = inventory.trained
    terms = [
        Term("processes", PROCESS * cluster.slots, f"allowance for {cluster.slots} ranks and their libraries")
    ]
    if isinstance(config.engine, Zero) and config.engine.offload == "optimizer":
        kept = FULL * moving + _optimizer(config, inventory) + FULL * moving
        why = "full weights, optimizer and gradients of this node's slots, pinned"
        terms.append(Term("offloaded", int(kept * share), why))
    if _paged(config):
        why = "paged optimizer state, where the GPU has no room for it"
        terms.append(Term("paged", _optimizer(config, inventory) * cluster.slots, why))
    if config.learn.ema is not None and config.learn.ema.device == "cpu":
        terms.append(Term("EMA", int(FULL * moving * share), "this node's part of the mean, fp32"))
    staged = int(checkpoint(config, inventory) * share)
    terms.append(Term("checkpoint staging", staged, "a copy of this node's part, from which it is written"))
    terms.append(Term("latents and text", LATENTS * cluster.slots, "remembered encodings, at most"))
    whole = FULL * inventory.count(inventory.parts)
    terms.append(Term("loading or export", whole, "the whole model in fp32, once, by one rank at a time"))
    return tuple(terms)


def checkpoint(config: TrainConfig, inventory: Inventory) -> int:
    """Bytes of one resumable state: trained weights, optimizer state, and the running mean."""
    moving = inventory.trained
    width = WIDTH[config.weights] if isinstance(config.engine, Ddp) else FULL
    mean = FULL * moving if config.learn.ema is not None else 0
    return width * moving + _optimizer(config, inventory) + mean


def export(config: TrainConfig, inventory: Inventory) -> int:
    """Bytes of one exported model, or of the LoRA alone."""
    parts = inventory.parts
    width = WIDTH[config.output.dtype]
    if config.learn.lora is not None:
        return width * inventory.trained
    return width * inventory.count(parts) * (2 if config.output.diffusers else 1)


def standing(config: TrainConfig) -> dict[str, int]:
    """How many checkpoints lie on the disk at most, by why they are there, with the one that is being written."""
    saving, due = config.checkpoints, _due(config)
    kept = due if saving.keep is None else saving.keep if due is None else min(saving.keep, due)
    only = due == 0 and saving.rolling is None and saving.best is None
    found = {"kept": 1 if kept is None else kept, "best": int(saving.best is not None), "last": 1}
    return {name: count for name, count in (found | {"being written": int(not only)}).items() if count}


def exports(config: TrainConfig) -> int:
    """How many models are left at the end."""
    every = config.output.every_epochs
    return 1 if every is None else -(-(config.epochs or 1) // every)


def peak(config: TrainConfig, one: int, model: int) -> int:
    """What lies on the disk at some moment in any case, of checkpoints and exports of so many bytes each.

    An older checkpoint goes only when the newer one is whole. 0 where the number of those that fall due takes the
    number of pictures.
    """
    keep, due = config.checkpoints.keep, _due(config)
    if due is None:
        return 0
    kept = due if keep is None else min(keep, due)
    return max((kept + (kept < due)) * one, kept * one + exports(config) * model)


def _due(config: TrainConfig) -> int | None:
    """How many of those that are kept fall due in the whole run; None where that takes the number of pictures."""
    ends = {"steps": config.steps, "epochs": config.epochs, "minutes": None}
    counts = [(ends[span.unit], span.count) for span in config.checkpoints.cadences]
    if any(end is None for end, _ in counts):
        return None
    return sum((end or 0) // count for end, count in counts)


def disk(config: TrainConfig, one: int, model: int) -> tuple[Term, ...]:
    """What retention lets stand at most, of checkpoints and exports of so many bytes each."""
    endless = config.checkpoints.keep is None and _due(config) is None
    terms = [
        Term(
            f"{name} checkpoints" if name == "kept" else f"{name} checkpoint",
            count * one,
            "one; keep: null keeps all, so each adds as much" if name == "kept" and endless else f"{count}",
        )
        for name, count in standing(config).items()
    ]
    terms.append(Term("exports", exports(config) * model, f"{exports(config)} in {config.output.dtype}"))
    terms.append(Term("records", RECORDS, "allowance for logs, metrics and samples"))
    return tuple(term for term in terms if term.bytes)


def total(terms: Iterable[Term]) -> int:
    """Sum of the bytes."""
    return sum(term.bytes for term in terms)


def _optimizer(config: TrainConfig, inventory: Inventory) -> int:
    shapes = (w.shape for w in inventory.weights if w.trained)
    return state_bytes(config.learn.optimizer.name, shapes, config.weights)


def _paged(config: TrainConfig) -> bool:
    return config.learn.optimizer.name.startswith("paged-")


def _count(numel: int) -> str:
    return f"{numel / 1e6:.1f} M" if numel < 1e9 else f"{numel / 1e9:.2f} G"


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
