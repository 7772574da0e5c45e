"""What clusterft adds before the first optimizer step, against the same trainer command started by hand.

By hand means: the files and the commands of `clusterft train --dry-run --json`, laid out beforehand and started
together with `accelerate launch`, one for each machine rank. Both sides alternate.
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

from _figures import Figure, main, ratio

from clusterft_trainer import progress

ROOT = Path(__file__).resolve().parent.parent
JOB = """
name: overhead
hosts: {hosts}
shared: {shared}
runtime: process
resources: {{device: cpu}}
train:
  model: builtin:tiny
  output: {{name: overhead}}
  data: {{sources: [{{builtin: shapes, images: 16}}], resolution: 64}}
  learn: {{unet: {{rate: 1e-3}}}}
  precision: fp32
  steps: 2
"""


def clusterft(job: Path, *words: str) -> Any:
    """One clusterft command with --json; the document it printed."""
    argv = [sys.executable, "-m", "clusterft", "train", str(job), "--json", *words]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def first_step(lines: list[str]) -> float:
    """When the first optimizer step was over, on this machine's clock."""
    for line in lines:
        record = progress.decode(line)
        if isinstance(record, progress.Step):
            return record.at
    raise SystemExit("no step was reported; the last lines were:\n" + "\n".join(lines[-20:]))


def ours(job: Path) -> float:
    """Seconds from the command to the first step of rank 0."""
    began = time.time()
    document = clusterft(job)
    log = Path(document["run_dir"], "logs", "attempt-0", "left", "rank0.log")
    return first_step(log.read_text().splitlines()) - began


def by_hand(job: Path) -> float:
    """The same with nothing of ours above accelerate."""
    planned = clusterft(job, "--dry-run")["plan"]
    for node in planned["nodes"]:
        for path, text in node["files"].items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text)
    Path(planned["run_dir"]).mkdir(parents=True)
    outputs = [Path(node["directory"], "by-hand.log") for node in planned["nodes"]]
    began = time.time()
    processes = []
    for node, output in zip(planned["nodes"], outputs, strict=True):
        with output.open("w") as file:
            argv, env = node["argv"], node["env"]
            processes.append(subprocess.Popen(argv, env=env, cwd=node["directory"], stdout=file, stderr=file))
    codes = [process.wait() for process in processes]
    lines = [line for output in outputs for line in output.read_text().splitlines()]
    if any(codes):
        raise SystemExit(f"by hand ended with {codes}:\n" + "\n".join(lines[-30:]))
    return first_step(lines) - began


def measure(quick: bool) -> tuple[list[Figure], dict[str, object]]:
    """Alternate both, in a home and a shared dir of their own."""
    rounds = 1 if quick else 5
    mine, hand = [], []
    with tempfile.TemporaryDirectory(prefix="clusterft-overhead-") as directory:
        os.environ["CLUSTERFT_HOME"] = str(Path(directory, "home"))
        job = Path(directory, "job.yaml")
        job.write_text(JOB.format(hosts=ROOT / "hostfiles" / "local", shared=Path(directory, "shared")))
        ours(job)  # makes the model and the pictures, and warms the page cache for both sides
        for _ in range(rounds):
            mine.append(ours(job))
            hand.append(by_hand(job))
    return ratio("first_step", mine, hand, target=1.25), {"rounds": rounds, "machine_ranks": 2}


if __name__ == "__main__":
    sys.exit(main("overhead", measure))
