"""Plans of typical clusters, which the tests of the plan share: the surveys, the jobs, and `build`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import scenes

from clusterft import plan
from clusterft.checks import Survey
from clusterft.facts import InfiniBand
from clusterft.plan import LaunchPlan

PYTHON = "/opt/clusterft/bin/python"
TOKEN = "1f" * 16
GPU_JOB = scenes.JOB.replace("device: cpu", "device: cuda").replace("builtin:tiny", "/models/sdxl")
BOXED = GPU_JOB.replace("runtime: process\n", "")
HEAD = scenes.JOB[: scenes.JOB.index("train:")].replace("runtime: process\n", "")
SCRIPT = "script: {path: go.py, workdir: ., args: [--lr, '4e-7', '@HERE@/hostfile']}\n"


def build(text: str, survey: Survey, directory: Path, **changes: Any) -> LaunchPlan:
    """The plan of a job on a survey."""
    roots = {node.name: PurePosixPath("/home/me/.clusterft") for node in survey.cluster.active}
    known: dict[str, Any] = {"python": PYTHON, "tag": "clusterft/rack:3f2a91c0", "code": "0c0de"}
    (directory / "go.py").touch()
    request = plan.Request("lighthouse-20261120-1432-7f3a", roots, token=TOKEN, **{**known, **changes})
    return plan.build(scenes.job(text, directory), survey, request)


def two_local() -> Survey:
    """This machine twice, as in the demo."""
    cluster = scenes.cluster("left slots=1 transport=local\nright slots=1 transport=local\n")
    same = {"boot_id": "one", "cores": 6, "listening": frozenset({29500, 29501})}
    return scenes.survey(cluster, scenes.facts("left", **same), scenes.facts("right", **same))


def three_ssh() -> Survey:
    """One node with addr= on a fast network, two that the routes decide, and a spare."""
    cluster = scenes.cluster(
        "gpu0 slots=8\ngpu1 slots=8 addr=192.168.100.12\ngpu2 slots=8\ngpu3 slots=8 spare=true\n"
    )
    contacts = {f"gpu{i}": f"10.0.0.1{i}" for i in range(3)}
    known = [
        scenes.facts(
            name,
            cores=64,
            routes=tuple(
                (peer, "lo" if peer == own else "enp65s0" if name == "gpu1" else "eno1", own)
                for peer in contacts.values()
            ),
            controller_route=("wlan0", "172.16.0.9"),
        )
        for name, own in contacts.items()
    ]
    return scenes.survey(cluster, *known, contacts=contacts)


def mixed() -> Survey:
    """A controller that trains too, beside a node over SSH."""
    cluster = scenes.cluster("here slots=2 transport=local\nrig slots=2 gpus=0,3\n")
    here = scenes.facts("here", routes=(("10.0.0.7", "eth1", "10.0.0.2"),))
    rig = scenes.facts("rig", routes=(("10.0.0.7", "lo", "10.0.0.7"),), controller_route=("eth0", "10.0.0.7"))
    return scenes.survey(cluster, here, rig, contacts={"rig": "10.0.0.7"})


def cards_and_fabric() -> Survey:
    """Two nodes with four cards and InfiniBand; of one, two cards are used."""
    cluster = scenes.cluster("rig0 slots=4\nrig1 slots=2 gpus=3,1\n")
    contacts = {"rig0": "10.0.0.10", "rig1": "10.0.0.11"}
    known = [
        scenes.facts(
            name,
            cores=32,
            gpus=tuple(replace(scenes.card(i), bus_id=f"00000000:{i + 1}A:00.0") for i in range(4)),
            infiniband=(InfiniBand("mlx5_0", 1, "ACTIVE", "200 Gb/sec (4X HDR)", "InfiniBand", None),),
            routes=tuple((peer, "eno1", own) for peer in contacts.values() if peer != own),
        )
        for name, own in contacts.items()
    ]
    return scenes.survey(cluster, *known, contacts=contacts)


CASES: Mapping[str, tuple[Survey, str]] = {
    "two_local": (two_local(), scenes.JOB),
    "three_ssh": (three_ssh(), GPU_JOB + "env: {NCCL_DEBUG: WARN}\nsecrets: [HF_TOKEN]\n"),
    "mixed_torchrun": (mixed(), GPU_JOB + "launcher: torchrun\nport: 4000\n"),
    "ddp_fp32": (two_local(), scenes.JOB + "  engine: {kind: ddp}\n  precision: fp32\n"),
    "boxes": (three_ssh(), BOXED + "secrets: [HF_TOKEN]\nmounts: [/scratch, '/data:ro']\nmin_nodes: 2\n"),
    "boxes_elastic": (
        cards_and_fabric(),
        BOXED.replace("{device: cuda}", "{device: cuda, shm: 16GB}")
        + "launcher: torchrun\nrendezvous: elastic\nuser: 1005:100\n",
    ),
    "boxes_script": (three_ssh(), HEAD + SCRIPT + "launcher: deepspeed\n"),
}
