"""Proves that the less usual settings train, save, resume and export: each a short real run, interrupted once.

The second half begins from a checkpoint of the first, and ends as an uninterrupted run does, bit for bit.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import ranks

from clusterft_trainer import checkpoint, progress

pytestmark = pytest.mark.trainer

DDP = {"kind": "ddp"}
UNET = {"unet": {"rate": 1e-3}}


def variant(name: str, *, world: int = 1, long: bool = True, **changes: Any) -> Any:
    """A named set of settings on top of the quick ones."""
    marks = [pytest.mark.long] if long else []
    return pytest.param(world, changes, id=name, marks=marks)


VARIANTS = [
    variant(
        "bf16 weights, Adafactor in the backward",
        long=False, engine=DDP, precision="bf16", weights="bf16",
        learn=UNET | {"optimizer": {"name": "adafactor", "fused_backward": True}, "clip": None},
    ),
    variant(
        "bf16 weights, Adafactor in the backward, two ranks",
        world=2, engine=DDP, precision="bf16", weights="bf16",
        learn=UNET | {"optimizer": {"name": "adafactor", "fused_backward": True}, "clip": None},
    ),
    variant("8-bit AdamW, two ranks", world=2, long=False, engine=DDP, learn=UNET | {"optimizer": "adamw-8bit"}),
    variant("schedule-free", engine=DDP, learn=UNET | {"optimizer": "schedule-free-adamw"}),
    variant("prodigy", engine=DDP, learn={"unet": {"rate": 1.0}, "optimizer": "prodigy"}),
    variant("lion under ZeRO-2", world=2, learn=UNET | {"optimizer": "lion"}),
    variant("lion under FSDP", world=2, engine={"kind": "fsdp"}, learn=UNET | {"optimizer": "lion"}),
    variant("bf16 under ZeRO-3", world=2, engine={"kind": "zero", "stage": 3}, precision="bf16"),
    variant("bf16 under FSDP, EMA", world=2, long=False, engine={"kind": "fsdp"}, precision="bf16",
            learn=UNET | {"ema": {"decay": 0.5}}),
    variant("bf16 under ZeRO-1", world=2, engine={"kind": "zero", "stage": 1}, precision="bf16"),
    variant("bf16 autocast", engine=DDP, precision="bf16", learn=UNET | {"ema": {"decay": 0.5, "device": "slot"}}),
    variant("fp16 with loss scaling", engine=DDP, precision="fp16"),
    variant("LoRA on all parts", long=False, engine=DDP,
            learn=UNET | {"text_encoders": {"rate": 1e-3}, "lora": {"rank": 2, "alpha": 1}}),
    variant("LoRA under ZeRO-2", world=2, learn=UNET | {"lora": {"rank": 2}}),
    variant("unet-71", world=2, long=False, learn={"unet": {"rate": 1e-3, "parts": "unet-71"}}),
    variant("unet-71 under FSDP", world=2, engine={"kind": "fsdp"},
            learn={"unet": {"rate": 1e-3, "parts": "unet-71"}}),
    variant("only a text encoder, ZeRO-3", world=2, engine={"kind": "zero", "stage": 3},
            learn={"text_encoder_2": {"rate": 1e-3}}),
    variant("checkpointed activations, long captions", engine=DDP,
            learn=UNET | {"text_encoders": {"rate": 1e-3}, "gradient_checkpointing": True},
            data={"sources": [{"builtin": "shapes", "images": 12}], "resolution": 64,
                  "captions": {"tokens": 225, "shuffle": True, "tag_dropout": 0.1, "separator": " "}}),
    variant("v-prediction, Huber, zero terminal SNR", engine=DDP,
            objective={"prediction": "v", "zero_terminal_snr": True, "loss": "huber", "debiased": True,
                       "timesteps": {"kind": "logit-normal"}, "input_perturbation": 0.1}),
]  # fmt: skip


def run(folder: Path, name: str, body: dict[str, Any], world: int) -> tuple[dict[int, float], list[str]]:
    """Losses and notices of one attempt."""
    with ranks.gang(folder / name) as gang:
        ranks.start_grid(gang, folder, body, 1, world)
        assert gang.wait() == [0], "\n".join(gang.text(r)[-3000:] for r in range(world))
        return gang.losses(), [r.text for r in gang.records() if isinstance(r, progress.Notice)]


@pytest.mark.parametrize(("world", "changes"), VARIANTS)
def test_it_trains_and_resumes_bit_for_bit(tmp_path: Path, world: int, changes: dict[str, Any]) -> None:
    import torch
    from safetensors.torch import load_file

    usual = {"batch": {"per_slot": 4 // world}, "steps": 4, "checkpoints": {"every_steps": 2, "keep": 5}}
    sampled = {"samples": {"every_steps": 3, "prompts": ["a red circle"], "denoise_steps": 2}}
    held = {"held_out": {"every_steps": 3, "share": 0.2, "levels": 1}}
    body = ranks.settings(**usual | sampled | held | changes)
    whole, _ = run(tmp_path, "whole", body, world)
    assert sorted(whole) == [1, 2, 3, 4] and all(abs(loss) < 1e3 for loss in whole.values())
    export = tmp_path / "run" / "export" / "tiny.safetensors"
    first = load_file(export)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    export.unlink()
    rest, told = run(tmp_path, "rest", body, world)
    assert rest == {3: whole[3], 4: whole[4]}
    again = load_file(export)
    assert again.keys() == first.keys() and all(torch.equal(again[n], first[n]) for n in first)
    assert any("continues from step 2" in text for text in told)
    assert not [text for text in told if "begins anew" in text]
    assert [f.manifest.step for f in checkpoint.complete(tmp_path / "run" / "checkpoints")] == [4, 2]
