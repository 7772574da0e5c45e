"""Proves what can be made of a checkpoint without its run: a model file, a diffusers folder, pictures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ranks

pytestmark = pytest.mark.trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two ranks, with a running mean."""
    folder = tmp_path_factory.mktemp("trained")
    body = ranks.settings(
        engine={"kind": "zero", "stage": 2},
        batch={"per_slot": 2},
        learn={"unet": {"rate": 1e-3}, "ema": {"decay": 0.5}},
        steps=3,
        checkpoints={"every_steps": 2},
    )
    with ranks.gang(folder) as gang:
        ranks.start_grid(gang, folder, body, 1, 2)
        assert gang.wait() == [0], gang.text()[-3000:]
    return folder / "run"


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The trainer's own command line."""
    env = os.environ | {"PYTHONPATH": ranks.TRAINER, "CLUSTERFT_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "clusterft_trainer", *map(str, arguments)]
    return subprocess.run(argv, env=env, capture_output=True, text=True)


def test_a_checkpoint_becomes_the_file_that_the_run_itself_exported(trained: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    done = call("export", trained, "--out", tmp_path, "--diffusers")
    assert done.returncode == 0, done.stderr + done.stdout
    ours, theirs = load_file(tmp_path / "tiny.safetensors"), load_file(trained / "export" / "tiny.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in theirs)
    assert json.loads((tmp_path / "tiny" / "model_index.json").read_text())["_class_name"].startswith("StableDiff")
    raw = call("export", trained, "--out", tmp_path, "--weights", "--name", "raw", "--dtype", "bf16")
    assert raw.returncode == 0, raw.stderr + raw.stdout
    name = "model.diffusion_model.out.2.weight"
    plain = load_file(tmp_path / "raw.safetensors")
    assert plain[name].dtype == torch.bfloat16
    assert not torch.equal(plain[name], ours[name].bfloat16()), "the weights themselves are not their mean"


def test_pictures_are_drawn_from_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    from PIL import Image

    out = tmp_path / "grid.png"
    newest = sorted((trained / "checkpoints").iterdir())[-1]
    done = call("sample", newest, "--out", out, "--prompt", "a red circle on white", "--steps", 2)
    assert done.returncode == 0, done.stderr + done.stdout
    assert Image.open(out).size[0] >= 64


def test_what_is_no_checkpoint_is_told(trained: Path, tmp_path: Path) -> None:
    done = call("export", tmp_path, "--out", tmp_path)
    assert done.returncode == 2 and "no complete checkpoint" in done.stderr and "Traceback" not in done.stderr
    broken = tmp_path / "step-00000003"
    shutil.copytree(trained / "checkpoints" / "step-00000003", broken)
    file = next(broken.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    done = call("export", broken, "--out", tmp_path)
    assert done.returncode == 2 and "checksum" in done.stderr and "older checkpoint" in done.stderr
    file.unlink()
    done = call("export", broken, "--out", tmp_path)
    assert done.returncode == 2 and f"{file.name} is missing" in done.stderr
    done = call("sample", trained, "--out", tmp_path / "x.png")
    assert done.returncode == 2 and "--prompt" in done.stderr


def test_what_is_not_there_is_told_to_a_person(tmp_path: Path) -> None:
    done = call("export", "nowhere", "--out", tmp_path)
    assert done.returncode == 2 and "nowhere does not exist.\nGive a run's folder" in done.stderr
    job = tmp_path / "job.yaml"
    job.write_text("name: x\n")
    done = call("estimate", job)
    assert done.returncode == 2 and "clusterft settings job.yaml > train.json" in done.stderr, done.stderr


def test_migrate_writes_a_job_and_never_over_one(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    flags = "--train_data_dir=/data --learning_rate 4e-7 --max_train_epochs 3 --frobnicate"
    script.write_text(
        f"accelerate launch sdxl_train.py --pretrained_model_name_or_path=/m/x.safetensors {flags}\n"
    )
    job = tmp_path / "job.yaml"
    done = call("migrate", script, "-o", job)
    assert done.returncode == 0 and "--frobnicate" in done.stdout, done.stdout + done.stderr
    assert "rate: 4" in job.read_text()
    again = call("migrate", script, "-o", job)
    assert again.returncode == 2 and "is there already" in again.stderr
