"""20,000 lines a second for ten seconds over three nodes through `logs -f`: lines lost, the controller's memory.

A script on each node writes numbered lines at an even pace. What `clusterft logs -f` prints is read as it comes; a
line counts once, whatever stands before it. Memory is the peak of the controller's process, children included.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from _by_hand import Rig
from _figures import Figure, main

from faults.jobs import NOTES
from faults.rig import NODES, rigged

RATE, SECONDS = 20_000, 10
SCRIPT = """\
import os, sys, time

rank, rate, seconds = int(os.environ["RANK"]), int(sys.argv[1]), int(sys.argv[2])
padding = "x" * 60
time.sleep(3)  # until whoever follows is there
began, written = time.monotonic(), 0
while written < rate * seconds:
    due = min(rate * seconds, int((time.monotonic() - began) * rate))
    print("\\n".join(f"flood {rank} {number} {padding}" for number in range(written, due)), flush=True)
    written = due
    time.sleep(0.01)
print(f"flooded in {time.monotonic() - began:.2f} s", flush=True)
"""
_LINE = re.compile(rb"flood (\d+) (\d+) ")


def flood(rig: Rig, rate: int, seconds: int) -> tuple[Counter[tuple[int, int]], float, float]:
    """How often each line was seen, the follower's peak in MB, and how long it took from its first line on."""
    folder = rig.desk.root / "flood"
    folder.mkdir(exist_ok=True)
    (folder / "flood.py").write_text(SCRIPT)
    share = rate // len(NODES)
    script = {"path": "flood/flood.py", "args": [str(share), str(seconds)]}
    controller, run = rig.train(script=script, train=None, launcher="torchrun", env={"WITNESS": NOTES})
    argv = [sys.executable, "-m", "clusterft", "logs", "-f", run]
    follower = subprocess.Popen(argv, stdout=subprocess.PIPE, env=rig.desk.env, cwd=rig.desk.root)
    assert follower.stdout is not None
    seen: Counter[tuple[int, int]] = Counter()
    began = 0.0
    for line in follower.stdout:
        if found := _LINE.search(line):
            began = began or time.monotonic()
            seen[int(found[1]), int(found[2])] += 1
    took = time.monotonic() - began
    _, status, used = os.wait4(follower.pid, 0)
    if status != 0 or controller.wait() != 0:
        raise SystemExit(f"logs -f ended with {status}, train with {controller.wait()}:\n{controller.words()}")
    rig.clear()
    return seen, used.ru_maxrss / 1024, took


def measure(quick: bool) -> tuple[list[Figure], dict[str, object]]:
    """One flood after the other; the worst counts."""
    rounds = 1 if quick else 3
    lost, twice, peaks, took = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="clusterft-logpath-") as directory:
        with rigged(Path(directory, "desk"), count=3) as rig:
            for _ in range(rounds):
                seen, peak, seconds = flood(rig, RATE, 2 if quick else SECONDS)
                sent = RATE // len(NODES) * (2 if quick else SECONDS)
                wanted = {(rank, number) for rank in range(len(NODES)) for number in range(sent)}
                lost.append(len(wanted - seen.keys()))
                twice.append(sum(count > 1 for count in seen.values()))
                peaks.append(peak)
                took.append(seconds)
    figures = [
        Figure("lost", max(lost), "lines", 0, max(lost) == 0),
        Figure("repeated", max(twice), "lines", 0, max(twice) == 0),
        Figure("controller.peak", round(max(peaks), 1), "MB", 200, max(peaks) <= 200),
        Figure("seconds", round(max(took), 2), "s"),
    ]
    return figures, {"rounds": rounds, "nodes": len(NODES), "lines": len(wanted)}


if __name__ == "__main__":
    sys.exit(main("logpath", measure))
