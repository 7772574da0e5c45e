"""A full-size model through load and export: whether every tensor comes back, in how much memory and time.

Random weights in the shapes of SDXL, as one fp16 file; CLIP's real vocabulary. Each stage is a process of its own,
whose peak memory is the kernel's count. `check` reads headers alone, `roundtrip` loads and exports in fp16, and
`prove` compares the export with the live weights. Training loads the same way, but widened to float32.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from _figures import Figure, main

# The model is made in a process too: a child begins with its parent's peak.
STAGES = ("make", "check", "roundtrip", "prove", "compare")
GIGABYTE = 1e9
MEMORY_TARGET = 1.15  # peak memory of the round trip over the size of the file


def make(folder: Path, quick: bool) -> None:
    """The model to start from, written tensor by tensor."""
    import torch

    from clusterft_trainer import builtin, export
    from clusterft_trainer.model import architecture, files, layout, stored

    path = folder / "given.safetensors"
    if quick:
        tiny = builtin.materialise("tiny", 0, folder)
        export.single_file(files.load(str(tiny), None, None), {}, settings(), path)
        (folder / "tokenizers").symlink_to(tiny)
        return
    random = torch.Generator().manual_seed(0)
    leaves = {layout.LOGIT_SCALE: stored.Leaf((), torch.float16, partial(torch.tensor, 4.5))}
    for part, config in architecture.sdxl().items():
        tensors = layout.stored(part, architecture.build(part, config).state_dict())
        for name, shape in {n: tuple(t.shape) for n, t in tensors.items()}.items():
            draw = partial(torch.randn, shape, generator=random)
            leaves[name] = stored.Leaf(shape, torch.float16, lambda draw=draw: draw() / 20)  # type: ignore[misc]
    with path.open("wb") as file:
        stored.write(file, leaves, {"format": "pt"})


def settings() -> Any:
    """What an export asks of the settings."""
    from clusterft_trainer.config import TrainConfig

    return TrainConfig.model_validate(
        {
            "model": "given.safetensors",
            "output": {"name": "out", "dtype": "fp16"},
            "data": {"sources": [{"builtin": "shapes"}]},
            "learn": {"unet": {"rate": 1e-5}},
            "steps": 1,
        }
    )


def stage(name: str, folder: Path, quick: bool) -> dict[str, float]:
    """One stage, in this process; what it found, beside seconds and peak memory."""
    import torch

    torch.set_num_threads(1)
    from clusterft_trainer import export
    from clusterft_trainer.model import files, proof

    given, written = str(folder / "given.safetensors"), folder / "written.safetensors"
    tokenizers = str(folder / "tokenizers") if (folder / "tokenizers").exists() else None
    began = time.perf_counter()
    found: dict[str, float] = {}
    if name == "make":
        make(folder, quick)
    elif name == "check":
        files.check(given, tokenizers, None)
    elif name == "compare":
        found = compare(given, str(written))
    else:
        parts = files.load(given, tokenizers, None, torch.float16)
        found["load_seconds"] = time.perf_counter() - began
        if name == "roundtrip":
            export.single_file(parts, {}, settings(), written)
        else:
            found["worst"] = proof.prove(written, parts, {}).worst
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    return found | {"seconds": seconds, "peak": peak}


def compare(one: str, two: str) -> dict[str, float]:
    """How many tensors there are, and how many are not the same bit for bit; read by the library."""
    import torch
    from safetensors import safe_open

    with safe_open(one, framework="pt") as first, safe_open(two, framework="pt") as second:
        names, others = set(first.keys()), set(second.keys())
        differing = len(names ^ others)
        for name in sorted(names & others):
            left, right = first.get_tensor(name), second.get_tensor(name)
            differing += not (left.dtype == right.dtype and torch.equal(left, right))
    return {"tensors": len(names), "differing": differing}


def child(name: str, folder: Path, quick: bool) -> dict[str, float]:
    """A stage in a process of its own."""
    argv = [sys.executable, __file__, "--stage", name, str(folder), str(int(quick))]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"stage {name} failed:\n{done.stderr}")
    body: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return body


def measure(quick: bool) -> tuple[list[Figure], dict[str, object]]:
    """All stages after one another, on one model."""
    with tempfile.TemporaryDirectory(prefix="clusterft-roundtrip-") as directory:
        folder = Path(directory)
        found = {name: child(name, folder, quick) for name in STAGES}
        size = (folder / "given.safetensors").stat().st_size
    trip, equal = found["roundtrip"], found["compare"]
    ratio = trip["peak"] / size
    met = ratio <= MEMORY_TARGET
    figures = [
        Figure("file", round(size / GIGABYTE, 3), "GB"),
        Figure("tensors", equal["tensors"], "tensors"),
        Figure("tensors.differing", equal["differing"], "tensors", 0, equal["differing"] == 0),
        Figure("check.seconds", round(found["check"]["seconds"], 2), "s"),
        Figure("check.peak", round(found["check"]["peak"] / GIGABYTE, 2), "GB"),
        Figure("load.seconds", round(trip["load_seconds"], 1), "s"),
        Figure("roundtrip.seconds", round(trip["seconds"], 1), "s"),
        Figure("roundtrip.peak", round(trip["peak"] / GIGABYTE, 2), "GB"),
        # beside a tiny model, what is imported weighs more than the model
        Figure("roundtrip.peak_ratio", round(ratio, 3), "x", *(() if quick else (MEMORY_TARGET, met))),
        Figure("prove.seconds", round(found["prove"]["seconds"] - found["prove"]["load_seconds"], 1), "s"),
        Figure("prove.peak", round(found["prove"]["peak"] / GIGABYTE, 2), "GB"),
        Figure("prove.worst", found["prove"]["worst"], "share", 1e-4, found["prove"]["worst"] <= 1e-4),
    ]
    return figures, {"dtype": "fp16", "threads": 1, "weights": "random"}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stage"]:
        print(json.dumps(stage(sys.argv[2], Path(sys.argv[3]), sys.argv[4] == "1")))
    else:
        sys.exit(main("roundtrip", measure))
