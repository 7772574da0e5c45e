"""One card at work: matrix products for a few seconds, and what the card says of itself meanwhile.

On a CPU a small product, which proves the way and no more.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from typing import Any

from clusterft_trainer.proving.forks import Tell

_SIDE = 8192  # of a product that fills any card
_WARM, _MEASURED = 2.0, 3.0  # seconds; some cards tell their power as the mean of the last second
_SMALL, _SHORT = 384, 0.3
_ASK = 4.0  # seconds for nvidia-smi
_QUERY = "power.draw,enforced.power.limit,utilization.gpu"
_LAUNCHES = 2000


def run(given: dict[str, Any], tell: Tell) -> None:
    """One slot."""
    import torch

    time.sleep(float(given.get("wait", 0.0)))  # some power supplies trip when all cards wake at once
    if not given["cuda"]:
        side, seconds, count = _SMALL, *_cpu()
        tell({"stage": "done", "flops": 2 * side**3 * count / seconds, "name": "cpu"})
        return
    card = int(given["card"])
    torch.cuda.set_device(card)
    known = torch.cuda.get_device_properties(card)
    tell({"stage": "work"})
    numbers = torch.bfloat16 if known.major >= 8 else torch.float16 if known.major >= 7 else torch.float32
    left = torch.randn(_SIDE, _SIDE, device="cuda", dtype=numbers)
    right = torch.randn(_SIDE, _SIDE, device="cuda", dtype=numbers)
    each = _batch(left, right, 2) / 2
    batch = max(1, int(0.5 / each))
    until = time.monotonic() + _WARM
    while time.monotonic() < until:
        _batch(left, right, batch)
    samples: list[list[float]] = []
    took: list[float] = []
    uuid = f"GPU-{getattr(known, 'uuid', '')}"
    until = time.monotonic() + _MEASURED
    while time.monotonic() < until or len(took) < 3:
        seconds, sample = _watched(left, right, batch, uuid)
        took.append(seconds / batch)
        samples += [sample] if sample else []
    tell(
        {
            "stage": "done",
            "name": known.name,
            "flops": 2 * _SIDE**3 / statistics.median(took),
            "samples": samples,
            "launch": _launch(),
        }
    )


def _cpu() -> tuple[float, int]:
    """(seconds, products)."""
    import torch

    torch.set_num_threads(1)
    left, right = torch.randn(_SMALL, _SMALL), torch.randn(_SMALL, _SMALL)
    left @ right
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < _SHORT or count < 2:
        left @ right
        count += 1
    return time.perf_counter() - began, count


def _batch(left: Any, right: Any, count: int) -> float:
    import torch

    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        left @ right
    torch.cuda.synchronize()
    return time.perf_counter() - began


def _watched(left: Any, right: Any, count: int, uuid: str) -> tuple[float, list[float] | None]:
    """A batch, and what the card says while it works: watts, watts at most, utilisation in per cent."""
    import torch

    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        left @ right
    sample = _sample(uuid)
    asked = time.perf_counter() - began
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    # An answer that came after the work was done may be of an idle card.
    return seconds, sample if seconds - asked > 0.02 else None


def _sample(uuid: str) -> list[float] | None:
    argv = ["nvidia-smi", f"--id={uuid}", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_ASK, check=False)
        draw, limit, used = (float(word) for word in done.stdout.split(","))
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return [draw, limit, used]


def _launch() -> float:
    """Seconds that this host takes to start one small kernel."""
    import torch

    one = torch.zeros(64, device="cuda")
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(_LAUNCHES):
        one.add_(1.0)
    spent = time.perf_counter() - began
    torch.cuda.synchronize()
    return spent / _LAUNCHES
