"""`clusterft train` over real SSH to light lab nodes, and what it says when a node cannot be used."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lab import LightLab, LightNode

pytestmark = [pytest.mark.lab_light, pytest.mark.trainer]

JOB = """\
name: ssh
hosts: {hosts}
shared: {shared}
runtime: process
resources: {{device: cpu, threads: 1}}
restarts: 0
patience: 20s
train:
  model: builtin:tiny
  output: {{name: out}}
  data: {{sources: [{{builtin: shapes, images: 16}}], resolution: 64}}
  learn: {{unet: {{rate: 1e-3}}}}
  precision: fp32
  steps: {steps}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[LightLab]:
    """Two nodes for all tests of this file."""
    with LightLab.up(count=2) as made:
        yield made


class Desk:
    """A controller of its own, with the lab's host keys pinned."""

    def __init__(self, lab: LightLab, root: Path, home: Path) -> None:
        self.root, self.lab, self.home = root, lab, home
        self.hosts = root / "pair"
        self.hosts.write_text(lab.hostfile.read_text())
        self.pins = home / "pair" / "known_hosts"
        self.pins.parent.mkdir(parents=True)
        shutil.copy(lab.known_hosts, self.pins)

    def argv(self, steps: int, *words: str) -> list[str]:
        """Write the job and return the command that trains it."""
        job = self.root / "job.yaml"
        job.write_text(JOB.format(hosts=self.hosts, shared=self.lab.shared, steps=steps))
        return [sys.executable, "-m", "clusterft", "train", str(job), *words]

    def train(self, *words: str, steps: int = 3) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        return subprocess.run(self.argv(steps, *words), capture_output=True, text=True, timeout=150)

    def clusterft(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Another command, to its end."""
        argv = [sys.executable, "-m", "clusterft", *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=90)

    def runs(self) -> set[str]:
        """All that have left something in the shared dir."""
        return {path.parent.name for path in Path(self.lab.shared).glob("*/run.json")}

    def refusal(self) -> dict[str, Any]:
        """The one blocking check of a run that must not start."""
        done = self.train("--json")
        assert done.returncode == 3, done.stdout + done.stderr
        checks: list[dict[str, Any]] = json.loads(done.stdout)["checks"]
        (found,) = [check for check in checks if check["status"] == "fail"]
        return found


@pytest.fixture
def desk(lab: LightLab, tmp_path: Path, home: Path) -> Desk:
    """A controller for one test."""
    return Desk(lab, tmp_path, home)


def test_two_nodes_train_over_their_own_addresses(desk: Desk, lab: LightLab) -> None:
    done = desk.train("--json")
    body = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    plan = json.loads(Path(body["run_dir"], "run.json").read_text())["plan"]
    assert [node["address"] for node in plan["nodes"]] == [node.address for node in lab.nodes]
    assert plan["master"]["address"] == lab.nodes[0].address
    for node, planned in zip(lab.nodes, plan["nodes"], strict=True):
        route = node.run(["ip", "-o", "-4", "addr", "show", "dev", planned["interface"]]).stdout
        assert f" {node.address}/" in route, "the interface that carries the node's address"
    assert Path(body["run_dir"], "logs", "attempt-0", "n2", "rank1.log").exists()
    run = Path(body["run_dir"]).name
    again = desk.clusterft("resume", run)
    assert again.returncode == 0 and "has finished; there is nothing to resume" in again.stdout, again.stderr
    assert f"clusterft resume {run} --job job.yaml --changed" in again.stdout
    assert json.loads(desk.clusterft("resume", run, "--json").stdout)["outcome"] == "ok"
    stopped = desk.clusterft("stop", run)
    assert stopped.stdout.strip() == f"{run} has finished; there was nothing to stop" and stopped.returncode == 0
    nobody = desk.clusterft("logs", run, "--rank", "9")
    assert (nobody.returncode, nobody.stdout) == (2, "") and "it has ranks 0 to 1" in nobody.stderr
    assert desk.clusterft("logs", run, "--rank", "1").stdout.strip()
    never = desk.clusterft("logs", run, "--attempt", "1")
    assert never.returncode == 2 and f"run {run} has no attempt 1" in never.stderr, never.stderr
    assert "it has attempt 0 alone" in never.stderr and not never.stdout
    assert not Path(body["run_dir"], "logs", "attempt-1").exists()


def test_an_unpinned_host_key_is_refused_and_never_learned(desk: Desk) -> None:
    desk.pins.write_text("")
    found = desk.refusal()
    assert (found["id"], found["nodes"]) == ("ssh.hostkey-unknown", ["n1", "n2"])
    assert found["evidence"].count("SHA256:") == 2
    assert desk.pins.read_text() == ""


def test_a_wrong_key_is_named_with_the_node(desk: Desk) -> None:
    other = desk.root / "other key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    lines = desk.hosts.read_text().splitlines()
    index = next(i for i, line in enumerate(lines) if line.startswith("n2 "))
    lines[index] = lines[index].replace(f"identity={desk.lab.key}", f'identity="{other}"')
    desk.hosts.write_text("\n".join(lines))
    found = desk.refusal()
    assert (found["id"], found["nodes"]) == ("ssh.auth", ["n2"])
    assert any("ssh-copy-id" in step for step in found["fix"])


def test_a_blocked_ssh_port_is_named_with_the_node(desk: Desk, lab: LightLab) -> None:
    lab.node("n2").block_port(22, action="drop")
    try:
        found = desk.refusal()
    finally:
        lab.node("n2").unblock_ports()
    assert (found["id"], found["nodes"]) == ("ssh.timeout", ["n2"])


def test_a_full_home_blocks_before_anything_starts(desk: Desk, lab: LightLab) -> None:
    lab.node("n1").fill_disk(leave_kb=100)
    try:
        found = desk.refusal()
    finally:
        lab.node("n1").free_disk()
    assert (found["id"], found["nodes"]) == ("os.disk-full", ["n1"])


@pytest.mark.long
def test_a_short_link_failure_is_not_a_death(desk: Desk, lab: LightLab) -> None:
    process = training(desk, steps=100)
    lab.node("n2").cut_link()
    time.sleep(4)
    lab.node("n2").restore_link()
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0, out


def training(desk: Desk, steps: int) -> subprocess.Popen[str]:
    """A run in the background that has done its first step."""
    process = subprocess.Popen(
        desk.argv(steps), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("step 1/"):
            return process
    raise AssertionError("no first step:\n" + "".join(said))


def test_a_directory_that_is_not_shared_is_found_before_anything_starts(desk: Desk, lab: LightLab) -> None:
    argv = desk.argv(3)
    job = desk.root / "job.yaml"
    job.write_text(job.read_text().replace(f"shared: {lab.shared}", "shared: /dev/shm/out"))
    for node in lab.nodes:
        node.run(["mkdir", "-p", "/dev/shm/out"])
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "fs.not-shared: n2 does not see /dev/shm/out/" in done.stderr and "findmnt" in done.stderr
    for node in lab.nodes:
        assert trainers_on(node) == []


def test_a_shared_directory_with_a_mistyped_name_is_refused_as_doctor_refuses_it(desk: Desk) -> None:
    argv = desk.argv(3)
    job, right = desk.root / "job.yaml", desk.root / "shared"
    right.mkdir()
    at = job.read_text().splitlines().index(f"shared: {desk.lab.shared}") + 1
    wrong = desk.root / "sharde"
    job.write_text(job.read_text().replace(f"shared: {desk.lab.shared}", f"shared: {wrong}"))
    line = f"correct shared: at {job}:{at}:9   did you mean {right}?"
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "fs.not-shared" in done.stderr and f"{wrong} does not exist" in done.stderr and line in done.stderr
    told = desk.clusterft("doctor", "--job", str(job), "--only", "fs.not-shared", "--quick")
    assert told.returncode == 3 and f"{wrong} does not exist" in told.stdout and line in told.stdout
    assert not wrong.exists()


def trainers_on(node: LightNode) -> list[str]:
    """Command lines of ours on a node; a node that cannot say what runs there is no proof of nothing."""
    done = node.run(["ps", "-eo", "args"])
    assert done.returncode == 0 and "sshd" in done.stdout, done.stderr
    return [line for line in done.stdout.splitlines() if "clusterft_trainer" in line]


@pytest.mark.parametrize(
    "fault",
    [
        "reboot",
        # It answers nothing, and gets the job's patience, since a link may come back.
        pytest.param("power", marks=pytest.mark.long),
    ],
)
def test_a_lost_node_ends_the_run_with_its_name(desk: Desk, lab: LightLab, fault: str) -> None:
    process = training(desk, steps=1_000_000)
    began = time.monotonic()
    if fault == "reboot":
        lab.node("n2").reboot()
    else:
        lab.node("n2").kill()
    try:
        out = process.communicate(timeout=500)[0]
    finally:
        if fault == "power":
            lab.node("n2").start()
    assert process.returncode == 5, out
    assert "n2 is gone" in out
    assert out.count("n2 is silent") == 1, "said once, not at every retry"
    assert fault != "reboot" or time.monotonic() - began < 100
    assert trainers_on(lab.node("n1")) == []


def test_ctrl_c_stops_the_nodes_too(desk: Desk, lab: LightLab) -> None:
    process = training(desk, steps=100_000)
    os.killpg(process.pid, signal.SIGINT)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 130, out
    time.sleep(1)  # the follower on the node ends when it next writes
    for node in lab.nodes:
        assert trainers_on(node) == [], node.name


def test_a_picture_that_one_node_lacks_is_told_of_that_node(desk: Desk, lab: LightLab, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for k in range(16):
        Image.new("RGB", (64, 64), (16 * k, 0, 0)).save(pictures / f"{k:05d}.png")
        (pictures / f"{k:05d}.txt").write_text("a shade of red")
    argv = desk.argv(4, "--json")
    text = (desk.root / "job.yaml").read_text()
    (desk.root / "job.yaml").write_text(text.replace("{builtin: shapes, images: 16}", f"{{folder: {pictures}}}"))
    less = "mkdir /run/less && cp {0}/00000.* /run/less && mount --bind /run/less {0}"
    assert lab.access.ssh("n2", ["sh", "-ec", less.format(pictures)], timeout=20).returncode == 0
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=150)
    finally:
        lab.access.ssh("n2", ["sh", "-ec", f"umount {pictures}; rm -r /run/less"], timeout=20)
    body = json.loads(done.stdout)
    assert done.returncode == 5, done.stdout + done.stderr
    run, verdict = Path(body["run_dir"]), body["verdict"]
    assert (verdict["failure"], verdict["node"], verdict["rank"]) == ("data", "n2", 1), verdict
    assert "No such file" in verdict["summary"]
    kept = json.loads((run / "outcome.json").read_text())
    assert (kept["failure"], kept["node"], kept["rank"], kept["cause"]) == ("data", "n2", 1, verdict["summary"])
    page = re.sub(r"<[^>]+>", "", (run / "report.html").read_text())
    assert "n2 rank 1" in page and "n1 rank 0" not in page
    asked = [sys.executable, "-m", "clusterft", "doctor", "--run", str(run), "--json"]
    found = json.loads(subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout)
    assert (found["id"], found["node"], found["rank"]) == ("data", "n2", 1), found
    assert found["summary"] == f"rank 1 on n2: {verdict['summary']}"


MEETING = 29564  # where the supervisors meet, by a job that names no port


def test_a_closed_port_of_the_head_is_found_before_anything_is_started(desk: Desk, lab: LightLab) -> None:
    """It cost two minutes, was told as lost nodes, and left them occupied."""
    before = desk.runs()
    lab.node("n1").block_port(MEETING)
    try:
        found = desk.refusal()
    finally:
        lab.node("n1").unblock_ports()
    assert (found["id"], found["nodes"]) == ("net.master-port", ["n1"])
    assert f"n2 → n1 {lab.node('n1').address} port {MEETING}: timed out" in found["evidence"]
    opens = f"on n1: sudo iptables -I INPUT -p tcp -s .* --dport 29500:{MEETING + 63} -j ACCEPT"
    assert re.fullmatch(opens, found["fix"][0])
    assert desk.runs() == before, "nothing was written down"
    assert [line for node in lab.nodes for line in trainers_on(node)] == []


@pytest.mark.long
def test_nodes_that_never_came_to_the_head_are_told_as_that_and_are_free_again(desk: Desk, lab: LightLab) -> None:
    lab.node("n1").block_port(MEETING)
    try:
        done = desk.train("--no-preflight")
    finally:
        lab.node("n1").unblock_ports()
    assert done.returncode == 3, done.stdout + done.stderr
    assert "net.master-port" in done.stdout and f"n2 never came to port {MEETING} of n1" in done.stdout
    assert "within reach of each other again" not in done.stdout and "reboot" not in done.stdout
    assert f"on n1: sudo iptables -I INPUT -p tcp -s {lab.node('n2').address} --dport {MEETING}" in done.stdout
    assert [line for node in lab.nodes for line in trainers_on(node)] == []
    assert desk.train("--json").returncode == 0


@pytest.mark.long  # a member waits for its head as long as the job says, and the head for two minutes
def test_what_could_not_be_told_of_the_end_is_cleared_away_by_status(desk: Desk, lab: LightLab) -> None:
    """The controller is killed meanwhile: then nobody has cleared away, and the remedy that is printed must."""
    lab.node("n1").block_port(MEETING)
    before = desk.runs()
    argv = desk.argv(3, "--no-preflight")
    job = desk.root / "job.yaml"
    job.write_text(job.read_text().replace("patience: 20s", "patience: 300s"))
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        assert any("supervisors started" in line for line in process.stdout)
        process.kill()
        process.communicate()
        (run,) = desk.runs() - before
        outcome = Path(lab.shared, run) / "outcome.json"
        deadline = time.monotonic() + 150
        while not outcome.exists() and time.monotonic() < deadline:
            time.sleep(0.5)
        soon = desk.clusterft("status", "--hosts", str(desk.hosts)).stdout
        assert f"n2: left of {run}, at work: ends by itself within seconds" in soon
        time.sleep(max(0.0, json.loads(outcome.read_text())["ended"] + 16 - time.time()))
        overview = desk.clusterft("status", "--hosts", str(desk.hosts)).stdout
    finally:
        lab.node("n1").unblock_ports()
        desk.clusterft("stop", run, "--now")
    assert f"n2: left of {run}, at work: taken away" in overview
    shown = desk.clusterft("status", run).stdout
    assert "was not started: net.master-port" in shown and "starting" not in shown
    assert trainers_on(lab.node("n2")) == []


def test_nodes_in_use_are_told_of_at_once_and_no_run_is_left(desk: Desk, lab: LightLab) -> None:
    process = training(desk, steps=1_000_000)
    before = desk.runs()
    began = time.monotonic()
    found = desk.refusal()
    seconds = time.monotonic() - began
    assert (found["id"], found["nodes"]) == ("run.occupied", ["n1", "n2"])
    assert seconds < 30 and desk.runs() == before
    (run,) = {step.split()[-1] for step in found["fix"]}
    assert f"in use by run {run}" in found["summary"]
    stopped = desk.clusterft("stop", run)
    assert process.communicate(timeout=60) and process.returncode == 130
    (saved,) = Path(lab.shared, run, "checkpoints").glob("step-*/manifest.json")
    step = int(saved.parent.name.removeprefix("step-"))
    assert f"{run}: stopped at step {step}, as asked\n" in stopped.stdout, stopped.stdout + stopped.stderr
    assert f"  checkpoint   {saved.parent}  (step {step})\n" in stopped.stdout
    assert f"clusterft resume {run}" in stopped.stdout
    again = json.loads(desk.clusterft("stop", run, "--json").stdout)
    assert (again["was_over"], again["told"], again["checkpoint"]["step"]) == ("stopped", [], step)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_without_a_terminal_saves_before_it_stops(desk: Desk, lab: LightLab, number: int) -> None:
    """Two nodes were told at once, and each passed it on: that counted as a second stop, which kills."""
    before = desk.runs()
    process = training(desk, steps=1_000_000)
    process.send_signal(number)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "stopping: asked, after a checkpoint" in out
    (run,) = desk.runs() - before
    assert list(Path(lab.shared, run, "checkpoints").glob("step-*/manifest.json")), out
    assert "without a checkpoint" not in out and f"clusterft resume {run}" in out
