"""Starts real training processes for the tests: alone, under torchrun, or as two machine ranks.

Owns their settings files and their ends: whatever a test started is stopped by its own process id.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clusterft_trainer import progress
from clusterft_trainer.rank import start_time

PATIENCE = 180.0  # seconds; a start takes about ten on two busy cores, four ranks of ZeRO-3 a minute
TRAINER = str(Path(progress.__file__).parents[1])


def settings(**changes: Any) -> dict[str, Any]:
    """A run of a few quick steps on builtin parts."""
    body: dict[str, Any] = {
        "model": "builtin:tiny",
        "output": {"name": "tiny", "dtype": "fp32"},
        "data": {
            "sources": [{"builtin": "shapes", "images": 12}],
            "resolution": 64,
            "captions": {"dropout": 0.25},
        },
        "learn": {"unet": {"rate": 1e-3}, "warmup_steps": 2},
        "batch": {"per_slot": 4},
        "precision": "fp32",
        "engine": {"kind": "zero", "stage": 2},
        "checkpoints": {"every_steps": 2, "keep": 2},
        "steps": 6,
        "seed": 7,
    }
    return body | changes


@dataclass
class Gang:
    """Some ranks of one run, as started by one test."""

    logs: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def wait(self) -> list[int]:
        """Exit codes of what was started, in order."""
        deadline = time.monotonic() + PATIENCE
        return [p.wait(max(0.1, deadline - time.monotonic())) for p in self.processes]

    def text(self, rank: int = 0) -> str:
        """What a rank has written so far."""
        path = self.logs / f"rank{rank}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def records(self, rank: int = 0) -> list[progress.Record]:
        """A rank's progress lines so far."""
        found = (progress.decode(line) for line in self.text(rank).splitlines())
        return [r for r in found if r is not None]

    def losses(self) -> dict[int, float]:
        """Loss by step."""
        return {r.step: r.loss for r in self.records() if isinstance(r, progress.Step)}

    def wait_for_step(self, step: int) -> None:
        """Return once rank 0 has finished a step."""
        deadline = time.monotonic() + PATIENCE
        while max(self.losses(), default=0) < step:
            ended = [p.poll() for p in self.processes]
            assert time.monotonic() < deadline and ended == [None] * len(ended), self.text()
            time.sleep(0.02)

    def pid(self, rank: int) -> int:
        """Process id of the rank itself, not of the launcher above it."""
        return int(json.loads((self.logs / f"rank{rank}.pid").read_text())["pid"])


@contextlib.contextmanager
def gang(folder: Path) -> Iterator[Gang]:
    """An empty gang; when the test leaves, nothing of it goes on running."""
    logs = folder / "logs"
    logs.mkdir(parents=True)
    members = Gang(logs)
    try:
        yield members
    finally:
        for process in members.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for note in logs.glob("rank*.pid"):
            # torchrun gives its ranks a session of their own, so they outlive their launcher's group
            body = json.loads(note.read_text())
            if start_time(body["pid"]) == body["start"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(body["pid"], signal.SIGKILL)


def start(gang_: Gang, argv: list[str], **environment: str) -> None:
    """Start one command in a session of its own; its ranks log into the gang's folder."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env |= {"PYTHONPATH": TRAINER, "CLUSTERFT_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    env |= {"CLUSTERFT_LOG_DIR": str(gang_.logs), **environment}
    gang_.processes.append(
        subprocess.Popen(
            [sys.executable, *argv],
            env=env,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=(gang_.logs / f"launcher{len(gang_.processes)}.err").open("wb"),
        )
    )


def train_argv(folder: Path, body: dict[str, Any]) -> list[str]:
    """The trainer's own command line, its settings written down."""
    path = folder / f"config-{time.monotonic_ns()}.json"
    path.write_text(json.dumps(body))
    return ["-m", "clusterft_trainer", "train", str(path), "--run-dir", str(folder / "run")]


def start_alone(gang_: Gang, folder: Path, body: dict[str, Any], **environment: str) -> None:
    """One process without any launcher."""
    start(gang_, train_argv(folder, body), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0",
          MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), **environment)  # fmt: skip


def start_two_machines(gang_: Gang, folder: Path, body: dict[str, Any]) -> None:
    """Two machine ranks of one slot each, every one with its own accelerate YAML, on loopback."""
    argv, port = train_argv(folder, body), free_port()
    for rank in range(2):
        node = folder / f"node{rank}.yaml"
        node.write_text(NODE_YAML.format(rank=rank, port=port))
        start(gang_, ["-m", "accelerate.commands.launch", "--config_file", str(node), *argv])


def start_torchrun(gang_: Gang, folder: Path, body: dict[str, Any]) -> None:
    """Two slots of one machine under torchrun."""
    options = ["--nproc-per-node", "2", "--master-port", str(free_port())]
    start(gang_, ["-m", "torch.distributed.run", *options, *train_argv(folder, body)])


def start_grid(
    gang_: Gang, folder: Path, body: dict[str, Any], nodes: int, slots: int, **environment: str
) -> None:
    """So many nodes with so many processes each, under torchrun; with WITNESS set, through witness.py."""
    argv, port = train_argv(folder, body), free_port()
    if "WITNESS" in environment:
        argv = [str(Path(__file__).with_name("witness.py")), *argv[2:]]
    for node in range(nodes):
        options = [f"--nnodes={nodes}", f"--node-rank={node}", f"--nproc-per-node={slots}"]
        options += ["--master-addr=127.0.0.1", f"--master-port={port}"]
        start(gang_, ["-m", "torch.distributed.run", *options, *argv], **environment)


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


NODE_YAML = """\
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config:
  deepspeed_multinode_launcher: standard
  zero_stage: 3
  gradient_accumulation_steps: 7
machine_rank: {rank}
main_process_ip: 127.0.0.1
main_process_port: {port}
num_machines: 2
num_processes: 2
mixed_precision: fp16
rdzv_backend: static
same_network: true
use_cpu: false
"""
