"""Proves that what a plan gives each launcher makes it train: real accelerate, torchrun and deepspeed on loopback.

Stray settings of the user's own lie in every run's home and working directory; none may alter it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import scenes

from clusterft import plan
from clusterft.plan import LaunchPlan, NodePlan

pytestmark = pytest.mark.trainer

# Meets the others, adds up something, and writes down how it was started.
SCRIPT = """\
import argparse, json, os, sys, time
from pathlib import Path
import torch, torch.distributed as dist
import beside  # lies in the script's folder
out, rank = Path(os.environ["CLUSTERFT_RUN_DIR"]), int(os.environ["RANK"])
again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
dist.init_process_group("gloo")
weight = torch.ones(2, requires_grad=True)
for step in range(3):
    weight.grad = None
    (weight.sum() * (rank + 1)).backward()
    dist.all_reduce(weight.grad)
    weight.data -= 0.1 * weight.grad
names = "LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_PORT OMP_NUM_THREADS STRAY ACCELERATE_MIXED_PRECISION"
body = {name: os.environ.get(name) for name in names.split()}
body |= {"weight": weight[0].item(), "argv": sys.argv, "cwd": os.getcwd()}
(out / f"rank{rank}-{again}.json.new").write_text(json.dumps(body | {"pid": os.getpid()}))
(out / f"rank{rank}-{again}.json.new").rename(out / f"rank{rank}-{again}.json")
while "--until-told" in sys.argv and not (out / "end").exists():
    dist.all_reduce(weight.grad)
    time.sleep(0.2)
dist.destroy_process_group()
"""
ARGS = ["--lr", "4e-7", "--config_file", "a b", "", "$HOME", "--", "-m", "ä'\"", "@WORLD@"]
LAUNCHERS = {
    "accelerate": "launcher: accelerate\n",
    "torchrun": "launcher: torchrun\n",
    "elastic": "launcher: torchrun\nrendezvous: elastic\nrestarts: 2\n",
    "deepspeed": "launcher: deepspeed\n",
}


class Gang:
    """The launchers of all nodes, each started as a supervisor would: in the plan's environment alone, or on top
    of another one as in a container."""

    def __init__(self, planned: LaunchPlan, worlds: tuple[dict[str, str], ...] = ()) -> None:
        self.out = Path(planned.places.dir)
        self.out.mkdir(parents=True)
        self.planned = planned
        self.worlds = worlds or tuple(node.env for node in planned.nodes)
        self.started = [self._start(node) for node in planned.nodes]

    def _start(self, node: NodePlan) -> subprocess.Popen[bytes]:
        directory = Path(node.directory)
        logs = directory / "logs" / "attempt-0"
        logs.mkdir(parents=True)
        for file in (*node.files, *node.attempt_files):
            Path(file.path).parent.mkdir(parents=True, exist_ok=True)
            Path(file.path).write_text(file.text, encoding="utf-8")
        with (logs / "launcher.log").open("wb") as log:
            return subprocess.Popen(
                node.command,
                env=self.worlds[node.machine_rank] | {"CLUSTERFT_LOG_DIR": str(logs), "CLUSTERFT_ATTEMPT": "0"},
                cwd=node.assignment.work_dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def codes(self, seconds: float = 90) -> list[int]:
        """How all of them ended."""
        return [one.wait(seconds) for one in self.started]

    def seen(self, rank: int, again: int = 0, seconds: float = 60) -> dict[str, Any]:
        """What a rank wrote down."""
        path, deadline = self.out / f"rank{rank}-{again}.json", time.monotonic() + seconds
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert path.exists(), self.logs()
        body: dict[str, Any] = json.loads(path.read_text())
        return body

    def logs(self) -> str:
        """All that was said."""
        paths = [p for node in self.planned.nodes for p in sorted(Path(node.directory, "logs").rglob("*.log"))]
        return "\n".join(f"== {path}\n{path.read_text(errors='replace')}" for path in paths)

    def close(self) -> None:
        """End what is left of the sessions that were started here."""
        for one in self.started:
            if one.poll() is None:
                os.killpg(one.pid, signal.SIGKILL)
                one.wait()


@pytest.fixture
def gangs() -> Iterator[list[Gang]]:
    begun: list[Gang] = []
    yield begun
    for gang in begun:
        gang.close()


def _port() -> int:
    """The first of a range that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return min(int(one.getsockname()[1]), 65000)


def _planned(directory: Path, job: str, slots: tuple[int, ...], runtime: str = "process") -> LaunchPlan:
    home = directory / "home"
    home.mkdir(exist_ok=True)
    lines = "".join(f"box{i} slots={n} transport=local\n" for i, n in enumerate(slots))
    cluster = scenes.cluster(lines)
    facts = [scenes.facts(node.name, boot_id="one", home=str(home), cores=2) for node in cluster.active]
    roots = {node.name: PurePosixPath(home / ".clusterft") for node in cluster.active}
    request = plan.Request("run-1", roots, sys.executable, token="0" * 32, tag="x", code="c0de")
    job = job.replace("/mnt/out", str(directory / "out")).replace("runtime: process", f"runtime: {runtime}")
    return plan.build(scenes.job(job, directory), scenes.survey(cluster, *facts), request)


def _script_job(directory: Path, more: str, args: list[str]) -> str:
    """A job of the script, whose folder lies shipped where the nodes look for it; strays are all around."""
    ours, shipped = directory / "code", directory / "out" / ".clusterft" / "code" / "c0de"
    for folder in (ours, shipped):
        (folder / "work").mkdir(parents=True)
        (folder / "go.py").write_text(SCRIPT)
        (folder / "beside.py").write_text("")
    for place in (directory / "home", shipped / "work", shipped):
        _strew(place)
    head = scenes.JOB[: scenes.JOB.index("train:")]
    script = json.dumps({"path": "code/go.py", "workdir": "work", "args": args})
    return f"{head}{more}port: {_port()}\nscript: {script}\n"


def _strew(place: Path) -> None:
    """What people have lying around: accelerate's and DeepSpeed's own settings, and modules of unlucky names."""
    accelerate = place / ".cache" / "huggingface" / "accelerate"
    accelerate.mkdir(parents=True)
    text = "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: fp16\nnum_processes: 7\n"
    for path in (accelerate / "default_config.yaml", place / "default_config.yaml"):
        path.write_text(text)
    (place / ".deepspeed_env").write_text("STRAY=1\nOMP_NUM_THREADS=9\n")
    (place / "accelerate.py").write_text("raise SystemExit('a stray module was imported')\n")
    (place / "deepspeed.py").write_text("raise SystemExit('a stray module was imported')\n")


@pytest.mark.parametrize(
    ("launcher", "runtime"),
    [
        *((name, "process") for name in LAUNCHERS),
        ("accelerate", "docker"),
        pytest.param("deepspeed", "docker", marks=pytest.mark.long),
    ],
)
def test_two_machine_ranks_train_and_no_stray_setting_alters_it(
    launcher: str, runtime: str, tmp_path: Path, gangs: list[Gang]
) -> None:
    job = _script_job(tmp_path, LAUNCHERS[launcher], ARGS)
    image = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home")}
    inside = tuple(image | node.env for node in _planned(tmp_path, job, (1, 1), runtime).nodes)
    planned = _planned(tmp_path, job, (1, 1))
    gangs.append(gang := Gang(planned, inside if runtime == "docker" else ()))
    assert gang.codes() == [0, 0], gang.logs()
    for rank in range(2):
        seen = gang.seen(rank)
        assert (round(seen["weight"], 4), seen["WORLD_SIZE"], seen["LOCAL_RANK"]) == (0.1, "2", "0")
        assert seen["LOCAL_WORLD_SIZE"] == "1" and seen["OMP_NUM_THREADS"] == "1" and seen["STRAY"] is None
        assert seen["ACCELERATE_MIXED_PRECISION"] == ("no" if launcher == "accelerate" else None)
        own = ["--local_rank=0"] if launcher == "deepspeed" else []
        assert seen["argv"][1:] == [*own, *ARGS[:-1], "2"] and seen["argv"][0].endswith("/c0de/go.py")
        assert seen["cwd"] == str(tmp_path / "out" / ".clusterft" / "code" / "c0de" / "work")
        assert (launcher == "elastic") == (seen["MASTER_PORT"] != str(gang.planned.port))


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["torchrun", "elastic", "deepspeed"])
def test_uneven_slots_train(launcher: str, tmp_path: Path, gangs: list[Gang]) -> None:
    gangs.append(gang := Gang(_planned(tmp_path, _script_job(tmp_path, LAUNCHERS[launcher], []), (1, 2))))
    assert gang.codes() == [0, 0], gang.logs()
    seen = [gang.seen(rank) for rank in range(3)]
    assert [round(one["weight"], 4) for one in seen] == [-0.8, -0.8, -0.8]
    assert sorted(one["LOCAL_WORLD_SIZE"] for one in seen) == ["1", "2", "2"]


@pytest.mark.long
def test_elastic_agents_begin_again_within_an_attempt_when_a_rank_is_killed(
    tmp_path: Path, gangs: list[Gang]
) -> None:
    job = _script_job(tmp_path, LAUNCHERS["elastic"], ["--until-told"])
    gangs.append(gang := Gang(_planned(tmp_path, job, (1, 1))))
    first = {gang.seen(rank)["pid"] for rank in range(2)}
    os.kill(gang.seen(1)["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while len(_pids(gang) - first) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(_pids(gang) - first) == 2, gang.logs()
    (gang.out / "end").touch()
    assert gang.codes() == [0, 0], gang.logs()


def _pids(gang: Gang) -> set[int]:
    """Of all ranks that have met, in whichever round: a node that counts no restart writes its file anew."""
    return {json.loads(path.read_text())["pid"] for path in gang.out.glob("rank*.json")}
