"""Settings and machines in, an Estimate out.

Owns what is measured for which settings, the comparison of engines, and which one is recommended: the lowest ZeRO
stage that fits. Refuses to recommend by rule: every alternative that is named was computed like the settings
themselves, and passed the same refusals.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from clusterft_trainer import placing
from clusterft_trainer.config import Compute, Data, Ddp, TrainConfig, Zero
from clusterft_trainer.errors import ConfigError
from clusterft_trainer.estimate import arithmetic, blueprint, devices, flops, timing
from clusterft_trainer.estimate.arithmetic import Cluster, Inventory, Term, Transient, Weight
from clusterft_trainer.estimate.blueprint import Modules
from clusterft_trainer.estimate.flops import Batch, StepFlops
from clusterft_trainer.estimate.timing import Time, Work

SCHEMA = 1
# Of a card's memory: what the driver keeps for itself, and gaps that the allocator cannot fill.
HEADROOM = 0.07
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Gathered together by engine.fsdp.
_BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock", "CLIPEncoderLayer")
_DDP: dict[str, Any] = {"kind": "ddp"}
_ZERO: tuple[dict[str, Any], ...] = tuple({"kind": "zero", "stage": stage} for stage in (1, 2, 3))
_OFFLOADED: dict[str, Any] = {"kind": "zero", "stage": 2, "offload": "optimizer"}
_SUGGESTED = 3  # ways out that are told


@dataclass(frozen=True, slots=True)
class Site:
    """The machines, as far as they are known."""

    nodes: int
    slots: int  # of each node
    gpu: str | None = None
    memory: float | None = None  # bytes of each slot
    link: float | None = None  # bytes a second, one way

    @property
    def cluster(self) -> Cluster:
        """Numbers alone."""
        return Cluster(self.nodes, self.slots)

    @property
    def device(self) -> devices.Device | None:
        """The table's entry."""
        return None if self.gpu is None else devices.require(self.gpu)

    @property
    def room(self) -> float | None:
        """Bytes that a run may use of a slot."""
        if self.memory is not None:
            return self.memory * (1 - HEADROOM)
        return None if self.device is None else self.device.memory * devices.GIB * (1 - HEADROOM)


@dataclass(frozen=True, slots=True)
class Option:
    """One engine for the same settings."""

    engine: str
    vram: int | None  # None where it cannot be combined with the settings
    fits: bool | None  # None where the memory is not known
    step: float | None  # seconds
    refused: str | None


@dataclass(frozen=True, slots=True)
class Remedy:
    """Changed settings that fit, none of them for nothing."""

    changes: tuple[str, ...]
    engine: str
    vram: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Everything that is predicted."""

    schema: int
    model: str
    assumed: str | None
    site: Site
    size: tuple[int, int]  # pixels of the bucket that is estimated, the largest
    batch: int  # samples of an optimizer step
    weights: dict[str, tuple[int, int]]  # part: all, trained
    flops: StepFlops  # of a sample
    recomputed: int  # FLOPs of a sample
    engine: str
    vram: tuple[Term, ...]
    host: tuple[Term, ...]
    checkpoint: int
    export: int
    disk: tuple[Term, ...]
    time: Time
    options: tuple[Option, ...]
    recommended: str | None
    remedies: tuple[Remedy, ...]

    @property
    def fits(self) -> bool | None:
        """Whether the settings as they are fit into a slot."""
        return None if self.site.room is None else arithmetic.total(self.vram) <= self.site.room


def run(config: TrainConfig, site: Site) -> Estimate:
    """Predict a run, and compare the engines for it."""
    found = blueprint.find(config.model)
    lab = _Lab(found, site)
    case = lab.case(config)
    time = lab.time(config, case)
    options = tuple(lab.option(config, engine) for engine in _engines(config, site))
    fitting = [option for option in options if option.fits]
    remedies = () if fitting or site.room is None else tuple(itertools.islice(lab.remedies(config), _SUGGESTED))
    inventory = case.inventory
    checkpoint, export = arithmetic.checkpoint(config, inventory), arithmetic.export(config, inventory)
    return Estimate(
        schema=SCHEMA,
        model=found.origin,
        assumed=found.assumed,
        site=site,
        size=case.size,
        batch=config.batch.per_slot * config.batch.accumulate * site.cluster.world,
        weights={part: (inventory.count([part]), inventory.count([part], True)) for part in inventory.parts},
        flops=case.flops,
        recomputed=case.work.again,
        engine=name_of(config),
        vram=lab.vram(config),
        host=arithmetic.host(config, inventory, site.cluster),
        checkpoint=checkpoint,
        export=export,
        disk=arithmetic.disk(config, checkpoint, export),
        time=time,
        options=options,
        recommended=fitting[0].engine if fitting else None,
        remedies=remedies,
    )


def name_of(config: TrainConfig) -> str:
    """An engine in a word."""
    engine = config.engine
    if isinstance(engine, Zero):
        return f"zero-{engine.stage}" + (" with offload" if engine.offload == "optimizer" else "")
    return engine.kind


def inventory_of(modules: Modules) -> Inventory:
    """Weights and blocks of modules on the meta device."""
    weights, blocks, rest = [], [0], 0
    for part, module in modules.each().items():
        inside = {id(w) for m in module.modules() if type(m).__name__ in _BLOCKS for w in m.parameters()}
        blocks += [_numel(m) for m in module.modules() if type(m).__name__ in _BLOCKS]
        for weight in module.parameters():
            weights.append(Weight(part, tuple(weight.shape), weight.requires_grad))
            if part == "unet" and id(weight) not in inside:
                rest += weight.numel()
    return Inventory(tuple(weights), max(blocks), rest)


def _numel(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _engines(config: TrainConfig, site: Site) -> tuple[dict[str, Any], ...]:
    """What to compare, the fastest that needs most memory first; one slot has nothing to cut."""
    fsdp = ({"kind": "fsdp"},) if config.engine.kind == "fsdp" else ()
    return (_DDP, *(_ZERO if site.cluster.world > 1 else ()), *fsdp, _OFFLOADED)


@dataclass(frozen=True, slots=True)
class _Case:
    """What settings come to, whatever the engine spreads."""

    modules: Modules
    inventory: Inventory
    size: tuple[int, int]
    flops: StepFlops
    work: Work


@dataclass(frozen=True, slots=True)
class _Measured:
    """Of a forward and a backward in the number formats of an engine."""

    transient: Transient
    flops: int  # of a sample, what is computed anew included


class _Lab:
    """Measures on the meta device, and remembers: many alternatives share what is measured."""

    def __init__(self, found: blueprint.Blueprint, site: Site) -> None:
        self._found = found
        self._site = site
        self._built: dict[str, tuple[Modules, Inventory]] = {}
        self._counted: dict[tuple[Any, ...], StepFlops] = {}
        self._measured: dict[tuple[Any, ...], _Measured] = {}

    def case(self, config: TrainConfig) -> _Case:
        """Modules, weights and work for these settings."""
        modules, inventory = self._modules(config)
        size, tokens = largest(config.data), config.data.captions.tokens
        key = (id(modules), size, tokens)
        if key not in self._counted:
            self._counted[key] = flops.count(modules, *size, tokens)
        counted = self._counted[key]
        again = self._measure(config).flops - counted.useful if config.learn.gradient_checkpointing else 0
        return _Case(modules, inventory, size, counted, Work(counted.useful, again, counted.text, counted.vae))

    def vram(self, config: TrainConfig) -> tuple[Term, ...]:
        """All that a slot holds."""
        _, inventory = self._modules(config)
        return arithmetic.vram(config, inventory, self._site.cluster, self._measure(config).transient)

    def time(self, config: TrainConfig, case: _Case) -> Time:
        """How long a step takes."""
        device, cluster = self._site.device, self._site.cluster
        of, kind = (None if device is None else device.name), config.compute.vae_dtype
        peak, plain, half = (
            None if of is None or name is None else devices.peak(of, name)
            for name in (config.precision, "fp32", None if kind == "fp32" else kind)
        )
        rates = timing.Rates(peak, timing.encoding(plain, half), self._site.link)
        sent = timing.traffic(config, case.inventory, cluster.world)
        return timing.step(config, case.work, sent, rates, cluster)

    def option(self, config: TrainConfig, engine: dict[str, Any]) -> Option:
        """The same settings under another engine."""
        changed = _changed(config, {"engine": engine})
        if isinstance(changed, str):
            return Option(_words(engine), None, None, None, changed)
        size, room = arithmetic.total(self.vram(changed)), self._site.room
        seconds = self.time(changed, self.case(changed)).step
        return Option(name_of(changed), size, None if room is None else size <= room, seconds, None)

    def remedies(self, config: TrainConfig) -> Iterator[Remedy]:
        """Settings that would fit: the fewest changes first, and never more than are needed."""
        known = _changes(config)
        found: list[tuple[frozenset[str], bool]] = []
        for number in (1, 2, 3):
            for chosen in itertools.combinations(known, number):
                earlier = [offloaded for names, offloaded in found if names <= set(chosen)]
                if not _together([known[name] for name in chosen]) or not all(earlier):
                    continue
                # more changes are worth telling only if they spare the host's slow step
                remedy = self._tried(config, {name: known[name] for name in chosen}, offload=not earlier)
                if remedy is not None:
                    found.append((frozenset(chosen), "offload" in remedy.engine))
                    yield remedy

    def _tried(self, config: TrainConfig, changes: dict[str, dict[str, Any]], offload: bool) -> Remedy | None:
        merged = dict(item for change in changes.values() for item in change.items())
        engines = (
            [_DDP]
            if "engine" in merged
            else [e for e in _engines(config, self._site) if offload or e != _OFFLOADED]
        )
        for engine in engines:
            changed = _changed(config, merged | {"engine": engine})
            if isinstance(changed, str):
                continue
            try:
                _, inventory = self._modules(changed)
            except ConfigError:
                return None  # a preset whose blocks this model has not
            bare = arithmetic.vram(changed, inventory, self._site.cluster, Transient(0, 0, 0))
            # measuring costs seconds, and is of no use where the rest is too much already
            if not self._fits(bare):
                continue
            terms = self.vram(changed)
            if self._fits(terms):
                return Remedy(tuple(changes), name_of(changed), arithmetic.total(terms))
        return None

    def _fits(self, terms: tuple[Term, ...]) -> bool:
        return self._site.room is not None and arithmetic.total(terms) <= self._site.room

    def _modules(self, config: TrainConfig) -> tuple[Modules, Inventory]:
        key = repr((config.learn.trained, config.learn.lora))
        if key not in self._built:
            modules = blueprint.build(self._found)
            blueprint.choose(modules, config.learn)
            self._built[key] = modules, inventory_of(modules)
        return self._built[key]

    def _measure(self, config: TrainConfig) -> _Measured:
        modules, _ = self._modules(config)
        size, tokens = largest(config.data), config.data.captions.tokens
        full = isinstance(config.engine, Ddp) and config.weights == "fp32"
        half = _DTYPES[config.precision]
        lone = isinstance(config.engine, Ddp) and self._site.cluster.world == 1
        low = half if full and half is not torch.float32 else None
        ways = config.learn.gradient_checkpointing, config.compute.compile
        batch = Batch(config.batch.per_slot, *size, tokens, low, *ways)
        key = (id(modules), batch, full, config.compute.vae_dtype, config.precision, lone)
        if key not in self._measured:
            _cast(modules, torch.float32 if full else half, config.compute)
            ran = flops.run(modules, batch)
            held = flops.run(modules, replace(batch, hold=True)).peak if lone else ran.peak
            transient = Transient(ran.peak, held, flops.encoding(modules, replace(batch, samples=1)).peak)
            self._measured[key] = _Measured(transient, (ran.forward + ran.backward) // batch.samples)
            _cast(modules, torch.float32, Compute())
        return self._measured[key]


def largest(data: Data) -> tuple[int, int]:
    """Width and height of the bucket with the largest area."""
    table = placing.table(data.buckets, data.resolution)
    found = max(table, key=lambda b: (b.width * b.height, -abs(b.width - b.height)))
    return found.width, found.height


def _cast(modules: Modules, engaged: torch.dtype, compute: Compute) -> None:
    """Give each module the format that it has in training."""
    for name, module in modules.each().items():
        frozen = _DTYPES[compute.vae_dtype if name == "vae" else compute.text_dtype]
        kind = engaged if name == "unet" or flops.trains(module) else frozen
        nn.Module.to(module, kind)  # diffusers' own warns of what is no matter without storage


def _changes(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """What may be changed to save memory, as it is written in a job, the gentlest first."""
    learn, batch = config.learn, config.batch
    found: dict[str, dict[str, Any]] = {}
    if not learn.gradient_checkpointing:
        found["learn.gradient_checkpointing: true"] = {"learn.gradient_checkpointing": True}
    if batch.per_slot > 1:
        micro = batch.per_slot * batch.accumulate
        found[f"batch: {{per_slot: 1, accumulate: {micro}}}"] = {"batch": {"per_slot": 1, "accumulate": micro}}
    if "8bit" not in learn.optimizer.name and "4bit" not in learn.optimizer.name:
        found["learn.optimizer: adamw-8bit"] = {"learn.optimizer": {"name": "adamw-8bit"}, "engine": _DDP}
    if config.weights == "fp32" and config.precision == "bf16":
        found["weights: bf16"] = {"weights": "bf16", "engine": _DDP}
    if learn.unet is not None and learn.unet.parts == "all" and learn.lora is None:
        found["learn.unet.parts: unet-71"] = {"learn.unet.parts": "unet-71"}
    if not learn.optimizer.fused_backward and batch.accumulate == 1:
        fused = {"name": "adafactor", "fused_backward": True}
        change = {"learn.optimizer": fused, "learn.clip": None, "engine": _DDP}
        found["learn: {optimizer: {name: adafactor, fused_backward: true}, clip: null}"] = change
    return found


def _together(changes: list[dict[str, Any]]) -> bool:
    """Whether no two of them set the same thing."""
    paths = [path for change in changes for path in change if path != "engine"]
    return len(paths) == len(set(paths))


def _changed(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig | str:
    """Other settings, or why they cannot be."""
    body = config.model_dump(mode="json", exclude_unset=True)
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        target = body
        for name in parents:
            target = target[name]
        target[leaf] = value
    try:
        return TrainConfig.model_validate(body)
    except ValidationError as error:
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ").partition("; ")[0]


def _words(engine: dict[str, Any]) -> str:
    name = f"zero-{engine['stage']}" if engine["kind"] == "zero" else str(engine["kind"])
    return name + (" with offload" if engine.get("offload") == "optimizer" else "")
