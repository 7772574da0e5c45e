"""Proves what an engine promises of its pieces: full precision from the first step, counts that kernels take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks
import test_topology

pytestmark = pytest.mark.trainer

# One rank: an engine on a small model, its pieces compared with the weights that it was given.
SCRIPT = """
import json, os, sys
from clusterft_trainer import dist
place = dist.settle()
import torch
from clusterft_trainer import build
from clusterft_trainer.config import TrainConfig
from clusterft_trainer.model import files, sdxl
from clusterft_trainer.builtin import materialise
from pathlib import Path
dist.join(place)
config = TrainConfig.model_validate(json.loads(sys.argv[1]))
parts = files.load(str(materialise("tiny", 0, Path(sys.argv[2]))), None, None)
denoiser = sdxl.build_denoiser(parts, config.learn, config.compute)
given = {n: p.detach().clone().flatten() for n, p in denoiser.named_parameters() if p.requires_grad}
engine = build.start_engine(config, place, denoiser)
wrong = [p.name for p in engine.pieces() if not torch.equal(p.weight, given[p.name][p.offset : p.end])]
covered = sum(p.weight.numel() for p in engine.pieces())
class Source:
    states, count, rest = ("exp_avg", "exp_avg_sq"), 5, {}
    def read(self, kind, name, first, end):
        values = given[name][first:end]
        return values if kind == "weight" else values.abs() * 1e-3
engine.load(Source())
inner = getattr(engine, "_inner", None) or getattr(engine, "_optimizer", None)
odd = []
for weight, state in (inner.state.items() if hasattr(inner, "state") else ()):
    step = state["step"]
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    fused = inner.param_groups[0].get("fused")
    if float(step) != 5 or (fused and step.device != local.device) or step.dtype != torch.float32:
        odd.append(str(step))
print("RESULT", json.dumps({"wrong": wrong[:3], "covered": covered, "all": sum(map(len, given.values())),
                            "odd": odd[:3], "count": engine.count}), flush=True)
os._exit(0)
"""


SOON = {"ddp": "bf16", "zero-1": "fp32", "zero-2": "bf16", "zero-3": "fp32", "fsdp": "bf16"}


@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        pytest.param(engine, precision, marks=[] if SOON[engine] == precision else pytest.mark.long)
        for engine in test_topology.ENGINES
        for precision in ("fp32", "bf16")
    ],
)
def test_an_engine_begins_with_the_weights_as_they_are_on_disk(
    tmp_path: Path, engine: str, precision: str
) -> None:
    import json

    body: dict[str, Any] = ranks.settings(engine=test_topology.ENGINES[engine], precision=precision)
    env = {"PYTHONPATH": ranks.TRAINER, "CLUSTERFT_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    argv = [sys.executable, "-c", SCRIPT, json.dumps(body), str(tmp_path)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stderr[-3000:]
    found = json.loads(lines[0].removeprefix("RESULT"))
    assert found["wrong"] == [] and found["covered"] == found["all"]
    assert found["odd"] == [] and found["count"] == 5
