"""Proves on real processes that a run trains, loses nothing when killed, and stops when asked.

Two machine ranks are started the way nodes start them: an accelerate YAML each, static rendezvous,
DeepSpeed ZeRO-2. What the YAML says about the engine is wrong on purpose: the job alone decides.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import ranks

from clusterft_trainer import checkpoint, progress

pytestmark = pytest.mark.trainer


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of the undisturbed run of one process, which is also run without a compiler."""
    folder = tmp_path_factory.mktemp("alone")
    tools = folder / "bin"
    tools.mkdir()
    for name in ("uname", "sh"):  # what Python's own modules call
        (tools / name).symlink_to(shutil.which(name) or name)
    with ranks.gang(folder) as gang:
        body = ranks.settings(samples={"every_steps": 3, "prompts": ["a red circle on white"], "denoise_steps": 2})
        ranks.start_alone(gang, folder, body, PATH=str(tools), CC="", CXX="")
        assert gang.wait() == [0], gang.text()
        assert "Building extension" not in gang.text()
        kinds = {r.what for r in gang.records() if isinstance(r, progress.Saved)}
        assert kinds == {"checkpoint", "sample", "export", "curve", "tensorboard"}
        check_files(folder / "run")
        assert [r for r in gang.records() if isinstance(r, progress.Done)][0].step == 6
        return gang.losses()


def check_files(run: Path) -> None:
    """Everything that a finished run promises is there, and nothing half-written."""
    assert [f.state.step for f in checkpoint.complete(run / "checkpoints")] == [6, 4]
    for name in ("export/tiny.safetensors", "samples/step-00000006.png", "loss.svg"):
        assert (run / name).stat().st_size > 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert not [p for p in run.rglob("*") if ".new" in p.name]


def check_float32_weights(export: Path) -> None:
    """The export holds the optimizer's float32 weights, not the engine's bfloat16 copies."""
    import torch
    from safetensors import safe_open

    with safe_open(export, "pt") as file:
        weight = file.get_tensor("model.diffusion_model.input_blocks.0.0.weight")
    assert weight.dtype == torch.float32
    assert not torch.equal(weight, weight.bfloat16().float())


def test_two_machine_ranks_compute_the_same_losses_though_one_was_killed(
    tmp_path: Path, reference: dict[int, float]
) -> None:
    body = ranks.settings(batch={"per_slot": 2})
    with ranks.gang(tmp_path / "first") as gang:
        ranks.start_two_machines(gang, tmp_path, body)
        gang.wait_for_step(3)
        os.kill(gang.pid(1), signal.SIGKILL)
        codes = gang.wait()
        assert 0 not in codes
        before = gang.losses()
    newest = checkpoint.complete(tmp_path / "run" / "checkpoints")[0].state.step
    assert newest >= 2
    # as a kill in the middle of writing leaves it
    half = tmp_path / "run" / "checkpoints" / ".new-step-00000099"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    with ranks.gang(tmp_path / "second") as gang:
        ranks.start_two_machines(gang, tmp_path, body)
        assert gang.wait() == [0, 0], gang.text()
        after = gang.losses()
        (done,) = [r for r in gang.records() if isinstance(r, progress.Done)]
        assert done.resumed_from == newest
        notices = [r.text for r in gang.records() if isinstance(r, progress.Notice)]
        assert any(f"continues from step {newest}" in text for text in notices)
        assert not [r for r in gang.records(1) if isinstance(r, progress.Step)]
    assert min(after) == newest + 1
    assert (before | after) == pytest.approx(reference, rel=1e-4)
    assert not half.exists()
    steps = [json.loads(li)["step"] for li in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_sigterm_writes_a_checkpoint_and_ends_well(tmp_path: Path) -> None:
    body = ranks.settings(
        engine={"kind": "ddp"},
        precision="bf16",
        learn={"unet": {"rate": 1e-3}, "text_encoders": {"rate": 1e-4}},
        batch={"per_slot": 1, "accumulate": 2},
        checkpoints={"every_steps": 5000, "keep": 1},
        steps=5000,
    )
    with ranks.gang(tmp_path) as gang:
        ranks.start_torchrun(gang, tmp_path, body)
        gang.wait_for_step(2)
        os.kill(gang.pid(1), signal.SIGTERM)  # one rank is asked, all agree
        assert gang.wait() == [0], gang.text()
        last = max(gang.losses())
        (found,) = checkpoint.complete(tmp_path / "run" / "checkpoints")
        assert found.state.step == last
        notices = [r.text for r in gang.records() if isinstance(r, progress.Notice)]
        assert any(f"Stopped as asked after step {last}" in text for text in notices)
        assert not [r for r in gang.records() if isinstance(r, progress.Failed | progress.Done)]


@pytest.mark.parametrize(
    ("changes", "code", "failure", "told"),
    [
        ({"batch": {"per_slot": 20}}, 2, "data", "12 pictures are fewer than the 20"),
        ({"model": "absent/model"}, 2, "data", "absent/model does not exist on this node"),
        ({"model": "some.safetensors"}, 2, "config", "single file"),
        ({"stepz": 3}, 2, "config", "stepz"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    tmp_path: Path, changes: dict[str, object], code: int, failure: str, told: str
) -> None:
    with ranks.gang(tmp_path) as gang:
        ranks.start_alone(gang, tmp_path, ranks.settings(**changes))
        assert gang.wait() == [code], gang.text()
        (failed,) = [r for r in gang.records() if isinstance(r, progress.Failed)]
        assert failed.failure == failure and told in failed.message and failed.remedy
        assert "Traceback" not in gang.text()


def test_a_finished_run_only_says_so_again(tmp_path: Path) -> None:
    """Also: bfloat16 under ZeRO, both text encoders trained, micro-batches, no gradient limit."""
    body = ranks.settings(
        engine={"kind": "zero", "stage": 1},
        precision="bf16",
        learn={"unet": {"rate": 1e-3}, "text_encoders": {"rate": 1e-4}, "clip": None},
        batch={"per_slot": 2, "accumulate": 2},
        samples={"every_steps": 2, "prompts": ["a red circle on white"], "denoise_steps": 2},
        steps=2,
    )
    export = tmp_path / "run" / "export" / "tiny.safetensors"
    done = []
    for name in ("first", "second"):
        with ranks.gang(tmp_path / name) as gang:
            ranks.start_alone(gang, tmp_path, body)
            assert gang.wait() == [0], gang.text()
            done += [r for r in gang.records() if isinstance(r, progress.Done)]
            assert set(gang.losses()) == ({1, 2} if name == "first" else set())
            check_float32_weights(export)
            export.unlink()
    assert done[0].first_loss == done[1].first_loss and done[0].last_loss == done[1].last_loss
    assert (done[0].resumed_from, done[1].resumed_from) == (None, 2)
