"""`clusterft train` as a user runs it: real processes, real DeepSpeed, two machine ranks that are this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clusterft_trainer import progress
from clusterft_trainer.rank import start_time

pytestmark = pytest.mark.trainer

JOB = """\
name: {name}
hosts: hosts file
shared: shared dir
runtime: process
resources: {{device: cpu}}
{more}
train:
  model: builtin:tiny
  output: {{name: out}}
  data: {{sources: [{{builtin: shapes, images: 16}}], resolution: 64}}
  learn: {{unet: {{rate: 1e-3}}}}
  precision: fp32
  checkpoints: {{every_steps: 1000}}
  steps: {steps}
"""
HOSTS = "left  slots=1 transport=local\nright slots=1 transport=local\n"


class Desk:
    """A user's working directory, with a space in its path."""

    def __init__(self, root: Path, home: Path) -> None:
        self.root = root / "my jobs"
        self.home = home
        self.root.mkdir()
        (self.root / "hosts file").write_text(HOSTS)

    def job(self, *, steps: int = 3, more: str = "", name: str = "e2e") -> Path:
        """Write a job file."""
        path = self.root / "job.yaml"
        path.write_text(JOB.format(name=name, steps=steps, more=more))
        return path

    def argv(self, *words: str) -> list[str]:
        """The command line of `clusterft train`."""
        return [sys.executable, "-m", "clusterft", "train", str(self.root / "job.yaml"), *words]

    def train(self, *words: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        return subprocess.run(self.argv(*words), capture_output=True, text=True, timeout=seconds)

    def start(self) -> subprocess.Popen[str]:
        """Run in the background, as in a terminal of its own."""
        return subprocess.Popen(
            self.argv(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def run_dir(self) -> Path:
        """The newest run's directory."""
        runs = [path.parent for path in (self.root / "shared dir").glob("*/run.json")]
        return max(runs, key=lambda path: path.stat().st_mtime)

    def wait_for(self, text: str, seconds: float = 90) -> None:
        """Until rank 0 has said something."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for path in self.home.glob("*/nodes/left/runs/*/stream.jsonl"):
                if text in path.read_text():
                    return
            time.sleep(0.05)
        raise AssertionError(f"{text!r} was not said in {seconds} s")

    def processes(self) -> list[str]:
        """Command lines of all processes that belong to this desk's runs."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    env = (entry / "environ").read_bytes().decode(errors="replace")
                except OSError:
                    continue  # gone, or not ours to read
                if str(self.home) in words or f"CLUSTERFT_RUN_DIR={self.root}" in env:
                    found.append(words)
        return found


@pytest.fixture
def desk(tmp_path: Path, home: Path) -> Desk:
    """A fresh working directory and controller home."""
    return Desk(tmp_path, home)


def gone(condition: Callable[[], list[str]], seconds: float = 10) -> list[str]:
    """What is left after giving processes a moment to end."""
    deadline = time.monotonic() + seconds
    while (left := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def half_written(root: Path) -> list[Path]:
    """Files that a finished or stopped run must not leave."""
    return [path for path in root.rglob("*") if path.name.endswith((".new", ".tmp", ".partial"))]


def test_a_job_runs_from_one_command_to_results(desk: Desk) -> None:
    desk.job(steps=4)
    before = [path.name for path in Path(tempfile.gettempdir()).glob("torchelastic_*")]
    done = desk.train()
    assert done.returncode == 0, done.stdout + done.stderr
    run = desk.run_dir()
    assert f"✓ run {run.name} finished" in done.stdout
    for line in ("model ", "loss curve ", "all of it "):
        (path,) = re.findall(rf"^  {line}\s+(.*)$", done.stdout, re.MULTILINE)
        assert Path(path).exists(), path
    assert (run / "export" / "out.safetensors").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in Path(tempfile.gettempdir()).glob("torchelastic_*")] == before
    record = json.loads((run / "run.json").read_text())
    assert record["state"] == "ok"
    assert [node["machine_rank"] for node in record["plan"]["nodes"]] == [0, 1]
    assert (run / "job.yaml").read_text() == (desk.root / "job.yaml").read_text()
    said = [progress.decode(line) for line in rank_log(run, "left", 0).splitlines()]
    assert [record.step for record in said if isinstance(record, progress.Step)] == [1, 2, 3, 4]
    assert gone(desk.processes) == []
    down = [sys.executable, "-m", "clusterft", "down", "--yes", "--hosts", str(desk.root / "hosts file")]
    assert "logs of 1 run" in subprocess.run(down, capture_output=True, text=True, timeout=60).stdout
    assert not list(desk.home.glob("*/nodes")), "another home than ~/.clusterft is cleared, too"


def rank_log(run: Path, node: str, rank: int) -> str:
    """A rank's mirrored log."""
    return (run / "logs" / "attempt-0" / node / f"rank{rank}.log").read_text()


@pytest.mark.long
def test_json_is_one_document_and_names_the_results(desk: Desk) -> None:
    desk.job(steps=2)
    done = desk.train("--json")
    body: Any = json.loads(done.stdout)
    assert (done.returncode, body["outcome"], body["step"]) == (0, "ok", 2)
    assert Path(body["results"]["export"]).exists()


@pytest.mark.long
def test_windows_line_ends_change_nothing(desk: Desk) -> None:
    path = desk.job(steps=2)
    for file in (path, desk.root / "hosts file"):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    done = desk.train("--json")
    assert done.returncode == 0, done.stdout


@pytest.mark.long
def test_torchrun_with_plain_data_parallel(desk: Desk) -> None:
    path = desk.job(steps=2, more="launcher: torchrun")
    path.write_text(path.read_text() + "  engine: {kind: ddp}\n")
    done = desk.train("--json")
    assert done.returncode == 0, done.stdout + rank_log(desk.run_dir(), "left", 0)


@pytest.mark.long
def test_accelerate_with_plain_data_parallel_really_has_two_ranks(desk: Desk) -> None:
    path = desk.job(steps=2)
    path.write_text(path.read_text() + "  engine: {kind: ddp}\n")
    done = desk.train("--json")
    assert done.returncode == 0, done.stdout + rank_log(desk.run_dir(), "left", 0)
    assert rank_log(desk.run_dir(), "right", 1)


def test_a_dry_run_touches_nothing(desk: Desk) -> None:
    desk.job()
    before = sorted(desk.root.rglob("*"))
    done = desk.train("--dry-run")
    assert done.returncode == 0
    assert "accelerate.commands.launch" in done.stdout and "machine_rank: 1" in done.stdout
    assert sorted(desk.root.rglob("*")) == before
    assert not desk.home.exists()


def test_what_a_dry_run_prints_is_what_is_started(desk: Desk) -> None:
    desk.job(steps=2)
    planned = json.loads(desk.train("--dry-run", "--json").stdout)["plan"]
    desk.train("--json")
    started = json.loads((desk.run_dir() / "run.json").read_text())["plan"]
    blank = re.compile(r"e2e-\d{8}-\d{4}-[0-9a-f]{4}")
    assert blank.sub("RUN", json.dumps(planned)) == blank.sub("RUN", json.dumps(started))


def test_secrets_reach_the_ranks_and_no_file(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret-value")
    desk.job(steps=2, more="secrets: [MY_TOKEN]")
    assert desk.train("--json").returncode == 0
    for top in (desk.root, desk.home):
        leaks = [path for path in top.rglob("*") if path.is_file() and b"s3cret-value" in path.read_bytes()]
        assert leaks == []


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("started", marks=pytest.mark.long),
        pytest.param('"phase": "model"', marks=pytest.mark.long),
        '"kind": "step"',
    ],
)
def test_ctrl_c_leaves_no_process_and_no_half_file(desk: Desk, moment: str) -> None:
    desk.job(steps=5000)
    process = desk.start()
    desk.wait_for(moment)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "as asked" in out
    assert gone(desk.processes) == []
    assert half_written(desk.root) == []
    assert json.loads((desk.run_dir() / "run.json").read_text())["state"] == "stopped"
    desk.job(steps=2)
    assert desk.train("--json").returncode == 0, "a rerun must not trip over what was left"


def test_a_killed_rank_ends_the_gang_and_is_named(desk: Desk) -> None:
    desk.job(steps=5000, more="restarts: 0")
    process = desk.start()
    desk.wait_for('"kind": "step"')
    (note,) = desk.home.glob("*/nodes/right/runs/*/logs/attempt-0/rank1.pid")
    os.kill(json.loads(note.read_text())["pid"], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 5, out + err
    assert "rank 1 on right was ended by SIGKILL" in out
    assert str(desk.run_dir() / "logs" / "attempt-0" / "right" / "rank1.log") in out
    assert gone(desk.processes) == []


def test_a_closed_terminal_does_not_end_a_run_and_stop_does(desk: Desk) -> None:
    desk.job(steps=5000)
    process = desk.start()
    desk.wait_for('"kind": "step"')
    process.kill()
    process.wait()
    (note,) = desk.home.glob("*/nodes/left/runs/*/supervisor.json")
    supervisor = json.loads(note.read_text())["pid"]
    time.sleep(1)
    assert start_time(supervisor), "the run goes on without its controller"
    busy = desk.train()
    assert busy.returncode == 3
    name = desk.run_dir().name
    argv = [sys.executable, "-m", "clusterft", "stop"]
    done = subprocess.run([*argv, busy_run(busy.stderr)], capture_output=True, text=True)
    assert done.returncode == 0 and "told to stop: left, right" in done.stdout, done.stderr + name
    assert gone(desk.processes, 30) == []


def busy_run(text: str) -> str:
    """The run that is named as being in the way, in the message and in its remedy."""
    found = re.search(r"(?s)in use by run (\S+)\n.*clusterft stop (\S+)", text)
    assert found and found.group(1) == found.group(2), text
    return found.group(1)


def test_a_trainer_refusal_is_shown_once_with_its_remedy(desk: Desk) -> None:
    path = desk.job()
    path.write_text(path.read_text().replace("builtin:tiny", "/no/such/model"))
    blocked = desk.train()
    assert blocked.returncode == 3 and "data.missing" in blocked.stderr, blocked
    done = desk.train("--no-preflight")
    assert done.returncode == 5
    assert done.stdout.count("first cause (data): The model /no/such/model does not exist") == 1, done.stdout
    assert done.stdout.count("Put the .safetensors file") == 1, done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.long
def test_a_share_that_breaks_does_not_hide_what_the_run_came_to(desk: Desk) -> None:
    desk.job(steps=150)
    process = desk.start()
    desk.wait_for('"kind": "step"')
    run = desk.run_dir()
    run.rename(run.with_name("moved"))
    run.write_text("a file where the run directory was")
    out, err = process.communicate(timeout=90)
    assert process.returncode == 5, out + err
    assert "first cause" in out
    assert "run.json still says that the run goes on" in err


def test_a_reader_that_goes_away_does_not_leave_a_run_unwatched(desk: Desk) -> None:
    desk.job(steps=2)
    command = " ".join(f"'{word}'" for word in desk.argv())
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == 1 and done.stderr == ""
    assert json.loads((desk.run_dir() / "run.json").read_text())["state"] == "ok"


def test_a_python_that_is_not_there_is_a_refusal_and_leaves_no_secret(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret-value")
    desk.job(more="python: /no/such/python\nsecrets: [MY_TOKEN]")
    done = desk.train()
    assert done.returncode == 3, done.stdout + done.stderr
    assert "/no/such/python" in done.stderr and "set python: in job.yaml" in done.stderr
    assert json.loads((desk.run_dir() / "run.json").read_text())["state"] == "failed"
    assert [path for path in desk.home.rglob("secrets.json")] == []


def test_stop_says_which_nodes_it_could_not_tell(desk: Desk) -> None:
    desk.job(steps=5000)
    process = desk.start()
    desk.wait_for('"kind": "step"')
    (desk.root / "hosts file").write_text(HOSTS.splitlines()[0] + "\nnew slots=1 transport=local\n")
    argv = [sys.executable, "-m", "clusterft", "stop", desk.run_dir().name]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 5
    assert "told to stop: left" in done.stdout and "not told: right: no longer in" in done.stdout
    process.communicate(timeout=60)
    assert gone(desk.processes) == []
