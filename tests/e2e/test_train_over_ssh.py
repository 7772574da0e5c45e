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
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "fs.not-shared: n2 does not see /dev/shm/out/" in done.stderr and "findmnt" in done.stderr
    for node in lab.nodes:
        assert trainers_on(node) == []


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
