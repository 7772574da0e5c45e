"""Our step, and our way to the first one, over those of the training loop that a diffusers user has.

Both loops run as their users start them, `python -m clusterft_trainer train` and `_plain_loop.py`, with one model
and the same pictures, in float32, with one thread. For the steps both are pinned to one core and take turns on it:
one is stopped by a signal while the other goes on, so neither knows that it is measured. A block is the time
between two lines about finished steps. Each pair of blocks gives one ratio; the bound is that of a bootstrap over
pairs.

A start is the time from the beginning of the process to its line about the first step. The baseline encodes all
pictures and captions first, as that script does; `cached_baseline` finds them encoded by an earlier start. Its
imports lack the script's datasets (0.6 s) and torchvision, and include what diffusers takes along of bitsandbytes
and torchao where these are installed (0.8 s).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _figures import Figure, main, ratio

from clusterft_trainer import builtin, shapes

ROOT = Path(__file__).resolve().parent.parent
BATCH, SIDE, PICTURES = 4, 128, 16
RATE = 1e-4
STEP_BOUND, START_TARGET = 1.05, 0.6
ENDLESS = 1_000_000
WARM = 12  # steps until both have seen every picture three times, and caches and allocators are full
RESAMPLES = 4000


@dataclass(frozen=True)
class Loop:
    """How one side is started, and what its line about a finished step looks like."""

    argv: list[str]
    env: dict[str, str]
    sign: str


def environment(**more: str) -> dict[str, str]:
    """The same for both: one thread, no GPU, no hub."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CLUSTERFT_", "MASTER_", "ACCELERATE_"))}
    fixed = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return kept | fixed | more


def lay_out(folder: Path) -> tuple[Path, Path]:
    """The tiny model, and pictures that all lie in one bucket; both sides read the same files."""
    pictures = folder / "pictures"
    pictures.mkdir()
    number = 0
    while len(list(pictures.glob("*.png"))) < PICTURES:
        image, caption = shapes.draw(number)
        if image.size == (SIDE, SIDE):
            image.save(pictures / f"{number:05d}.png")
            (pictures / f"{number:05d}.txt").write_text(caption + "\n", encoding="utf-8")
        number += 1
    return builtin.materialise("tiny", 0, folder / "models"), pictures


def plain(folder: Path, model: Path, pictures: Path, *more: str) -> Loop:
    """The baseline."""
    options = {"--batch": BATCH, "--resolution": SIDE, "--rate": RATE, "--steps": ENDLESS}
    words = [word for pair in options.items() for word in map(str, pair)]
    script = str(ROOT / "benchmarks" / "_plain_loop.py")
    argv = [sys.executable, script, str(model), str(pictures), str(folder / "plain"), *words, *more]
    return Loop(argv, environment(), '"step": ')


def ours(folder: Path, model: Path, pictures: Path, engine: dict[str, Any]) -> Loop:
    """The command that every rank runs, here alone."""
    body = {
        "model": str(model),
        "output": {"name": "step"},
        "data": {"sources": [{"folder": str(pictures)}], "resolution": SIDE},
        "learn": {"unet": {"rate": RATE}, "weight_decay": 0.01, "clip": 1.0},
        "batch": {"per_slot": BATCH},
        "precision": "fp32",
        "engine": engine,
        "checkpoints": {"every_steps": ENDLESS},
        "steps": ENDLESS,
    }
    config = folder / f"{engine['kind']}.json"
    config.write_text(json.dumps(body), encoding="utf-8")
    argv = [sys.executable, "-m", "clusterft_trainer", "train", str(config), "--run-dir", str(folder / "ours")]
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "CLUSTERFT_DEVICE": "cpu"}
    return Loop(argv, environment(PYTHONPATH=str(ROOT / "trainer"), **alone), '"kind": "step"')


class Walker:
    """One running loop that is stopped and continued from outside."""

    def __init__(self, loop: Loop, errors: Path, core: int | None) -> None:
        self._sign = loop.sign.encode()
        self._errors = errors
        self._unread = b""
        with errors.open("w") as file:
            self._process = subprocess.Popen(loop.argv, env=loop.env, stdout=subprocess.PIPE, stderr=file)
        if core is not None:
            os.sched_setaffinity(self._process.pid, {core})  # long before its first thread, which inherits it
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()

    def next_step(self) -> float:
        """When the next line about a finished step came."""
        while True:
            line, found, rest = self._unread.partition(b"\n")
            if not found:
                more = os.read(self._pipe, 1 << 16)
                if not more:
                    raise SystemExit(f"{self._process.args} ended:\n{self._errors.read_text()[-4000:]}")
                self._unread += more
                continue
            self._unread = rest
            if self._sign in line:
                return time.perf_counter()

    def halt(self) -> None:
        """Stop it in the middle of whatever it does, and forget what it has said until then."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)
        os.set_blocking(self._pipe, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._unread += os.read(self._pipe, 1 << 16)
        os.set_blocking(self._pipe, True)
        self._unread = self._unread.rpartition(b"\n")[2]

    def block(self, steps: int) -> float:
        """Seconds a step, over so many whole ones."""
        self._process.send_signal(signal.SIGCONT)
        began = ended = self.next_step()  # the end of the step in which it was stopped
        for _ in range(steps):
            ended = self.next_step()
        self.halt()
        return (ended - began) / steps

    def end(self) -> None:
        """Away with it, stopped or not."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def walking(loop: Loop, errors: Path, core: int | None = None) -> Iterator[Walker]:
    """A loop that is gone afterwards."""
    walker = Walker(loop, errors, core)
    try:
        yield walker
    finally:
        walker.end()


def upper_bound(ratios: list[float]) -> float:
    """97.5 % of resampled medians lie below it."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return medians[int(0.975 * RESAMPLES)]


def steps(mine: Loop, baseline: Loop, folder: Path, pairs: int, length: int) -> list[Figure]:
    """Blocks in the order ABBA, on one core."""
    core = max(os.sched_getaffinity(0))
    times: dict[str, list[float]] = {"ours": [], "baseline": []}
    with walking(mine, folder / "ours.err", core) as a, walking(baseline, folder / "plain.err", core) as b:
        both = {"ours": a, "baseline": b}
        for walker in both.values():
            for _ in range(WARM):
                walker.next_step()
            walker.halt()
        for number in range(pairs):
            for name in list(both) if number % 2 == 0 else reversed(both):
                times[name].append(both[name].block(length))
    ratios = [x / y for x, y in zip(times["ours"], times["baseline"], strict=True)]
    bound = upper_bound(ratios)
    return [
        Figure("step.ours", round(statistics.median(times["ours"]), 5), "s"),
        Figure("step.baseline", round(statistics.median(times["baseline"]), 5), "s"),
        Figure("step.ratio", round(statistics.median(ratios), 4), "x"),
        Figure("step.ratio.upper", round(bound, 4), "x", STEP_BOUND, bound <= STEP_BOUND),
    ]


def start(loop: Loop, folder: Path) -> float:
    """Seconds from the start of the process to its first finished step."""
    for leftover in ("ours", "plain"):
        shutil.rmtree(folder / leftover, ignore_errors=True)
    began = time.perf_counter()
    with walking(loop, folder / "start.err") as walker:
        return walker.next_step() - began


def measure(quick: bool) -> tuple[list[Figure], dict[str, object]]:
    """Starts in turns, then steps in turns."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns of a GPU that it does not find
    pairs, length, rounds = (2, 3, 1) if quick else (40, 10, 7)
    with tempfile.TemporaryDirectory(prefix="clusterft-step-") as directory:
        folder = Path(directory)
        model, pictures = lay_out(folder)
        mine, zero = (ours(folder, model, pictures, e) for e in ({"kind": "ddp"}, {"kind": "zero", "stage": 2}))
        baseline = plain(folder, model, pictures)
        cached = plain(folder, model, pictures, "--cache", str(folder / "cache.pt"))
        kinds: dict[str, Callable[[], float]] = {
            name: lambda loop=loop: start(loop, folder)  # type: ignore[misc]
            for name, loop in {"ours": mine, "zero": zero, "baseline": baseline, "cached": cached}.items()
        }
        start(cached, folder)  # writes its cache, and warms the page cache for all
        starts: dict[str, list[float]] = {name: [] for name in kinds}
        for number in range(rounds):
            for name in list(kinds) if number % 2 == 0 else reversed(kinds):
                starts[name].append(kinds[name]())
        figures = steps(mine, baseline, folder, pairs, length)
    figures += ratio("first_step", starts["ours"], starts["baseline"], START_TARGET)
    for name, top, bottom in (("cached_baseline", "ours", "cached"), ("zero", "zero", "baseline")):
        value = statistics.median(starts[top]) / statistics.median(starts[bottom])
        figures.append(Figure(f"first_step.{name}.ratio", round(value, 3), "x"))
    load = round(os.getloadavg()[0], 1)
    return figures, {
        "pairs": pairs, "steps_a_block": length, "starts": rounds, "batch": BATCH, "pixels": SIDE, "dtype": "fp32",
        "engine": "ddp", "load_at_the_end": load,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main("step", measure))
