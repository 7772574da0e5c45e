"""`clusterft doctor --run` and `--log` as people type them: runs that fail on real nodes, and what is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab import LightLab

pytestmark = [pytest.mark.lab_light, pytest.mark.trainer, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[2]
LOOP = ROOT / "tests" / "bundles" / "loop.py"


@pytest.fixture(scope="module")
def lab() -> Iterator[LightLab]:
    """Two nodes for all tests of this file."""
    with LightLab.up(count=2) as made:
        yield made


class Desk:
    """A controller with a job whose script fails as it is told to."""

    def __init__(self, lab: LightLab, root: Path, home: Path) -> None:
        self.root, self.lab = root, lab
        (root / "pair").write_text(lab.hostfile.read_text())
        pins = home / "pair" / "known_hosts"
        pins.parent.mkdir(parents=True, mode=0o700)
        shutil.copy(lab.known_hosts, pins)
        self.shared = Path(lab.shared, root.name)
        self.shared.mkdir()
        (root / "code").mkdir()
        shutil.copy(LOOP, root / "code" / "train.py")

    def job(self, *, restarts: int = 0, **env: str) -> None:
        """Write it anew."""
        body = {
            "name": "own",
            "hosts": str(self.root / "pair"),
            "shared": str(self.shared),
            "runtime": "process",
            "resources": {"device": "cpu", "threads": 1},
            "launcher": "torchrun",
            "restarts": restarts,
            "env": env,
            "script": {"path": "code/train.py"},
        }
        (self.root / "job.yaml").write_text(json.dumps(body))

    def train(self, *, restarts: int = 0, **env: str) -> str:
        """To its end, whatever that is; the run's id."""
        self.job(restarts=restarts, **env)
        before = set(self.shared.glob("*/run.json"))
        self.run("train", str(self.root / "job.yaml"), "--hosts", str(self.root / "pair"), seconds=240)
        (found,) = set(self.shared.glob("*/run.json")) - before
        return found.parent.name

    @contextmanager
    def training(self) -> Iterator[str]:
        """While a run goes on that ends when it is told to; its id."""
        self.job(STEPS="100000")
        argv = [sys.executable, "-m", "clusterft", "train", "job.yaml", "--hosts", str(self.root / "pair")]
        before, run = set(self.shared.glob("*/run.json")), ""
        with subprocess.Popen(argv, cwd=self.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as train:
            try:
                until = time.monotonic() + 120
                while not (found := set(self.shared.glob("*/logs/attempt-0/*/rank1.log"))) - before:
                    assert time.monotonic() < until and train.poll() is None, "it did not begin"
                    time.sleep(0.2)
                run = found.pop().parents[3].name
                yield run
            finally:
                self.run("stop", run, "--hosts", str(self.root / "pair"), "--now")

    def run(self, *words: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Any command."""
        argv = [sys.executable, "-m", "clusterft", *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=seconds, cwd=self.root, env=os.environ)

    def why(self, run: str) -> dict[str, Any]:
        """What doctor says of a run, with its exit code."""
        done = self.run("doctor", "--run", run, "--hosts", str(self.root / "pair"), "--json")
        assert done.stdout.startswith("{"), done.stdout + done.stderr
        return {**json.loads(done.stdout), "code": done.returncode}


@pytest.fixture
def desk(lab: LightLab, tmp_path: Path, home: Path) -> Desk:
    """A controller for one test."""
    return Desk(lab, tmp_path, home)


def test_a_run_that_failed_is_told_with_rank_node_lines_and_remedy(desk: Desk) -> None:
    run = desk.train(FAULT="exception", FAULT_RANK="1")
    said = desk.why(run)
    assert (said["code"], said["verdict"], said["id"]) == (5, "failed", "exception"), said
    assert (said["node"], said["rank"], said["run"]) == ("n2", 1, run)
    assert any("KeyError: 'caption'" in quote["text"] for quote in said["evidence"])
    for quote in said["evidence"]:
        path, _, number = quote["where"].rpartition(":")
        if path.startswith("logs/"):
            line = (desk.shared / run / path).read_text().splitlines()[int(number) - 1]
            assert quote["text"].strip() in line
    assert any("train.py" in step for step in said["fix"])
    assert any(one["what"] == "lost a peer" for one in said["followed"])
    shown = desk.run("doctor", "--run", run, "--hosts", str(desk.root / "pair"))
    assert shown.returncode == 5 and "n2 rank 1" in shown.stdout and "KeyError" in shown.stdout
    folder = desk.run("doctor", "--log", str(desk.shared / run), "--json")
    other = json.loads(folder.stdout)
    assert (other["id"], other["node"], other["rank"]) == ("exception", "n2", 1)


def test_a_rank_that_was_killed_is_told_and_a_run_that_ended_well_is_well(desk: Desk) -> None:
    said = desk.why(desk.train(FAULT="kill", FAULT_RANK="0"))
    # All light nodes have one kernel: somebody else's kill for memory at this moment counts as a reason.
    assert said["code"] == 5 and said["id"] in ("killed", "os.oom") and (said["node"], said["rank"]) == ("n1", 0)
    good = desk.why(desk.train())
    assert (good["code"], good["verdict"], good["id"]) == (0, "ok", "")


def test_a_run_that_went_on_after_a_kill_is_well_and_the_kill_is_told(desk: Desk) -> None:
    run = desk.train(restarts=1, FAULT="kill", FAULT_RANK="1", FAULT_ATTEMPTS="1")
    said = desk.why(run)
    assert (said["code"], said["verdict"], said["id"]) == (0, "ok", ""), said
    (before,) = said["earlier"]
    assert (before["attempt"], before["node"], before["rank"]) == (0, "n2", 1)
    assert before["id"] in ("killed", "os.oom") and "SIGKILL" in before["summary"]
    assert before["after"] == "the run went on: restart 1 of 1"
    shown = desk.run("doctor", "--run", run, "--hosts", str(desk.root / "pair"))
    assert "ended well, in attempt 1" in shown.stdout and "! attempt 0: " in shown.stdout, shown.stdout
    folder = json.loads(desk.run("doctor", "--log", str(desk.shared / run), "--json").stdout)
    assert [(one["attempt"], one["node"], one["rank"]) for one in folder["earlier"]] == [(0, "n2", 1)]


def test_nodes_that_a_run_holds_are_told_and_not_called_ready(desk: Desk) -> None:
    desk.job()
    asked = ("doctor", "--hosts", str(desk.root / "pair"), "--job", str(desk.root / "job.yaml"), "--quick")
    with desk.training() as run:
        shown, said = desk.run(*asked), json.loads(desk.run(*asked, "--json").stdout)
    assert said["busy"] == [{"run": run, "nodes": ["n1", "n2"], "cluster": ""}]
    assert said["verdict"] == "ok", [one for one in said["checks"] if one["status"] in ("warn", "fail")]
    assert shown.returncode == 0 and f"run {run} holds n1 n2" in shown.stdout, shown.stdout
    assert f"clusterft stop {run}" in shown.stdout and f"; busy with run {run}, and " in shown.stdout
    assert json.loads(desk.run(*asked, "--json").stdout)["busy"] == []


def test_a_run_or_a_file_that_is_not_there_is_a_mistake_of_the_command_line(desk: Desk) -> None:
    desk.train()
    done = desk.run("doctor", "--run", "own-19990101-0000-dead", "--hosts", str(desk.root / "pair"))
    assert done.returncode == 2 and "has no run" in done.stderr
    done = desk.run("doctor", "--log", "nowhere.log")
    assert done.returncode == 2 and "there is no file nowhere.log" in done.stderr
    done = desk.run("doctor", "--run", "x", "--log", "pair")
    assert done.returncode == 2 and "exclude each other" in done.stderr


def test_a_node_that_cannot_be_asked_is_said_and_the_rest_still_judged(desk: Desk, lab: LightLab) -> None:
    run = desk.train(FAULT="exception", FAULT_RANK="1")
    lab.node("n2").cut_link()
    try:
        said = desk.why(run)
    finally:
        lab.node("n2").restore_link()
    assert (said["id"], said["node"], said["rank"]) == ("exception", "n2", 1)
    assert any(one.startswith("n2: ") for one in said["unread"])
