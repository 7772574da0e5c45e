"""Proves the counts behind MFU and the estimate against torch's own, real optimizers, and what others measured."""

from __future__ import annotations

import argparse
import io
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clusterft_trainer.config import Learn, TrainConfig
from clusterft_trainer.config.learn import OptimizerName
from clusterft_trainer.errors import ConfigError, DataError
from clusterft_trainer.estimate import (
    arithmetic,
    blueprint,
    command,
    devices,
    flops,
    outline,
    predict,
    report,
    timing,
)
from clusterft_trainer.estimate.arithmetic import Cluster, Inventory, Transient
from clusterft_trainer.estimate.blueprint import Blueprint, Modules
from clusterft_trainer.estimate.meter import Kernels, Meter
from clusterft_trainer.estimate.predict import Site
from clusterft_trainer.model import layout

pytestmark = pytest.mark.trainer

TERA = 1e12
RATE = {"rate": 1e-5}
FULL = Blueprint(blueprint.PUBLISHED, "SDXL")


def modules(learn: dict[str, Any], found: Blueprint = FULL) -> Modules:
    built = blueprint.build(found)
    blueprint.choose(built, Learn.model_validate(learn))
    return built


def real_of(meta: Modules) -> Modules:
    """The same modules with storage, all zeros."""
    found = Modules(*(module.to_empty(device="cpu") for module in meta.each().values()))
    with torch.no_grad():
        for module in found.each().values():
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.zero_()
    return found


@pytest.fixture(scope="module")
def tiny() -> Blueprint:
    return blueprint.find("builtin:tiny")


@pytest.fixture(scope="module")
def full() -> Modules:
    return modules({"unet": RATE})


def settings(**changes: Any) -> TrainConfig:
    body: dict[str, Any] = {
        "model": "/nowhere/sdxl.safetensors",
        "output": {"name": "x"},
        "data": {"sources": [{"builtin": "shapes"}]},
        "learn": {"unet": RATE, "gradient_checkpointing": True},
        "steps": 5,
    }
    return TrainConfig.model_validate(body | changes)


# --- FLOPs


def test_full_size_flops_are_the_known_ones(full: Modules) -> None:
    table = flops.StepTable(full)
    square = table.whole(1024, 1024)
    assert square.forward / TERA == pytest.approx(6.76, abs=0.005)
    assert square.useful / TERA == pytest.approx(20.2, abs=0.05)
    assert square.vae / TERA == pytest.approx(4.88, abs=0.005)
    assert table.whole(512, 512).forward / TERA == pytest.approx(1.59, abs=0.005)
    assert table.whole(832, 1216).forward / TERA == pytest.approx(6.50, abs=0.005)
    longer = flops.run(full, flops.Batch(1, 1024, 1024, tokens=229)).forward
    assert longer / square.forward == pytest.approx(1.025, abs=0.001)


def test_flops_are_those_of_torchs_own_counter(tiny: Blueprint) -> None:
    """On real tensors, where attention runs as separate products: forward and backward, and each frozen part."""
    for learn in ({"unet": RATE}, {"unet": RATE | {"parts": ["middle_block"]}}, {"text_encoder_2": RATE}):
        meta = modules(learn, tiny)
        ran = flops.run(meta, flops.Batch(1, 64, 96))
        real = real_of(meta)
        inputs = _inputs(real, 64, 96)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            with FlopCounterMode(display=False) as forward:
                loss = _loss(real, inputs)
            with FlopCounterMode(display=False) as backward:
                loss.backward()
        assert (ran.forward, ran.backward) == (forward.get_total_flops(), backward.get_total_flops())


def _inputs(real: Modules, width: int, height: int) -> tuple[torch.Tensor, ...]:
    latents = torch.zeros(1, 4, height // 8, width // 8)
    return (
        latents,
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, 77, 96),
        torch.zeros(1, 48),
        torch.zeros(1, 6),
    )


def _loss(real: Modules, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    latents, times, hidden, pooled, sizes = inputs
    if flops.trains(real.text_encoder_2):
        found = real.text_encoder_2(torch.zeros(1, 77, dtype=torch.int64), output_hidden_states=True)
        hidden = torch.cat([hidden[..., : 96 - 64], found.hidden_states[-2]], -1)
        pooled = found.text_embeds
    told = {"text_embeds": pooled, "time_ids": sizes}
    out: torch.Tensor = real.unet(latents, times, hidden, added_cond_kwargs=told).sample
    return out.square().mean()


@pytest.mark.long
def test_the_first_three_areas_tell_every_other_bucket_exactly(tiny: Blueprint) -> None:
    built = modules({"unet": RATE, "text_encoder_1": RATE}, tiny)
    table = flops.StepTable(built)
    odd = (72, 40)  # no multiple of the grid: some level is padded
    for width, height in ((64, 64), (64, 128), odd, (128, 64), (96, 96), (1024, 768)):
        assert table.whole(width, height) == flops.count(built, width, height), (width, height)


def test_frozen_weights_and_encoders_cost_less_and_recomputing_is_not_useful(tiny: Blueprint) -> None:
    whole = modules({"unet": RATE}, tiny)
    every = flops.count(whole, 128, 128)
    part = flops.count(modules({"unet": RATE | {"parts": ["output_blocks"]}}, tiny), 128, 128)
    alone = flops.count(modules({"text_encoders": RATE}, tiny), 128, 128)
    assert max(part.backward, alone.backward) < every.backward
    assert part.forward == every.forward == alone.forward - every.text
    assert every.text > 0 and alone.text == 0 and every.vae == alone.vae > 0
    again = flops.run(whole, flops.Batch(1, 128, 128, checkpointing=True))
    assert again.forward == every.forward
    assert every.backward + 0.6 * every.forward < again.backward < every.backward + every.forward


def test_a_live_model_is_counted_and_left_as_it_was(tiny: Blueprint) -> None:
    learn = Learn.model_validate({"unet": RATE, "text_encoder_2": RATE, "lora": {"rank": 4}})
    live = real_of(modules(learn.model_dump(exclude_unset=True), tiny))
    live.unet.enable_gradient_checkpointing()
    before = {n: (p.data_ptr(), p.requires_grad) for n, p in live.unet.named_parameters()}
    denoiser = argparse.Namespace(unet=live.unet, text_encoder_1=None, text_encoder_2=live.text_encoder_2)
    encoders = argparse.Namespace(text_encoder_1=live.text_encoder_1, text_encoder_2=None, vae=live.vae)
    table = flops.step_table(denoiser, encoders)
    assert table(64, 64) == flops.count(modules(learn.model_dump(exclude_unset=True), tiny), 64, 64).useful > 0
    assert before == {n: (p.data_ptr(), p.requires_grad) for n, p in live.unet.named_parameters()}
    assert all(p.grad is None for p in live.unet.parameters())
    assert live.unet.is_gradient_checkpointing


# --- activations


def test_what_is_kept_for_the_backward_is_what_a_real_run_keeps(tiny: Blueprint) -> None:
    meta = modules({"unet": RATE}, tiny)
    kept = flops.run(meta, flops.Batch(2, 128, 128)).kept
    real = real_of(meta)
    own = {w.untyped_storage().data_ptr() for w in real.unet.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    latents, times, hidden, pooled, sizes = (torch.cat([t, t]) for t in _inputs(real, 128, 128))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        _loss(real, (latents, times, hidden, pooled, sizes))
    assert kept == pytest.approx(sum(found.values()), rel=0.005)


def _resnet() -> tuple[torch.nn.Module, tuple[Any, ...]]:
    from diffusers.models.resnet import ResnetBlock2D

    block: Any = ResnetBlock2D(in_channels=64, out_channels=128, temb_channels=96)
    return block, (torch.randn(2, 64, 32, 32), torch.randn(2, 96))


def _transformer() -> tuple[torch.nn.Module, tuple[Any, ...]]:
    from diffusers.models.attention import BasicTransformerBlock

    block: Any = BasicTransformerBlock(128, 2, 64, cross_attention_dim=96)
    return block, (torch.randn(2, 256, 128), None, torch.randn(2, 77, 96))


@pytest.mark.parametrize("make", [_resnet, _transformer])
def test_a_compiled_block_keeps_as_much_less_as_torchs_own_partitioner_decides(make: Any) -> None:
    """No code is generated: only its choice of what to keep and what to make anew counts."""

    def real(backend: str | None) -> int:
        block, given = make()
        if backend:
            block.compile(dynamic=False, backend=backend)
        own = {weight.untyped_storage().data_ptr() for weight in block.parameters()}
        found: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept = block(*(None if one is None else one.requires_grad_() for one in given))
        return sum(found.values()) + 0 * kept.numel()

    def counted(compiled: bool) -> int:
        block, given = make()
        block.to("meta")
        meter = Meter((block,))
        with meter, Kernels(meter, None, compiled):
            kept = block(*(None if one is None else one.to("meta").requires_grad_() for one in given))
        assert kept.shape
        return meter.live

    dropped = counted(False) - counted(True)
    assert dropped > 0.1 * counted(False)
    assert dropped == pytest.approx(real(None) - real("aot_eager_decomp_partition"), rel=0.005)


@pytest.mark.long
def test_activations_grow_with_the_batch_and_shrink_with_checkpointing(tiny: Blueprint) -> None:
    built = modules({"unet": RATE}, tiny)
    weights = sum(w.numel() for w in built.unet.parameters())

    def peak(samples: int, **options: Any) -> int:
        return flops.run(built, flops.Batch(samples, 128, 128, **options)).peak

    one = peak(1)
    assert peak(4) == pytest.approx(4 * one, rel=0.05)
    assert peak(1, checkpointing=True) < one / 2
    # autocast keeps a copy of the weights, 2 bytes each, until the forward is over
    assert peak(1, checkpointing=True, low=torch.bfloat16) > 1.9 * weights
    assert 4 * weights < peak(1, checkpointing=True, hold=True) < 4 * weights + peak(1, checkpointing=True)
    assert all(w.grad is None for w in built.unet.parameters())


# --- bytes


def test_the_inventory_is_sdxls(full: Modules) -> None:
    partly = modules({"unet": RATE | {"parts": "unet-71"}, "text_encoders": RATE})
    every, part = predict.inventory_of(full), predict.inventory_of(partly)
    assert every.trained == every.count(["unet"]) == 2_567_463_684
    assert part.count(["unet"], True) == 1_827_058_244
    assert every.engaged == ("unet",) and part.engaged == ("unet", "text_encoder_1", "text_encoder_2")
    assert every.beside == ("text_encoder_1", "text_encoder_2", "vae")


SHAPES = ((640, 320), (320,), (64, 64, 3, 3), (130, 33), (1, 5000))


def _libraries() -> dict[str, Any]:
    import bitsandbytes.optim as bnb
    import pytorch_optimizer as po
    from transformers.optimization import Adafactor

    return {
        "adamw": torch.optim.AdamW,
        "adamw-8bit": bnb.AdamW8bit,
        "lion-8bit": bnb.Lion8bit,
        "adafactor": lambda p: Adafactor(p, lr=1e-4, relative_step=False, scale_parameter=False),
        "lion": po.Lion,
        "came": po.CAME,
        "stable-adamw": lambda p: po.StableAdamW(p, kahan_sum=False),
        "prodigy": po.Prodigy,
        "schedule-free-adamw": po.ScheduleFreeAdamW,
    }


@pytest.mark.parametrize("name", list(_libraries()))
def test_optimizer_state_is_as_large_as_the_librarys(name: Any) -> None:
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer = _libraries()[name](weights)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    # maps of quantisation are shared by all weights; counters are single numbers
    held = {
        id(value): value.nbytes
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and value.numel() > 1 and not key.startswith("qmap")
    }
    assert sum(held.values()) == pytest.approx(arithmetic.state_bytes(name, SHAPES), abs=64)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("ao-adamw-8bit", "AdamW8bit"), ("ao-adamw-4bit", "AdamW4bit"), ("ao-adamw-fp8", "AdamWFp8")],
)
def test_torchaos_state_is_as_large_as_told(name: Any, kind: str) -> None:
    """Its step needs a compiler, its buffers do not."""
    import torchao.optim

    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer = getattr(torchao.optim, kind)(weights)
    held = 0
    for weight in weights:
        for signed in (True, False):
            buffer = optimizer._new_buffer(weight, signed)
            names = [n for n in ("codes", "scale") if hasattr(buffer, n)]
            held += sum(getattr(buffer, n).nbytes for n in names) if names else buffer.nbytes
    assert held == arithmetic.state_bytes(name, SHAPES)


def states(config: TrainConfig, inventory: Inventory, world: int) -> float:
    """GB of weights, gradients, optimizer state."""
    found = arithmetic.vram(config, inventory, Cluster(1, world), Transient(0, 0, 0))
    return sum(t.bytes for t in found if t.name in ("weights", "full weights", "gradients", "optimizer")) / 1e9


def test_states_of_zero_2_on_8_are_the_known_ones(full: Modules) -> None:
    inventory = predict.inventory_of(full)
    assert states(settings(), inventory, 8) == pytest.approx(9.6, abs=0.05)
    each = [states(settings(engine={"kind": "zero", "stage": n}), inventory, 8) for n in (1, 2, 3)]
    assert each == sorted(each, reverse=True)
    # 16 bytes for each weight, cut by 8: nothing is left whole
    assert each[2] == pytest.approx(16 * 2.5675 / 8, abs=0.01)


def test_a_checkpoint_and_the_host_hold_what_the_settings_ask_for(full: Modules) -> None:
    inventory, two = predict.inventory_of(full), Cluster(2, 4)
    plain = settings()
    assert arithmetic.checkpoint(plain, inventory) == 12 * inventory.trained
    learn = {"unet": RATE, "ema": {"device": "cpu"}}
    assert arithmetic.checkpoint(settings(learn=learn), inventory) == 16 * inventory.trained
    offload = settings(engine={"kind": "zero", "offload": "optimizer"})
    terms = {t.name: t.bytes for t in arithmetic.host(offload, inventory, two)}
    assert terms["offloaded"] == 16 * inventory.trained // 2  # half of the slots are on each node
    assert terms["checkpoint staging"] == 12 * inventory.trained // 2
    whole = sum(inventory.count([part]) for part in inventory.parts)
    assert arithmetic.export(plain, inventory) == 2 * whole


@pytest.mark.parametrize(
    ("length", "checkpoints", "stand"),
    [
        ({"steps": 1000}, {"every_steps": 100, "keep": 3}, {"kept": 3, "last": 1, "being written": 1}),
        ({"steps": 200}, {"every_steps": 100, "keep": 3}, {"kept": 2, "last": 1, "being written": 1}),
        ({"steps": 20}, {}, {"last": 1}),
        ({"steps": 20}, {"rolling": "15min"}, {"last": 1, "being written": 1}),
        ({"steps": 900}, {"every_steps": 100, "keep": None}, {"kept": 9, "last": 1, "being written": 1}),
        ({"epochs": 9}, {"every_steps": 100, "keep": None}, {"kept": 1, "last": 1, "being written": 1}),
        ({"epochs": 9}, {"every_epochs": 2}, {"kept": 2, "last": 1, "being written": 1}),
        (
            {"steps": 1000, "held_out": {}},
            {"best": "held_out"},
            {"kept": 2, "best": 1, "last": 1, "being written": 1},
        ),
    ],
)
def test_what_stands_at_most_is_what_the_keeper_leaves(
    length: dict[str, Any], checkpoints: dict[str, Any], stand: dict[str, int]
) -> None:
    config = settings(**{"steps": None, **length}, checkpoints=checkpoints)
    assert arithmetic.standing(config) == stand
    sizes = {term.name: term.bytes for term in arithmetic.disk(config, 100, 7)}
    assert sizes.pop("records") == arithmetic.RECORDS and sizes.pop("exports") == 7
    assert sum(sizes.values()) == 100 * sum(stand.values())


def _chosen(learn: dict[str, Any], **changes: Any) -> TrainConfig:
    return settings(learn={"gradient_checkpointing": True, **learn}, engine={"kind": "ddp"}, **changes)


@pytest.mark.parametrize("model", ["/models/base.safetensors", "builtin:tiny"])
@pytest.mark.parametrize(
    "learn",
    [
        {"unet": RATE},
        {"unet": {"rate": 1e-5, "parts": "unet-71"}, "text_encoder_1": RATE},
        {"unet": {"rate": 1e-5, "parts": ["unet-68"]}, "text_encoders": RATE, "ema": {}},
        {"text_encoder_2": RATE},
        {"unet": RATE, "text_encoders": RATE, "lora": {"rank": 8}},
    ],
)
def test_the_outline_counts_what_the_modules_have(model: str, learn: dict[str, Any]) -> None:
    config = _chosen(learn, model=model)
    real = predict.inventory_of(modules(learn, blueprint.find(model)))
    drawn = outline.of(config)
    assert not drawn.at_most and drawn.assumed == (model != "builtin:tiny")
    for part in real.parts:
        for trained in (True, False):
            assert drawn.inventory.count([part], trained) == real.count([part], trained), (part, trained)
    assert arithmetic.export(config, drawn.inventory) == arithmetic.export(config, real)
    assert arithmetic.checkpoint(config, drawn.inventory) == arithmetic.checkpoint(config, real)


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_a_checkpoint_by_the_outline_is_as_large_as_by_the_shapes(name: OptimizerName, full: Modules) -> None:
    rate = {"rate": 1.0 if name == "prodigy" else 1e-5}
    config = _chosen({"unet": rate, "optimizer": name})
    by_shapes = arithmetic.checkpoint(config, predict.inventory_of(full))
    assert arithmetic.checkpoint(config, outline.of(config).inventory) == pytest.approx(by_shapes, rel=0.015)


def test_blocks_by_their_names_are_the_whole_unet_at_most() -> None:
    drawn = outline.of(_chosen({"unet": {"rate": 1e-5, "parts": ["input_blocks.4", "*.attn2.*"]}}))
    assert drawn.at_most and drawn.inventory.trained == 2_567_463_684


# --- against what others measured (GB and images a second), full size: seconds each


def predicted(site: Site, **changes: Any) -> predict.Estimate:
    return predict.run(settings(**changes), site)


def gigabytes(estimate: predict.Estimate, *without: str) -> float:
    return arithmetic.total(t for t in estimate.vram if t.name not in without) / 1e9


@pytest.mark.long
def test_adafactor_fused_in_bfloat16_needs_10_gb_somewhere_between() -> None:
    """kohya#1259 saw 10 GB; what of the encoders was there is not told. Ours is 7.4 without them, 13.0 with."""
    learn = {"unet": RATE, "optimizer": {"name": "adafactor", "fused_backward": True}, "clip": None}
    learn["gradient_checkpointing"] = True
    found = predicted(Site(1, 1), learn=learn, weights="bf16", engine={"kind": "ddp"})
    encoders = ("text encoder 1", "text encoder 2", "vae", "encoding pictures")
    assert gigabytes(found) == pytest.approx(13.0, abs=0.2)
    assert gigabytes(found, *encoders) + 0.72 == pytest.approx(7.4, abs=0.2)  # activations, with the states cached


BOTH = {"unet": RATE, "text_encoders": RATE, "optimizer": "adamw-8bit"}
SPARE = {"clip": None, "gradient_checkpointing": True, "optimizer": {"name": "adamw-8bit", "fused_backward": True}}
PART = {"unet": RATE | {"parts": "unet-71"}, "optimizer": "adamw-8bit"}
ALL_IN_ONE = {"weights": "bf16", "batch": {"per_slot": 16, "accumulate": 4}}
BF16 = {"compile": True, "text_dtype": "bf16"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "loads_a_vae", "gib", "seconds", "starved"),
    [
        ({"learn": BOTH, "compute": {"compile": True}, **ALL_IN_ONE}, True, 108.9, 3.79, False),
        ({"learn": PART, "compute": BF16, **ALL_IN_ONE}, True, 95.5, 2.94, False),
        ({"learn": BOTH | SPARE, "weights": "bf16", "batch": {"per_slot": 4}}, False, 15.75, None, True),
        ({"learn": BOTH, "batch": {"per_slot": 8}}, False, 91.84, None, False),
        ({"learn": BOTH, "batch": {"per_slot": 8}, "compute": {"compile": True}}, False, 84.2, None, True),
    ],
)
def test_what_an_h200_held_and_took(
    changes: dict[str, Any], loads_a_vae: bool, gib: float, seconds: float | None, starved: bool
) -> None:
    """Peaks by torch's allocator, which knows nothing of context and libraries; seconds where the GPU decides."""
    found = predicted(Site(1, 1, "NVIDIA H200"), engine={"kind": "ddp"}, precision="bf16", **changes)
    without = ("CUDA and libraries", *(() if loads_a_vae else ("vae",)))
    assert gigabytes(found, *without) * 1e9 / devices.GIB == pytest.approx(gib, rel=0.05)
    assert seconds is None or found.time.step == pytest.approx(seconds, rel=0.1)
    assert ("the host may need longer" in found.time.told) == starved


@pytest.mark.long
def test_4_3090_with_71_percent_and_text_encoders() -> None:
    """6DammK9 saw 24.0 GB, as the driver shows it, and 3.26 to 4.00 img/s with 4 to 64 accumulated."""
    learn = {"unet": RATE | {"parts": "unet-71"}, "text_encoders": RATE, "optimizer": "adamw-8bit"}
    found = predicted(
        Site(1, 4, "NVIDIA GeForce RTX 3090", link=10e9),
        learn=learn | {"gradient_checkpointing": True},
        weights="bf16",
        engine={"kind": "ddp"},
        batch={"accumulate": 16},
    )
    assert gigabytes(found) == pytest.approx(24.0, rel=0.12)
    assert found.time.images_per_second == pytest.approx(3.63, rel=0.2)
    assert found.fits


@pytest.mark.long
def test_4_3090_with_all_of_the_unet_under_zero_2() -> None:
    """6DammK9 saw 23.5 GB, as the driver shows it; ours is 5% lower, without gaps of the allocator."""
    assert gigabytes(predicted(Site(1, 4, "RTX 3090"))) == pytest.approx(23.5, rel=0.1)


def test_an_h200_encodes_ten_pictures_a_second(full: Modules) -> None:
    """10.5 in `prep` with its start, where the VAE computes in fp32."""
    work = flops.count(full, 1024, 1024).vae
    rate = timing.encoding(devices.peak("H200", "fp32"), None)
    assert rate is not None and rate / work == pytest.approx(10.5, rel=0.1)
    halved = timing.encoding(devices.peak("H200", "fp32"), devices.peak("H200", "bf16"))
    assert halved is not None and halved > 5 * rate
    assert timing.encoding(None, None) is None


def test_nothing_but_the_estimate_is_said(tmp_path: Path) -> None:
    """Libraries tell of kernels that nobody asked for, where they may see bitsandbytes or torchao."""
    path = tmp_path / "train.json"
    path.write_text(settings(model="builtin:tiny").model_dump_json())
    command = [sys.executable, "-m", "clusterft_trainer", "estimate", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert json.loads(done.stdout)["vram_total"] > 0 and done.stdout.count("\n") == 1


def test_an_a100_at_28_percent(full: Modules) -> None:
    config = settings(learn={"unet": RATE}, engine={"kind": "ddp"})
    counted = flops.count(full, 1024, 1024)
    peak = devices.peak("NVIDIA A100-SXM4-80GB", "bf16")
    rates = timing.Rates(peak, peak, None)
    time = timing.step(config, timing.Work(counted.useful, 0, 0, 0), 0, rates, Cluster(1, 1))
    assert time.images_per_second == pytest.approx(4.3, abs=0.05)


def test_16_ranks_on_ten_gigabit_need_nearly_ten_seconds(full: Modules) -> None:
    inventory = predict.inventory_of(full)
    config = settings(weights="bf16", learn={"unet": RATE, "optimizer": "adafactor"}, engine={"kind": "ddp"})
    assert timing.traffic(config, inventory, 16) / 1e9 == pytest.approx(9.6, abs=0.05)
    assert timing.traffic(config, inventory, 1) == 0
    zero = settings(batch={"accumulate": 4})  # stage 2 scatters four times and gathers once
    assert timing.traffic(zero, inventory, 2) == 5 * 2 * inventory.trained // 2


# --- GPUs


@pytest.mark.parametrize(
    ("name", "bf16", "gib"),
    [
        ("NVIDIA GeForce RTX 3090", 71.0, 24),
        ("NVIDIA GeForce RTX 3090 Ti", 80.0, 24),
        ("RTX 3080Ti", 68.2, 12),
        ("NVIDIA GeForce RTX 4090", 165.2, 24),
        ("NVIDIA A100-SXM4-80GB", 312.0, 80),
        ("NVIDIA A100-PCIE-40GB", 312.0, 40),
        ("NVIDIA H100 80GB HBM3", 989.4, 80),
        ("NVIDIA H100 PCIe", 756.4, 80),
        ("NVIDIA H200", 989.4, 141),
        ("NVIDIA H200 NVL", 835.5, 141),
        ("Tesla V100-SXM2-32GB", None, 32),
        ("NVIDIA RTX 6000 Ada Generation", 364.2, 48),
        ("NVIDIA L40S", 362.0, 48),
    ],
)
def test_a_gpu_is_known_by_its_drivers_name(name: str, bf16: float | None, gib: int) -> None:
    found = devices.find(name)
    assert found is not None and found.memory == gib
    assert devices.peak(name, "bf16") == (None if bf16 is None else bf16 * TERA)


@pytest.mark.parametrize(
    "name",
    ["cpu", "", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 4080 SUPER", "RTX 4070 Ti",
     "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "AMD Instinct MI300X", "Quadro T4"],
)  # fmt: skip
def test_what_is_not_in_the_table_has_no_peak(name: str) -> None:
    assert devices.peak(name, "bf16") is None
    with pytest.raises(ConfigError, match="RTX 3090"):
        devices.require(name)


# --- recommendation

TINY = {"model": "builtin:tiny", "data": {"sources": [{"builtin": "shapes"}], "resolution": 64}}


def between(options: tuple[predict.Option, ...], more: str, less: str) -> float:
    """A memory that holds the second and not the first."""
    sizes = {o.engine: o.vram for o in options}
    assert sizes[less] is not None and sizes[more] is not None and sizes[less] < sizes[more]
    return (sizes[less] + sizes[more]) / 2 / (1 - predict.HEADROOM)


def test_the_lowest_stage_that_fits_is_recommended() -> None:
    config = settings(**TINY | {"learn": {"unet": RATE}})
    open_ended = predict.run(config, Site(2, 2))
    assert open_ended.recommended is None and open_ended.fits is None
    names = [o.engine for o in open_ended.options]
    assert names == ["ddp", "zero-1", "zero-2", "zero-3", "zero-2 with offload"]
    memory = between(open_ended.options, "ddp", "zero-1")
    found = predict.run(config, Site(2, 2, "RTX 3090", memory, 1.2e9))
    assert found.recommended == "zero-1" and found.fits
    assert found.options[0].fits is False and found.options[1].step is not None
    assert found.options[-1].step is None  # the host's part is not predicted
    assert not found.remedies
    page = report.text(found)
    assert "Recommended: zero-1" in page and "TOO MUCH" not in page and "2 x 2 slots of RTX 3090" in page


@pytest.mark.long
def test_where_nothing_fits_each_way_out_was_computed() -> None:
    config = settings(**TINY | {"learn": {"unet": RATE}, "batch": {"per_slot": 8}, "engine": {"kind": "ddp"}})
    least = min(o.vram for o in predict.run(config, Site(1, 1)).options if o.vram is not None)
    site = Site(1, 1, memory=(least - 1) / (1 - predict.HEADROOM))
    found = predict.run(config, site)
    assert found.recommended is None and found.fits is False
    assert found.remedies and site.room is not None and all(r.vram <= site.room for r in found.remedies)
    page = report.text(found)
    assert "None of them fits. What would:" in page and found.remedies[0].changes[0] in page
    per_slot = next(r for r in found.remedies if r.changes == ("batch: {per_slot: 1, accumulate: 8}",))
    smaller = config.model_dump(exclude_unset=True) | {"batch": {"per_slot": 1, "accumulate": 8}}
    again = predict.run(TrainConfig.model_validate(smaller), site)
    assert per_slot.vram in {o.vram for o in again.options if o.fits}


def test_an_optimizer_that_cannot_be_cut_has_its_reason_told() -> None:
    learn = {"unet": RATE, "optimizer": "adamw-8bit"}
    found = predict.run(settings(**TINY | {"learn": learn, "engine": {"kind": "ddp"}}), Site(1, 2, memory=8e9))
    refused = {o.engine: o.refused for o in found.options}
    assert refused["ddp"] is None and "whole tensors" in str(refused["zero-2"])
    assert found.recommended == "ddp"


def test_a_model_that_is_not_here_is_taken_for_full_size() -> None:
    found = blueprint.find("/nowhere/sdxl.safetensors")
    assert found.settings == blueprint.PUBLISHED
    assert found.assumed is not None and "/nowhere/sdxl.safetensors" in found.assumed


# --- where the model is read from


def test_a_single_file_is_known_by_its_header(tmp_path: Path) -> None:
    """A file of full size whose tensors are holes."""
    built = blueprint.build(FULL)
    tensors = {n: t for part, m in built.each().items() for n, t in layout.stored(part, m.state_dict()).items()}
    header, at = {}, 0
    for name, tensor in tensors.items():
        end = at + 2 * tensor.numel()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    path = tmp_path / "sdxl.safetensors"
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    found = blueprint.find(str(path))
    assert found.assumed is None
    again = predict.inventory_of(blueprint.build(found))
    assert [w.numel for w in again.weights] == [w.numel for w in predict.inventory_of(built).weights]
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(DataError, match="no SDXL model"):
        blueprint.find(str(path))


# --- the command


def test_the_command_prints_one_document(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    body = settings(**TINY)
    path.write_text(body.model_dump_json(exclude_unset=True))
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = [str(path), "--nodes", "2", "--slots", "2", "--gpu", "RTX 3090", "--link", "9.4Gbit"]
    document = io.StringIO()
    command.main(parser.parse_args([*words, "--json"]), document)
    found = json.loads(document.getvalue())
    assert found["schema"] == 1 and found["recommended"] == "ddp" and found["fits"] is True
    assert found["vram_total"] == sum(t["bytes"] for t in found["vram"])
    assert found["site"]["link"] == 9.4e9 / 8
    assert found["flops"]["useful"] == found["flops"]["forward"] + found["flops"]["backward"]


@pytest.mark.parametrize("text", ["24", "GB", "24 gallons", "-1GB", "0GB"])
def test_a_quantity_needs_its_unit(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="24GB"):
        command.memory(text)


def test_units() -> None:
    assert command.memory("24GB") == 24e9 and command.memory("22.5GiB") == 22.5 * 2**30
    assert command.rate("10Gbit") == command.rate("1.25GB/s") == 1.25e9 == command.rate("10 Gbit/s")


def test_the_arithmetic_needs_no_torch() -> None:
    names = ("arithmetic", "timing", "devices", "command")
    code = "import sys\n" + "".join(f"import clusterft_trainer.estimate.{n}\n" for n in names)
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
