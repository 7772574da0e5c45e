"""Proves on real processes that a run trains, loses nothing when killed, and stops when asked.

Two machine ranks are started the way nodes start them: an accelerate YAML each, static rendezvous,
DeepSpeed ZeRO-2. What the YAML says about the engine is wrong on purpose: the job alone decides.
"""

from __future__ import annotations

import json
import os
import resource
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
    body = ranks.settings(batch={"per_slot": 2}, checkpoints={"every_steps": 2, "keep": 2, "background": False})
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


def test_a_stop_whose_last_checkpoint_fails_is_a_failure(tmp_path: Path) -> None:
    body = ranks.settings(checkpoints={"every_steps": 5000, "keep": 1}, steps=5000)
    with ranks.gang(tmp_path) as gang:
        ranks.start_alone(gang, tmp_path, body)
        gang.wait_for_step(2)
        # from now on no file may grow beyond this size, as if the disk refused; the log stays below it
        resource.prlimit(gang.pid(0), resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        os.kill(gang.pid(0), signal.SIGTERM)
        assert gang.wait() == [5], gang.text()
        (failed,) = [r for r in gang.records() if isinstance(r, progress.Failed)]
        assert failed.failure == "storage" and str(tmp_path / "run/checkpoints") in failed.message
        assert not [r for r in gang.records() if isinstance(r, progress.Notice) and "Stopped as asked" in r.text]
    assert checkpoint.complete(tmp_path / "run" / "checkpoints") == []


# A trainer whose rank 1 meets a gradient that is infinite, though its loss is not, in its third step.
BURST = """
from clusterft_trainer import rank
rank.claim_log()
import os, sys
from clusterft_trainer import __main__ as command, dist
dist.settle()
import torch
from clusterft_trainer import step

class Burst(torch.autograd.Function):
    @staticmethod
    def forward(ctx, losses):
        return losses.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")

true_losses, calls = step.sample_losses, []

def sample_losses(*arguments):
    calls.append(1)
    losses = true_losses(*arguments)
    return Burst.apply(losses) if len(calls) == 3 and os.environ["RANK"] == "1" else losses

step.sample_losses = sample_losses
command.main(sys.argv[1:])
"""


@pytest.mark.parametrize("engine", [{"kind": "zero", "stage": 2}, {"kind": "ddp"}], ids=["zero", "ddp"])
def test_an_infinite_gradient_is_never_saved_and_the_remedy_works(
    tmp_path: Path, engine: dict[str, object]
) -> None:
    learn = {"unet": {"rate": 1e-3}, "clip": None}
    body = ranks.settings(
        engine=engine, learn=learn, batch={"per_slot": 2}, checkpoints={"every_steps": 1, "keep": 1}, steps=4
    )
    script = tmp_path / "burst.py"
    script.write_text(BURST)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    with ranks.gang(tmp_path / "first") as gang:
        _, _, *argv = ranks.train_argv(tmp_path, body)
        ranks.start(gang, [*torchrun, "--master-port", str(ranks.free_port()), str(script), *argv])
        assert gang.wait() != [0], gang.text()
        (failed,) = [r for rank in range(2) for r in gang.records(rank) if isinstance(r, progress.Failed)]
        assert (
            failed.failure == "nan" and "gradient of step 3" in failed.message and "Lower learn" in failed.remedy
        )
        assert set(gang.losses()) == {1, 2}
    dump = json.loads((tmp_path / "run" / "nan-step-00000003.json").read_text())
    assert dump["step"] == 3 and 1 <= len(dump["samples"]) <= 4 and dump["norm"] in (None, "inf", "nan")
    assert all(name in failed.message for name in dump["samples"])
    (found,) = checkpoint.complete(tmp_path / "run" / "checkpoints")
    assert found.state.step == 2
    learn = {"unet": {"rate": 1e-4}, "clip": 0.5, "weight_decay": 0.0, "warmup_steps": 1}
    with ranks.gang(tmp_path / "second") as gang:
        ranks.start_torchrun(gang, tmp_path, body | {"learn": learn})
        assert gang.wait() == [0], gang.text()
        steps = [r for r in gang.records() if isinstance(r, progress.Step)]
        assert [(r.step, r.rate) for r in steps] == [(3, 1e-4), (4, 1e-4)]
        told = [r.text for r in gang.records() if isinstance(r, progress.Notice) and "Changed" in r.text]
        assert told == [
            "Changed since that step: learn.clip is 0.5 now, not set before.",
            "Changed since that step: learn.unet.rate is 0.0001 now, 0.001 before.",
            "Changed since that step: learn.warmup_steps is 1 now, 0 before.",
            "Changed since that step: learn.weight_decay is 0.0 now, 0.01 before.",
        ]


@pytest.mark.parametrize(
    ("changes", "code", "failure", "told"),
    [
        ({"batch": {"per_slot": 20}}, 2, "data", "12 pictures are fewer than the 20"),
        ({"model": "absent/model"}, 2, "data", "absent/model does not exist on this node"),
        ({"model": "some.safetensors"}, 2, "data", "some.safetensors cannot be read"),
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
