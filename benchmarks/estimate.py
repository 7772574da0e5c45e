"""What `estimate` predicts against what a real run holds and writes, as far as a CPU can tell.

Two ranks train builtin:tiny under DDP and under ZeRO-2; before the last step each counts the bytes of weights,
gradients and optimizer state that it holds, afterwards the files are weighed. Deviations are in percent of what
was measured. Beside that: how long the FLOP count behind MFU takes, for the tiny model and for full size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _figures import Figure, main

WORLD = 2
ENGINES: dict[str, dict[str, Any]] = {"ddp": {"kind": "ddp"}, "zero-2": {"kind": "zero", "stage": 2}}


def body(engine: str) -> dict[str, Any]:
    """Settings of the run."""
    return {
        "model": "builtin:tiny",
        "output": {"name": "x"},
        "data": {"sources": [{"builtin": "shapes", "images": 16}], "resolution": 64},
        "learn": {"unet": {"rate": 1e-4}, "text_encoder_2": {"rate": 1e-4}, "ema": {}},
        "batch": {"per_slot": 2, "accumulate": 2},
        "precision": "fp32",
        "engine": ENGINES[engine],
        "steps": 2,
    }


def worker(engine: str, run_dir: Path) -> None:
    """One rank: train, and note what is held just before the weights move."""
    from clusterft_trainer import dist

    place = dist.settle()
    from clusterft_trainer import build, train
    from clusterft_trainer.config import TrainConfig

    config = TrainConfig.model_validate(body(engine))
    held: dict[str, int] = {}
    start = build.start_engine

    def watched(*arguments: Any) -> Any:
        built = start(*arguments)
        step = built.step

        def counted() -> Any:
            held.update(bytes_of(engine, built))
            return step()

        built.step = counted
        return built

    build.start_engine = watched
    finished = train.run(config, run_dir, place)
    if place.leads:
        (run_dir / "held.json").write_text(json.dumps(held))
    sys.stdout.flush()
    os._exit(0 if finished else 1)  # as __main__ does: freeing process groups may hang


def bytes_of(engine: str, built: Any) -> dict[str, int]:
    """By the names of the estimate's terms."""
    weights = list(built.bare.parameters())
    found = {"weights": sum(w.nbytes for w in weights)}
    if engine == "ddp":
        found["gradients"] = sum(w.grad.nbytes for w in weights if w.grad is not None)
        optimizer = built._moves.optimizer
    else:
        zero = built._optimizer
        found["gradients"] = sum(t.nbytes for group in zero.averaged_gradients.values() for t in group)
        found["full weights"] = sum(flat.nbytes for flat in zero.single_partition_of_fp32_groups)
        optimizer = zero.optimizer
    states = (value for state in optimizer.state.values() for value in state.values())
    found["optimizer"] = sum(value.nbytes for value in states if hasattr(value, "nbytes") and value.numel() > 1)
    return found


def measured(engine: str, folder: Path) -> dict[str, int]:
    """Run it, and weigh what it left."""
    run_dir = folder / engine
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD)]
    argv += [__file__, "--worker", engine, str(run_dir)]
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        raise SystemExit(f"{engine} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    found: dict[str, int] = json.loads((run_dir / "held.json").read_text())
    newest = max((run_dir / "checkpoints").glob("step-*"))
    found["checkpoint"] = sum(p.stat().st_size for p in newest.iterdir())
    found["export"] = (run_dir / "export" / "x.safetensors").stat().st_size
    return found


def predicted(engine: str) -> dict[str, int]:
    """The same from the settings alone."""
    from clusterft_trainer.config import TrainConfig
    from clusterft_trainer.estimate import predict

    found = predict.run(TrainConfig.model_validate(body(engine)), predict.Site(1, WORLD))
    return {term.name: term.bytes for term in found.vram} | {
        "checkpoint": found.checkpoint,
        "export": found.export,
    }


def counting() -> list[Figure]:
    """Seconds of one core from a live module to the FLOPs of the first bucket."""
    from clusterft_trainer.config import Learn
    from clusterft_trainer.estimate import blueprint, flops

    figures = []
    sizes = ("tiny", blueprint.find("builtin:tiny"), 1.0), ("full", blueprint.find("/nowhere"), None)
    for name, found, target in sizes:
        modules = blueprint.build(found)
        blueprint.choose(modules, Learn.model_validate({"unet": {"rate": 1e-5}}))
        modules.text_encoder_1 = modules.text_encoder_2 = modules.vae = None
        flops.count(modules, 64, 64)  # torch imports its meta kernels late
        began = time.process_time()  # one thread, and other load on the machine is none of its doing
        flops.step_table(modules)(1024, 1024)
        seconds = round(time.process_time() - began, 3)
        met = None if target is None else seconds <= target
        figures.append(Figure(f"mfu.count.{name}", seconds, "s", target, met))
    return figures


def measure(quick: bool) -> tuple[list[Figure], dict[str, object]]:
    """Both engines, or one, then the count."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="clusterft-estimate-") as directory:
        for engine in list(ENGINES)[: 1 if quick else None]:
            real, told = measured(engine, Path(directory)), predicted(engine)
            for name, value in real.items():
                off = round(abs(told[name] - value) / value * 100, 3)
                figures.append(Figure(f"{engine}.{name.replace(' ', '-')}", off, "%", 2.0, off <= 2.0))
    return figures + counting(), {"world": WORLD, "model": "builtin:tiny"}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], Path(sys.argv[3]))
    sys.exit(main("estimate", measure))
