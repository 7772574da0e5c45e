"""A program of the user's own on two nodes: the example by hand, then by `clusterft train`, also with a death."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clusterft_trainer.rank import start_time
from lab import LightLab
from lab.engine import cache_dir

pytestmark = pytest.mark.trainer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "script"
ARGS = ["--deepspeed_config", "config/zero2.json", "--model", "wide", "--save_path", "checkpoints"]
# What DeepSpeed compiles on a machine without GPU; a minute, once.
BUILT = {"TORCH_EXTENSIONS_DIR": str(cache_dir() / "torch_extensions")}
_STEP = re.compile(r"^step (\d+)/\d+  loss ([\d.]+)$", re.MULTILINE)


# -- as people type it, without clusterft --------------------------------------------------------


class ByHand:
    """`deepspeed` typed on two nodes that are both this machine."""

    def __init__(self, place: Path) -> None:
        self.place = place
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        (place / "hostfile").write_text("left slots=1\nright slots=1\n")
        self._env = os.environ | {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "CLUSTERFT_RUN_DIR": str(place),
            "PYTHONDONTWRITEBYTECODE": "1",
            **BUILT,
        }

    def start(self, *more: str) -> list[subprocess.Popen[str]]:
        """Both launchers."""
        deepspeed = [sys.executable, "-m", "deepspeed.launcher.runner", "--no_ssh", "--master_addr=127.0.0.1"]
        deepspeed += [f"--hostfile={self.place}/hostfile", f"--master_port={self._port}"]
        return [
            subprocess.Popen(
                [*deepspeed, f"--node_rank={rank}", "train.py", *ARGS, *more],
                cwd=EXAMPLE,
                env=self._env,
                stdout=(self.place / f"{rank}.log").open("w"),
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            for rank in (0, 1)
        ]

    def said(self) -> str:
        """By the first node."""
        return (self.place / "0.log").read_text()


def losses(text: str) -> dict[int, float]:
    """By step."""
    return {int(step): float(loss) for step, loss in _STEP.findall(text)}


def wait_for(text: str, read: Any, seconds: float = 240) -> None:
    """Until somebody has said it."""
    deadline = time.monotonic() + seconds
    while text not in read():
        assert time.monotonic() < deadline, f"no {text!r} in:\n{read()}"
        time.sleep(0.1)


@pytest.mark.long
def test_the_example_is_a_plain_deepspeed_program_that_ends_when_asked_and_goes_on(tmp_path: Path) -> None:
    desk = ByHand(tmp_path)
    both = desk.start("--steps", "1000", "--pause", "0.05", "--save_every", "1000")
    try:
        wait_for("step 5/", desk.said)
        ranks = re.search(r"process (\d+) spawned", (tmp_path / "1.log").read_text())
        assert ranks
        os.kill(int(ranks[1]), signal.SIGTERM)  # one rank alone hears it
        assert [process.wait(60) for process in both] == [0, 0], desk.said()
    finally:
        for process in both:
            end_session(process)
    first = losses(desk.said())
    last = max(first)
    assert f"asked to stop: saved at step {last}" in desk.said()
    whole = last + 5
    both = desk.start("--steps", str(whole))
    try:
        assert [process.wait(120) for process in both] == [0, 0], desk.said()
    finally:
        for process in both:
            end_session(process)
    second = losses(desk.said())
    assert list(second) == list(range(last + 1, whole + 1)), "nothing repeated, nothing left out"
    assert min(second.values()) < first[1] / 2, "it went on learning"


def end_session(process: subprocess.Popen[str]) -> None:
    """A launcher that was killed leaves its ranks behind; they are in its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(10)


# -- by clusterft, over SSH ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab() -> Iterator[LightLab]:
    """Two nodes for all tests of this file."""
    with LightLab.up(count=2) as made:
        yield made


class Desk:
    """A controller with a job of the example's kind."""

    def __init__(self, lab: LightLab, root: Path, home: Path) -> None:
        self.root, self.lab = root, lab
        (root / "pair").write_text(lab.hostfile.read_text())
        pins = home / "pair" / "known_hosts"
        pins.parent.mkdir(parents=True)
        shutil.copy(lab.known_hosts, pins)
        self.shared = Path(lab.shared, root.name)
        self.shared.mkdir()
        self.code = root / "code"

    def job(self, launcher: str, args: list[str], **more: object) -> Path:
        """Write a job; its script is train.py of the folder `code`."""
        body = {
            "name": "own",
            "hosts": str(self.root / "pair"),
            "shared": str(self.shared),
            "runtime": "process",
            "resources": {"device": "cpu", "threads": 1},
            "launcher": launcher,
            "script": {"path": "code/train.py", "args": args},
            **more,
        }
        path = self.root / "job.yaml"
        path.write_text(json.dumps(body))  # JSON is YAML
        return path

    def start(self, *words: str) -> subprocess.Popen[str]:
        """In the background."""
        argv = [sys.executable, "-m", "clusterft", "train", str(self.root / "job.yaml"), *words]
        return subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def train(self, *words: str, seconds: float = 180) -> str:
        """To the end, which must be a good one."""
        process = self.start(*words)
        try:
            out = process.communicate(timeout=seconds)[0]
        finally:
            end_session(process)
        assert process.returncode == 0, out
        return out

    def run_dir(self) -> Path:
        """The only run's."""
        (found,) = [path.parent for path in self.shared.glob("*/run.json")]
        return found

    def log(self, attempt: int, node: str, rank: int) -> str:
        """What a rank has said, as it lies in the shared dir."""
        path = self.run_dir() / "logs" / f"attempt-{attempt}" / node / f"rank{rank}.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def desk(lab: LightLab, tmp_path: Path, home: Path) -> Desk:
    """A controller for one test."""
    return Desk(lab, tmp_path, home)


@pytest.mark.lab_light
@pytest.mark.long
def test_deepspeed_runs_the_example_on_two_nodes_and_goes_on_after_a_death(desk: Desk) -> None:
    shutil.copytree(EXAMPLE, desk.code)
    desk.job("deepspeed", [*ARGS, "--steps", "120", "--pause", "0.05", "--save_every", "10"], env=BUILT)
    process = desk.start()
    try:
        wait_for("\nstep 25/", lambda: desk.log(0, "n1", 0) if desk.shared.exists() else "")
        os.kill(rank_of(desk, 1), signal.SIGKILL)
        out = process.communicate(timeout=300)[0]
    finally:
        end_session(process)
    assert process.returncode == 0, out
    first, second = losses(desk.log(0, "n1", 0)), losses(desk.log(1, "n1", 0))
    began = min(second)
    assert began > 20 and began % 10 == 1, "from its newest checkpoint"
    assert list(second) == list(range(began, 121))
    for step in set(first) & set(second):
        assert second[step] == pytest.approx(first[step], abs=2e-3), "the same data gives the same loss"
    assert f"attempt 1 begins after step {began - 1}" in desk.log(1, "n1", 0)


def rank_of(desk: Desk, rank: int) -> int:
    """The process of a rank: nodes of the light lab are namespaces of this machine, and share its process ids."""
    wanted = str(desk.shared).encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and start_time(int(entry)):
            try:
                argv = Path("/proc", entry, "cmdline").read_bytes()
                env = dict(
                    item.partition(b"=")[::2] for item in Path("/proc", entry, "environ").read_bytes().split(b"\0")
                )
            except OSError:
                continue
            here = env.get(b"CLUSTERFT_RUN_DIR", b"").startswith(wanted)
            if here and b"clusterft_trainer.rank" in argv and env.get(b"RANK") == str(rank).encode():
                return int(entry)
    raise AssertionError(f"no process is rank {rank}")


PLAIN = """\
import os, sys
import torch, torch.distributed as dist
from told import WORD

dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
print(f"{WORD}: {dist.get_rank()} of {int(total)}, {sys.argv[1:]}, {os.environ['CLUSTERFT_MACHINE_RANK']}")
print("in", os.getcwd(), "writable" if os.access("told.py", os.W_OK) and os.geteuid() else "read-only")
dist.barrier()
dist.destroy_process_group()
sys.exit(int(os.environ.get("END", "0")))
"""


@pytest.mark.lab_light
@pytest.mark.long
def test_torchrun_runs_a_plain_program_and_only_changed_files_travel(desk: Desk) -> None:
    desk.code.mkdir()
    (desk.code / "train.py").write_text(PLAIN)
    (desk.code / "told.py").write_text("WORD = 'first'\n")
    odd = ["--name", "two words", "$HOME", "'quoted\"", ""]
    desk.job("torchrun", odd)
    desk.train()
    run = desk.run_dir()
    for rank, node in enumerate(("n1", "n2")):
        assert f"first: {rank} of 2, {odd}, {rank}\n" in desk.log(0, node, rank)
    depot = desk.shared / ".clusterft" / "code"
    (tree,) = [path for path in depot.iterdir() if re.fullmatch("[0-9a-f]{64}", path.name)]
    assert f"in {tree} read-only" in desk.log(0, "n2", 1)
    shutil.rmtree(run)
    (desk.code / "told.py").write_text("WORD = 'second'\n")
    desk.train()
    assert "second: 0 of 2" in desk.log(0, "n1", 0)
    assert len(list((depot / "blobs").iterdir())) == 3, "train.py came once"
    assert (tree / "told.py").read_text() == "WORD = 'first'\n"


@pytest.mark.lab_light
def test_a_program_that_fails_is_named_with_its_own_words(desk: Desk) -> None:
    desk.code.mkdir()
    (desk.code / "train.py").write_text("raise ValueError('no such layer')\n")
    desk.job("torchrun", [], restarts=0)
    process = desk.start()
    try:
        out = process.communicate(timeout=120)[0]
    finally:
        end_session(process)
    assert process.returncode == 5, out
    assert "ValueError: no such layer" in out
