"""Proves that settings which cannot work together are refused with the setting that has to change."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks
from pydantic import ValidationError

from clusterft_trainer.config import TrainConfig, without_gpu

DDP, FSDP = {"kind": "ddp"}, {"kind": "fsdp"}
FUSED = {"name": "adafactor", "fused_backward": True}


def built(**changes: Any) -> TrainConfig:
    """Settings, with dotted names for what lies deeper."""
    body = copy.deepcopy(ranks.settings())
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        target = body
        for name in parents:
            target = target.setdefault(name, {})
        target[leaf] = value
    return TrainConfig.model_validate(body)


@pytest.mark.parametrize(
    ("changes", "begins", "reason"),
    [
        ({"learn__optimizer": "adamw-8bit"}, "learn.optimizer", "cuts into pieces"),
        ({"learn__optimizer": "came", "engine": FSDP}, "learn.optimizer", "engine fsdp cuts"),
        ({"learn__optimizer": "lion", "engine__offload": "optimizer"}, "engine.offload", "adamw only"),
        ({"learn__optimizer": FUSED, "learn__clip": None}, "learn.optimizer", "cuts into pieces"),
        (
            {"learn__optimizer": FUSED, "learn__clip": None, "engine": DDP, "batch__accumulate": 2},
            "learn.optimizer.fused_backward",
            "cannot be added up",
        ),
        ({"learn__optimizer": FUSED, "engine": DDP}, "learn.optimizer.fused_backward", "norm of all gradients"),
        (
            {"learn__optimizer": {"name": "prodigy", "fused_backward": True}, "engine": DDP, "learn__clip": None},
            "learn.optimizer.fused_backward",
            "steps all tensors together",
        ),
        ({"weights": "bf16", "precision": "bf16"}, "weights: bf16", "engine: {kind: ddp}"),
        ({"weights": "bf16", "engine": DDP}, "weights: bf16", "precision: bf16"),
        (
            {"weights": "bf16", "precision": "bf16", "engine": DDP, "learn__lora": {"rank": 4}},
            "weights: bf16",
            "additions are small",
        ),
        ({"precision": "fp16", "engine": FSDP}, "precision: fp16", "loss scaling"),
        ({"checkpoints__best": "held_out"}, "checkpoints.best", "needs a held_out"),
        ({"learn__lora": {"rank": 4}, "output__diffusers": True}, "output.diffusers", "LoRA file"),
        ({"compute__attention": "flash"}, "compute.attention", "half precision"),
        ({"compute__compile": True, "engine__stage": 3}, "compute.compile", "hooks"),
        ({"objective__snr_of": "plain"}, "objective.snr_of", "no meaning"),
        (
            {"objective": {"zero_terminal_snr": True, "prediction": "epsilon"}},
            "objective.zero_terminal_snr",
            "pure noise",
        ),
        (
            {"compute__text_dtype": "bf16", "learn__text_encoders": {"rate": 1e-6}},
            "compute.text_dtype",
            "has no meaning",
        ),
        (
            {"data__cache": {"text": True}, "data__captions": {}, "learn__text_encoders": {"rate": 1e-6}},
            "data.cache.text",
            "of text_encoder_1 and text_encoder_2",
        ),
        (
            {"data__cache": {"text": True}, "data__captions": {}, "learn__text_encoder_2": {"rate": 1e-6}},
            "data.cache.text",
            "set text: fal",
        ),
    ],
)
def test_a_combination_that_cannot_work_is_refused(changes: dict[str, Any], begins: str, reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        built(**changes)
    (error,) = caught.value.errors()
    assert f"Value error, {begins}" in error["msg"] or f"; {begins}" in error["msg"], error["msg"]
    assert reason in error["msg"]


@pytest.mark.parametrize(
    "changes",
    [
        {"learn__optimizer": FUSED, "learn__clip": None, "engine": DDP, "weights": "bf16", "precision": "bf16"},
        {"learn__optimizer": "ao-adamw-8bit", "engine": DDP, "weights": "bf16", "precision": "bf16"},
        {"engine__offload": "optimizer", "engine__stage": 3},
        {"precision": "fp16", "engine": DDP},
        {"learn__lora": {"rank": 4}, "engine": FSDP},
        {"data__cache": {"text": True}, "data__captions": {}},
        {"data__cache": {"text": False}, "learn__text_encoders": {"rate": 1e-6}},
    ],
)
def test_what_can_work_is_allowed(changes: dict[str, Any]) -> None:
    assert built(**changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objective__min_snr": 5, "objective__debiased": True}, "two weightings"),
        ({"objective__huber_delta": 0.5}, "need loss: huber"),
        ({"objective__timesteps": {"first": 10, "last": 5}}, "must not lie behind"),
        ({"learn__floor": 0.1}, "no meaning under schedule"),
        ({"learn__text_encoders": {"rate": 1e-6}, "learn__text_encoder_1": {"rate": 1e-6}}, "not both ways"),
        ({"data__captions": {"keep": 2}}, "no meaning without shuffle"),
        ({"checkpoints__rolling": "15 hours"}, "write it as '15min'"),
        ({"data__buckets": {"sizes": ["512x512", "768x768"]}}, "512x512 and 768x768 have one aspect ratio"),
        ({"data__buckets": {"step": 512}, "data__resolution": 256}, "buckets.step and resolution: 512 is more"),
        ({"data__buckets": {"smallest": 512}, "data__resolution": 256}, "buckets.smallest and resolution"),
        (
            {"data__buckets": {"largest": 128}, "data__resolution": 256},
            "buckets.largest and resolution",
        ),
        (
            {"data__sources": [{"folder": "/a", "captions": "s3://b/c"}]},
            "captions and folder lie on different storage",
        ),
        ({"learn__optimizer": {"name": "adamw", "betas": [0.9, 1.0]}}, "less than 1"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        built(**changes)


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({"precision": "fp16", "engine": {"kind": "zero"}}, "precision: fp16 and engine zero"),
        ({"learn__optimizer": "paged-adamw-8bit", "engine": DDP}, "learn.optimizer: paged-adamw-8bit"),
        ({"compute__attention": "xformers", "precision": "bf16"}, "compute.attention: xformers"),
    ],
)
def test_what_needs_a_gpu_is_refused_on_cpus_alone(changes: dict[str, Any], begins: str) -> None:
    (told,) = without_gpu(built(**changes))
    assert told.startswith(begins) and "CPUs" in told
    assert without_gpu(built()) == [] and without_gpu(built(precision="fp16", engine=DDP)) == []


def test_a_node_without_a_gpu_says_it_too_before_anything_is_read(tmp_path: Path) -> None:
    given = tmp_path / "train.json"
    given.write_text(built(precision="fp16", engine={"kind": "zero"}).model_dump_json())
    command = [sys.executable, "-m", "clusterft_trainer", "train", str(given), "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(
        command, env={**os.environ, "CLUSTERFT_DEVICE": "cpu"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and '"failure": "config"' in done.stdout, done
    assert "DeepSpeed scales no losses on CPUs" in done.stdout


def test_settings_survive_their_own_json() -> None:
    config = built(
        checkpoints={"rolling": "15min", "every_epochs": 2}, learn__optimizer={"name": "adamw", "eps": 1e-7}
    )
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
    assert str(config.checkpoints.rolling) == "15 minutes"
