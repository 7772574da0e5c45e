"""`clusterft prep` as a user runs it: real processes, two nodes that are this machine, a shared directory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_train import HOSTS, Desk, gone, rank_log

pytestmark = pytest.mark.trainer

JOB = """\
name: e2e
hosts: hosts file
shared: shared dir
runtime: process
resources: {device: cpu}
train:
  model: builtin:tiny
  output: {name: out}
  data: {sources: [SOURCE], resolution: 64, cache: {CACHE}}
  learn: {unet: {rate: 1e-3}}
  precision: fp32
  steps: 2
"""
PICTURES = "{builtin: shapes, images: 24}"


class Workshop(Desk):
    """A desk whose job keeps a cache."""

    def write(self, source: str = PICTURES, cache: str = "") -> None:
        """The job file."""
        (self.root / "job.yaml").write_text(JOB.replace("SOURCE", source).replace("CACHE", cache))

    def call(self, verb: str, *words: str, seconds: float = 150) -> subprocess.CompletedProcess[str]:
        """A verb with the job, to its end."""
        argv = [sys.executable, "-m", "clusterft", verb, str(self.root / "job.yaml"), *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=seconds)

    def begin(self, verb: str = "prep") -> subprocess.Popen[str]:
        """The same in the background."""
        argv = [sys.executable, "-m", "clusterft", verb, str(self.root / "job.yaml")]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(argv, text=True, start_new_session=True, **pipes)

    def standing(self) -> dict[str, Any]:
        """What is prepared."""
        done = self.call("prep", "--status", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        body: dict[str, Any] = json.loads(done.stdout)
        return body

    def shards(self) -> dict[str, bytes]:
        """What lies in the cache."""
        folder = self.root / "shared dir" / ".clusterft" / "latents"
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}

    def rank_pids(self, node: str) -> list[int]:
        """The ranks of a node that have noted themselves."""
        notes = self.home.glob(f"*/nodes/{node}/runs/*/logs/attempt-0/rank*.pid")
        return [json.loads(note.read_text())["pid"] for note in notes]


@pytest.fixture
def desk(tmp_path: Path, home: Path) -> Workshop:
    """A fresh working directory and controller home."""
    made = Workshop(tmp_path, home)
    made.write()
    return made


def test_one_command_prepares_by_all_nodes_and_the_next_finds_nothing_to_do(desk: Workshop) -> None:
    before = desk.standing()
    assert before["missing"] is None
    done = desk.call("prep")
    assert done.returncode == 0, done.stdout + done.stderr
    run = desk.run_dir()
    assert re.fullmatch(r"e2e-prep-\d{8}-\d{4}-[0-9a-f]{4}", run.name)
    assert f"✓ run {run.name} finished" in done.stdout and "prepared in" in done.stdout
    assert "checkpoint" not in done.stdout and "step" not in done.stdout
    record = json.loads((run / "run.json").read_text())
    assert (record["state"], record["plan"]["prep"]) == ("ok", {"only": None})
    assert all(rank_log(run, node, rank) for rank, node in enumerate(("left", "right")))
    body = desk.standing()
    assert body["missing"] == 0 and body["index"]["pictures"] == 24 and body["latents"]["entries"] == 24
    shards = desk.shards()
    assert shards
    again = desk.call("prep", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["outcome"] == "ok", again.stdout
    assert desk.shards() == shards
    assert gone(desk.processes) == []
    shown = desk.call("prep", "--status")
    assert "nothing is missing" in shown.stdout and re.search(r"latents +24 +24 +0", shown.stdout)


@pytest.mark.long
def test_train_prepares_what_is_missing_first_and_only_then(desk: Workshop) -> None:
    done = desk.call("train", seconds=200)
    assert done.returncode == 0, done.stdout + done.stderr
    order = [done.stdout.index(words) for words in ("prepared first", "the data is prepared", "model ")]
    assert order == sorted(order)
    assert len(list((desk.root / "shared dir").glob("*/run.json"))) == 2
    again = desk.call("train", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["outcome"] == "ok", again.stdout + again.stderr
    assert "✓ all data is prepared" in again.stderr
    assert len(list((desk.root / "shared dir").glob("*/run.json"))) == 3


@pytest.mark.long
def test_pictures_that_came_since_are_prepared_before_training(desk: Workshop) -> None:
    folder = desk.root / "pictures"
    folder.mkdir()
    desk.write("{folder: pictures}")
    for number in range(9):
        draw(folder, number)
    assert desk.call("prep").returncode == 0
    draw(folder, 9)
    done = desk.call("train", seconds=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 entry of the cache is missing: prepared first" in done.stdout
    assert desk.standing()["index"]["pictures"] == 10


def draw(folder: Path, number: int) -> None:
    """A picture that no other one equals, with its caption."""
    from PIL import Image

    Image.new("RGB", (80, 64), (20 * number, 10, 200)).save(folder / f"{number}.png")
    (folder / f"{number}.txt").write_text(f"picture {number}")


@pytest.mark.long
def test_one_stage_alone(desk: Workshop) -> None:
    done = desk.call("prep", "--only", "ingest")
    assert done.returncode == 0, done.stdout + done.stderr
    body = desk.standing()
    assert body["index"]["pictures"] == 24 and desk.shards() == {}


@pytest.mark.long
def test_a_rank_that_is_killed_costs_nothing(desk: Workshop) -> None:
    process = desk.begin()
    desk.wait_for('"kind": "phase"')
    for _ in range(200):
        if desk.rank_pids("right"):
            break
        time.sleep(0.05)
    os.kill(desk.rank_pids("right")[0], signal.SIGKILL)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, out + err
    assert "rank 1 was ended by SIGKILL, and starts again (1 of 3)" in out
    assert desk.standing()["missing"] == 0
    assert gone(desk.processes) == []


@pytest.mark.long
def test_ctrl_c_stops_it_and_a_rerun_goes_on(desk: Workshop) -> None:
    process = desk.begin()
    desk.wait_for('"kind": "phase"')
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "stopped as asked; what is prepared stays" in out
    assert gone(desk.processes) == []
    name = desk.run_dir().name
    argv = [sys.executable, "-m", "clusterft", "resume", name, "--json"]
    for _ in range(20):  # a supervisor that has ended is there until its parent has looked
        done = subprocess.run(argv, capture_output=True, text=True, timeout=150)
        if done.returncode != 3:
            break
        time.sleep(0.5)
    assert done.returncode == 0 and json.loads(done.stdout)["run"] == name, done.stdout + done.stderr
    assert desk.standing()["missing"] == 0


@pytest.mark.long
def test_it_goes_on_without_its_controller_and_another_one_follows(desk: Workshop) -> None:
    process = desk.begin()
    desk.wait_for('"kind": "phase"')
    process.kill()
    process.wait()
    argv = [sys.executable, "-m", "clusterft", "attach", desk.run_dir().name]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0 and "prepared in" in done.stdout, done.stdout + done.stderr
    assert desk.standing()["missing"] == 0


def test_a_source_that_is_not_there_starts_nothing(desk: Workshop) -> None:
    desk.write("{folder: nowhere}")
    done = desk.call("train")
    assert (done.returncode, done.stdout) == (3, ""), done
    assert "data.missing" in done.stderr and f"{desk.root / 'nowhere'}, which the job reads" in done.stderr
    assert "train.data.sources[0].folder" in done.stderr and "job.yaml:" in done.stderr
    assert not list((desk.root / "shared dir").glob("*/run.json")) and gone(desk.processes) == []


def test_pictures_that_are_none_end_it_at_once_with_what_mends_them(desk: Workshop) -> None:
    (desk.root / "broken").mkdir()
    (desk.root / "broken" / "a.png").write_text("no picture")
    (desk.root / "broken" / "a.txt").write_text("a caption")
    desk.write("{folder: broken}")
    done = desk.call("train")
    assert done.returncode == 5, done.stdout + done.stderr
    assert "first cause (data)" in done.stdout and "a.png (data.sources[0])" in done.stdout
    assert "put `problems: {broken: skip}` under train.data" in done.stdout
    assert "in the job: " in done.stdout and "once that is mended: clusterft train" in done.stdout
    assert "clusterft resume" not in done.stdout and "Traceback" not in done.stdout + done.stderr
    assert len(list((desk.root / "shared dir").glob("*/run.json"))) == 1
    again = desk.call("train")
    assert again.returncode == 3 and "a.png (data.sources[0])" in again.stderr, again
    assert len(list((desk.root / "shared dir").glob("*/run.json"))) == 1 and gone(desk.processes) == []


def test_without_preparing_the_trainer_refuses_and_names_the_command(desk: Workshop) -> None:
    done = desk.call("train", "--no-prep")
    assert done.returncode == 5, done.stdout + done.stderr
    assert "clusterft prep" in done.stdout and "Traceback" not in done.stdout


@pytest.mark.long
def test_nodes_with_unequal_slots_prepare_together(desk: Workshop) -> None:
    (desk.root / "hosts file").write_text(HOSTS.replace("right slots=1", "right slots=2"))
    done = desk.call("prep")
    assert done.returncode == 0, done.stdout + done.stderr
    assert rank_log(desk.run_dir(), "right", 2)
