"""Small clusters, facts and jobs that the launcher's tests share, and the comparison with golden files.

CLUSTERFT_UPDATE_GOLDEN=1 writes the golden files anew; look at the difference before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from clusterft import hosts, spec
from clusterft.checks import Survey, Unreached
from clusterft.facts import Disk, Docker, Gpu, NodeFacts, System
from clusterft.hosts import Cluster
from clusterft_trainer.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"

JOB = """\
name: lighthouse
shared: /mnt/out
runtime: process
resources: {device: cpu}
train:
  model: builtin:tiny
  output: {name: lighthouse}
  data:
    sources: [{builtin: shapes}]
  learn: {unet: {rate: 4e-7}}
  steps: 3
"""


def same_as_golden(text: str, path: Path) -> None:
    """Compare, or write the golden file anew when asked to."""
    if os.environ.get("CLUSTERFT_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"{path.name} is missing; CLUSTERFT_UPDATE_GOLDEN=1 writes it"
    assert text == path.read_text(encoding="utf-8")


def cluster(text: str) -> Cluster:
    """A cluster from hostfile text."""
    return hosts.parse(text, path=Path("rack"), name="rack")


def job(text: str, directory: Path) -> spec.JobSpec:
    """A job from job.yaml text."""
    path = directory / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return spec.load(path)


def train(text: str, directory: Path) -> TrainConfig:
    """The `train:` block of a job that has one."""
    found = job(text, directory).train
    assert found is not None
    return found


def card(index: int, name: str = "NVIDIA GeForce RTX 3090") -> Gpu:
    """One card; its UUID ends in its index."""
    return Gpu(index, f"GPU-0000-{index}", name, 24576, 10, "580.65.06")


def disk(directory: str, **changes: Any) -> Disk:
    """A directory with plenty of room."""
    whole: dict[str, Any] = {
        "directory": directory,
        "device": "/dev/nvme0n1p2",
        "mounted_on": "/",
        "free_bytes": 500 * 2**30,
        "free_inodes": 10_000_000,
        "writable": True,
    }
    return Disk(**{**whole, **changes})


def docker(**changes: Any) -> Docker:
    """An engine that works, with room for images and the NVIDIA runtime."""
    whole: dict[str, Any] = {
        "state": "ok",
        "command": ("docker",),
        "path": "/usr/bin/docker",
        "version": "28.3.3",
        "api": "1.51",
        "arch": "amd64",
        "root": "/var/lib/docker",
        "driver": "overlay2",
        "runtimes": ("nvidia", "runc"),
        "rootless": False,
        "remapped": False,
        "store": "/var/lib/docker",
        "free_bytes": 500 * 2**30,
        "free_inodes": 10_000_000,
        "mounted_on": "/",
    }
    return Docker(**{**whole, **changes})


def facts(node: str, **changes: Any) -> NodeFacts:
    """A healthy node without cards."""
    whole: dict[str, Any] = {
        "node": node,
        "clock_offset": 0.01,
        "boot_id": f"boot-of-{node}",
        "hostname": node,
        "kernel": "Linux 6.8.0 x86_64",
        "uid": 1000,
        "gid": 1000,
        "user": "me",
        "home": "/home/me",
        "cores": 16,
        "memory": 64 * 2**30,
        "memory_available": 60 * 2**30,
        "shm": 32 * 2**30,
        "listening": frozenset({22}),
        "gpus": (),
        "disks": (disk("/mnt/out"), disk(".")),
        "routes": (),
        "controller_route": None,
        "arch": "x86_64",
        "system": System("Ubuntu 24.04.1 LTS", ("ubuntu", "debian")),
        "docker": docker(),
        "tools": frozenset({"sshd", "nvidia-ctk", "nvidia-container-runtime-hook"}),
        "home_room": disk("~"),
    }
    return NodeFacts(**{**whole, **changes})


def survey(of: Cluster, *known: NodeFacts, contacts: dict[str, str] | None = None, lost: str = "") -> Survey:
    """A survey; each word of `lost` is a node that did not answer."""
    missed = tuple(Unreached(name, "ssh.unreachable", "timed out after 10 s") for name in lost.split())
    return Survey(of, {each.node: each for each in known}, missed, contacts or {})
