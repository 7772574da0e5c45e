"""Full-size SDXL on one GPU, by the commands that a run uses: pictures a second, MFU and memory at 1024 x 1024.

Needs an NVIDIA GPU; with --quick it runs a tiny model wherever it is, to try the way alone. The model has SDXL's
shapes and random weights, the pictures are noise, their latents come from `prep`. Each case is a training process
that is killed after some steps, so that no checkpoint of 20 GB is written; rates are of the steps after the warm
ones, from end to end: data, step, log. MFU counts useful FLOPs only, against the card's bf16 peak in the table of
`estimate`. A case of 24 GB runs under torch's own limit for the process; the allocator refuses what goes beyond.

    python benchmarks/sdxl.py --json [--only whole,unet-71] [--seconds 500]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from _figures import Figure

ROOT = Path(__file__).resolve().parent.parent
PICTURES, SIDE = 64, 1024
MFU_TARGET = 0.4
GIB = 1 << 30
# Under a limit, a rank is started by this instead of by -m.
LIMITED = """
import runpy, sys, torch
card = torch.cuda.get_device_properties(0)
torch.cuda.set_per_process_memory_fraction(float(sys.argv.pop(1)) * 2**30 / card.total_memory)
runpy.run_module("clusterft_trainer", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Case:
    """What is trained, with what; `batch` is for 80 GB, and doubled where there is more."""

    learn: dict[str, Any]
    rest: dict[str, Any]
    batch: int
    accumulate: int = 1
    limit: float | None = None  # GiB
    warm: int = 2
    steps: int = 5
    target: float | None = None  # MFU


def both(optimizer: dict[str, Any] | str, **more: Any) -> dict[str, Any]:
    """UNet and both text encoders."""
    rates = {"unet": {"rate": 1e-5}, "text_encoders": {"rate": 1e-6}}
    return {**rates, "optimizer": optimizer, **more}


HALF = {"precision": "bf16", "weights": "bf16", "engine": {"kind": "ddp"}}
FUSED: dict[str, Any] = {"gradient_checkpointing": True, "clip": None}
CASES = {
    "24gb": Case(both({"name": "adamw-8bit", "fused_backward": True}, **FUSED), HALF, batch=1, limit=24, steps=8),
    "24gb-batch-4": Case(
        both({"name": "adamw-8bit", "fused_backward": True}, **FUSED), HALF, batch=4, limit=24, steps=8
    ),
    "whole": Case(
        both("adamw-8bit"), HALF | {"compute": {"compile": True}}, batch=8, accumulate=4, target=MFU_TARGET
    ),
    "unet-71": Case(
        {"unet": {"rate": 1e-5, "parts": "unet-71"}, "optimizer": "adamw-8bit"},
        HALF | {"compute": {"compile": True, "text_dtype": "bf16"}},
        batch=8,
        accumulate=4,
        target=MFU_TARGET,
    ),
    "adafactor-fused": Case(
        both({"name": "adafactor", "fused_backward": True}, **FUSED),
        HALF | {"compute": {"compile": True}},
        batch=16,
        target=MFU_TARGET,
    ),
    "24gb-zero-2-offload": Case(
        both("adamw", gradient_checkpointing=True),
        {"precision": "bf16", "engine": {"kind": "zero", "stage": 2, "offload": "optimizer"}},
        batch=1,
        limit=24,
        warm=1,
        steps=3,
    ),
}


def make(folder: Path) -> None:
    """A model of SDXL's shapes; drawn on the GPU, which takes seconds instead of minutes."""
    import torch

    from clusterft_trainer.model import architecture, layout, stored

    random = torch.Generator("cuda").manual_seed(0)

    def draw(name: str, shape: tuple[int, ...]) -> Any:
        if len(shape) > 1:
            return torch.randn(shape, device="cuda", generator=random).mul_(0.02).half().cpu()
        return (torch.ones if name.endswith("weight") else torch.zeros)(shape, dtype=torch.float16)

    leaves = {layout.LOGIT_SCALE: stored.Leaf((), torch.float16, partial(torch.tensor, 4.5))}
    for part, config in architecture.sdxl().items():
        for name, tensor in layout.stored(part, architecture.build(part, config).state_dict()).items():
            shape = tuple(tensor.shape)
            leaves[name] = stored.Leaf(shape, torch.float16, partial(draw, name, shape))
    with (folder / "model.safetensors").open("wb") as file:
        stored.write(file, leaves, {"format": "pt"})


def paint(folder: Path, side: int) -> None:
    """Pictures of soft noise, each with a caption."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(PICTURES):
        small = random.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize((side, side)).save(folder / f"{number:03d}.jpg", quality=90)
        words = " ".join(str(word) for word in random.integers(0, 9999, 18))
        (folder / f"{number:03d}.txt").write_text(f"a picture of {words}\n", encoding="utf-8")


@dataclass
class Bench:
    """Where everything lies, and until when there is time."""

    folder: Path
    quick: bool
    until: float
    large: bool = False  # more than 80 GB
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def side(self) -> int:
        """Of the pictures."""
        return 64 if self.quick else SIDE

    def per_slot(self, case: Case) -> int:
        """Samples of a forward pass."""
        return 1 if self.quick else case.batch * (2 if self.large and case.limit is None else 1)

    def settings(self, case: Case) -> dict[str, Any]:
        """The trainer's."""
        body: dict[str, Any] = {
            "model": "builtin:tiny" if self.quick else str(self.folder / "model.safetensors"),
            "output": {"name": "bench"},
            "data": {"sources": [{"folder": str(self.folder / "pictures")}], "resolution": self.side, "cache": {}},
            "learn": case.learn,
            "batch": {"per_slot": self.per_slot(case), "accumulate": case.accumulate},
            "checkpoints": {"every_steps": 1_000_000},
            "steps": 1_000_000,
        }
        return body | case.rest

    def command(self, name: str, case: Case, verb: str, *more: str) -> list[str]:
        """A process of the trainer."""
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(self.settings(case)), encoding="utf-8")
        if case.limit is None or verb != "train" or self.quick:
            start = ["-m", "clusterft_trainer"]
        else:
            start = ["-c", LIMITED, str(case.limit)]
        return [sys.executable, *start, verb, str(path), *more]


def environment() -> dict[str, str]:
    """One rank, and no hub."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CLUSTERFT_", "MASTER_", "ACCELERATE_"))}
    path = os.pathsep.join([str(ROOT / "trainer"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}


def prepare(bench: Bench) -> list[Figure]:
    """Model, pictures, latents."""
    if not bench.quick:
        began = time.monotonic()
        subprocess.run([sys.executable, __file__, "--make", str(bench.folder)], check=True, env=environment())
        bench.notes["make.seconds"] = round(time.monotonic() - began, 1)
    paint(bench.folder / "pictures", bench.side)
    argv = bench.command("prep", CASES["whole"], "prep", "--shared", str(bench.folder))
    done = subprocess.run(argv, capture_output=True, text=True, env=environment())
    if done.returncode:
        raise SystemExit(f"prep failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    said = [
        json.loads(line.partition(" ")[2]) for line in done.stdout.splitlines() if line.startswith("@clusterft")
    ]
    starts = [record["at"] for record in said if record.get("phase") == "latents"]
    seconds = said[-1]["at"] - starts[0]
    return [Figure("prep.latents", round(PICTURES / seconds, 2), "img/s")]


def train(bench: Bench, name: str, case: Case) -> list[Figure]:
    """One case: its steps, then its end by a signal."""
    argv = bench.command(name, case, "train", "--run-dir", str(bench.folder / name))
    errors, last = bench.folder / f"{name}.err", ""
    found: list[dict[str, Any]] = []
    began = time.monotonic()
    with errors.open("w") as file:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=file, text=True, env=environment())
    assert process.stdout is not None
    first = None
    try:
        for line in process.stdout:
            last = line
            if '"kind": "step"' in line:
                first = first or time.monotonic() - began
                found.append(json.loads(line.partition(" ")[2]))
            if len(found) == case.warm + case.steps or time.monotonic() > bench.until:
                break
    finally:
        process.kill()
        process.wait()
    if len(found) < case.warm + case.steps:
        told = errors.read_text().strip()[-1500:]
        bench.notes[f"{name}.failed"] = f"{len(found)} steps; {last.strip()[-700:]} {told}"
        return []
    batch = bench.per_slot(case) * case.accumulate
    return figures(name, case, batch, found, first or 0.0)


def figures(name: str, case: Case, batch: int, steps: list[dict[str, Any]], first: float) -> list[Figure]:
    """Of the steps after the warm ones, from the end of one to the end of the next."""
    ends = [step["at"] for step in steps[case.warm - 1 :]]
    seconds = statistics.median(later - earlier for earlier, later in zip(ends, ends[1:], strict=False))
    told, rate = steps[-1], batch / seconds
    within = None if case.limit is None else told["memory"] <= case.limit * GIB
    made = [
        Figure(f"{name}.batch", batch, "samples"),
        Figure(f"{name}.step", round(seconds, 4), "s"),
        Figure(f"{name}.images", round(rate, 2), "img/s"),
        Figure(f"{name}.memory", round(told["memory"] / GIB, 2), "GiB", case.limit, within),
        Figure(f"{name}.first_step", round(first, 1), "s"),
    ]
    if told["mfu"] is not None:
        mfu = told["mfu"] / told["images_per_second"] * rate
        met = None if case.target is None else mfu >= case.target
        made.append(Figure(f"{name}.mfu", round(mfu, 4), "", case.target, met))
    return made


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All cases, as far as there is time."""
    bench = Bench(folder, options.quick, time.monotonic() + options.seconds)
    settings: dict[str, Any] = {"python": platform.python_version(), "quick": options.quick}
    if not options.quick:
        import torch

        if not torch.cuda.is_available():
            why = "no NVIDIA GPU here; --quick tries the way with a tiny model"
            return {"benchmark": "sdxl", "figures": [], "settings": settings | {"not measured": why}}
        card = torch.cuda.get_device_properties(0)
        bench.large = card.total_memory > 100 * GIB
        settings |= {"card": card.name, "torch": torch.__version__, "cuda": torch.version.cuda}
    found = prepare(bench)
    for name in options.only.split(",") if options.only else CASES:
        found += train(bench, name, CASES[name])
        print(json.dumps([asdict(f) for f in found]), bench.notes, file=sys.stderr, flush=True)
    return {"benchmark": "sdxl", "figures": [asdict(f) for f in found], "settings": settings | bench.notes}


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description="benchmark sdxl")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--quick", action="store_true", help="a tiny model, on whatever is there")
    parser.add_argument("--only", help="cases, with commas between: " + ", ".join(CASES))
    parser.add_argument("--seconds", type=float, default=1800, help="no case is begun or waited for after that")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(options.make)
        return 0
    with tempfile.TemporaryDirectory(prefix="clusterft-sdxl-") as directory:
        body = measure(options, Path(directory))
    if options.json:
        print(json.dumps(body), flush=True)
        return 0
    if "not measured" in body["settings"]:
        print(body["settings"]["not measured"])
    for figure in body["figures"]:
        target = (
            ""
            if figure["target"] is None
            else f"  target {figure['target']:g} {'met' if figure['met'] else 'MISSED'}"
        )
        print(f"{figure['name']:<28} {figure['value']:>10.4f} {figure['unit']}{target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
