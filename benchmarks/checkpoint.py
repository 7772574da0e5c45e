"""What a checkpoint beside training costs, as a share of what one costs for which training waits.

Two ranks on this machine, a thread each, over 1 GB of state; each file is flushed and read back in both ways. The
cost in the background is the time for which save() blocks plus all that the steps beside it are slower.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _figures import Figure, main

HERE = Path(__file__).resolve().parent
TARGET = 0.15


def measure(quick: bool) -> tuple[list[Figure], dict[str, object]]:
    """Both engines, one after the other."""
    figures, settings = [], {}
    for engine in ("ddp", "zero-2"):
        found = run(engine, 1 if quick else 5)
        blocking, background = statistics.median(found["blocking"]), statistics.median(found["background"])
        ratio = background / blocking
        figures += [
            Figure(f"{engine}.state", round(found["bytes"] / 1e9, 3), "GB"),
            Figure(f"{engine}.step", round(statistics.median(found["plain"]), 4), "s"),
            Figure(f"{engine}.synchronous", round(blocking, 4), "s"),
            Figure(f"{engine}.background.call", round(statistics.median(found["calls"]), 4), "s"),
            Figure(f"{engine}.background.cost", round(background, 4), "s"),
            Figure(f"{engine}.ratio", round(ratio, 4), "x", TARGET, ratio <= TARGET),
        ]
        settings[engine] = found
    return figures, settings


def run(engine: str, rounds: int) -> dict[str, list[float]]:
    """Start two ranks; what rank 0 found."""
    root = HERE.parent
    path = os.pathsep.join(str(root / p) for p in ("trainer", "launcher"))
    env = os.environ | {"OMP_NUM_THREADS": "1", "CLUSTERFT_DEVICE": "cpu", "PYTHONPATH": path}
    with tempfile.TemporaryDirectory(
        prefix="clusterft-bench-", dir=os.environ.get("CLUSTERFT_BENCH_DIR")
    ) as folder:
        argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        argv += [str(HERE / "_checkpoint_ranks.py"), engine, str(rounds), f"{folder}/checkpoints"]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=1800)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"the ranks failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: dict[str, list[float]] = json.loads(lines[0].removeprefix("RESULT "))
    return found


if __name__ == "__main__":
    sys.exit(main("checkpoint", measure))
