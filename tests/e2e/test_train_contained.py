"""`clusterft train` in containers, as a user runs it: real sshd, real engines, real training, real deaths.

Two nodes and a spare. The image is small; interpreter and code are this checkout's own, which the nodes show to
their containers. The long list of what may befall a run is in tests/faults.
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from upping import Desk

from faults.jobs import DOCKERFILE, MOUNTS, ROOT
from lab import FullLab

pytestmark = [pytest.mark.lab_full, pytest.mark.trainer]

SCRIPT = """\
import os, sys, time
import torch, torch.distributed as dist
dist.init_process_group("gloo")
one = torch.ones(1)
dist.all_reduce(one)
print("sum", int(one), "args", sys.argv[1:], "cwd", os.path.basename(os.getcwd()), flush=True)
"""


@dataclass
class Rack:
    """The lab and the desk at which its owner types."""

    lab: FullLab
    desk: Desk

    def job(self, **changes: Any) -> str:
        """Write a job; changes go one level deep."""
        body: dict[str, Any] = {
            "name": "tiny",
            "shared": self.lab.shared,
            "python": str(ROOT / ".venv" / "bin" / "python"),
            "resources": {"device": "cpu", "threads": 1},
            "image": {"dockerfile": "image/Dockerfile"},
            "mounts": [f"{path}:ro" for path in MOUNTS],
            "patience": "20s",
            "train": {
                "model": "builtin:tiny",
                "output": {"name": "tiny"},
                "data": {"sources": [{"builtin": "shapes", "images": 16}], "resolution": 64},
                "learn": {"unet": {"rate": 1e-3}},
                "precision": "fp32",
                "checkpoints": {"every_steps": 10},
                "steps": 3,
            },
        }
        for key, value in changes.items():
            body[key] = {**(body.get(key) or {}), **value} if isinstance(value, dict) else value
        (self.desk.root / "job.yaml").write_text(
            yaml.safe_dump({key: value for key, value in body.items() if value is not None})
        )
        return "job.yaml"

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A command in the background, as in a terminal of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "clusterft", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.desk.env,
            cwd=self.desk.root,
            start_new_session=True,
        )

    def training(
        self, *words: str, until: str = "  checkpoint ", **changes: Any
    ) -> tuple[subprocess.Popen[str], str]:
        """A run of many steps that has said this; its id."""
        process = self.start("train", self.job(**{"train": {"steps": 100_000}, **changes}), *words)
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith(until):
                return process, self.newest()
        raise AssertionError("".join(said))

    def newest(self) -> str:
        """The id of the newest run."""
        return self.inside("n1", f"cd {self.lab.shared}; ls -td */run.json | head -1").removesuffix("/run.json")

    def inside(self, node: str, script: str) -> str:
        """What a shell on a node prints."""
        return self.lab.node(node).inside(["sh", "-ec", script]).strip()

    def shared(self, run: str, name: str) -> Any:
        """A JSON document of a run."""
        return json.loads(self.inside("n1", f"cat {self.lab.shared}/{run}/{name}"))

    def containers(self) -> dict[str, list[str]]:
        """All of ours, whatever their state; nodes without one are left out."""
        listed = {node.name: self.inside(node.name, "docker ps -aq").split() for node in self.lab.nodes}
        return {name: found for name, found in listed.items() if found}

    def rank(self, node: str, rank: int, attempt: int = 0) -> None:
        """SIGKILL to a rank, inside its container, by the pid in its own note."""
        (container,) = self.containers()[node]
        note = self.inside(
            node, f"docker exec {container} cat /run/clusterft/logs/attempt-{attempt}/rank{rank}.pid"
        )
        self.inside(node, f"docker exec {container} kill -9 {json.loads(note)['pid']}")


@pytest.fixture(scope="module")
def module_rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    """Brought up once."""
    with FullLab.up(3, mounts=MOUNTS) as lab:
        hosts = lab.access.hostfile_for("worker").read_text().replace("n3 slots=1", "n3 slots=1 spare=true")
        desk = Desk(tmp_path_factory.mktemp("rack") / "desk", hosts)
        (desk.root / "image" / "Dockerfile").write_text(DOCKERFILE)
        made = Rack(lab, desk)
        made.job()
        assert lab.nodes[0].run(["chmod", "1777", lab.shared]).returncode == 0
        desk.up()
        yield made


@pytest.fixture
def rack(module_rack: Rack) -> Iterator[Rack]:
    """Whatever a test has left is gone before the next one."""
    yield module_rack
    for node in module_rack.containers():
        module_rack.inside(node, "docker ps -aq | xargs docker rm -f")


def until(met: Callable[[], Any], seconds: float, what: str) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.3)


def ended(process: subprocess.Popen[str], code: int, seconds: float = 240) -> str:
    """All that a command has said, once it has ended as it should."""
    out = process.communicate(timeout=seconds)[0]
    assert process.returncode == code, out
    return out


def test_a_job_runs_in_containers_and_leaves_none(rack: Rack) -> None:
    body = rack.desk.said("train", rack.job(secrets=["MY_TOKEN"], env={"MY_PLAIN": "x"}), code=2)
    assert "MY_TOKEN" in json.dumps(body), "a secret without a value is refused before anything else"
    rack.desk.env["MY_TOKEN"] = "s3cret-value"
    body = rack.desk.said("train", "job.yaml")
    assert (body["outcome"], body["step"], len(body["attempts"])) == ("ok", 3, 1)
    assert rack.containers() == {}
    record = rack.shared(body["run"], "run.json")
    assert (record["schema"], record["state"], record["preflight"]) == (2, "ok", True)
    assert [(part["node"], part["machine_rank"], part["runtime"]) for part in record["parts"]] == [
        ("n1", 0, "docker"),
        ("n2", 1, "docker"),
    ]
    assert len({node["container"]["request"]["Image"] for node in record["plan"]["nodes"]}) == 1
    assert rack.shared(body["run"], "outcome.json")["end"] == "ok"
    leaks = f"grep -rl s3cret-value {rack.lab.shared} /home/worker /var/lib/docker/containers || :"
    assert [rack.inside(node.name, leaks) for node in rack.lab.nodes] == [""] * 3


def test_a_script_of_ones_own_is_shipped_and_run(rack: Rack) -> None:
    folder = rack.desk.root / "program"
    (folder / "inner").mkdir(parents=True, exist_ok=True)
    (folder / "go.py").write_text(SCRIPT)
    script = {"path": "program/go.py", "args": ["--lr", "1 2", "@WORLD@"], "workdir": "inner"}
    job = rack.job(train=None, script=script, launcher="torchrun", name="own")
    refused = rack.desk.run("train", job)
    assert refused.returncode == 2 and "inner" in refused.stderr, "an empty folder does not come along"
    (folder / "inner" / "settings.txt").write_text("x\n")
    done = rack.desk.run("train", job)
    assert done.returncode == 0, done.stdout + done.stderr
    run = rack.newest()
    for rank, node in enumerate(("n1", "n2")):
        log = rack.inside("n1", f"cat {rack.lab.shared}/{run}/logs/attempt-0/{node}/rank{rank}.log")
        assert "sum 2 args ['--lr', '1 2', '2'] cwd inner" in log
    assert "code shipped (2 files" in done.stdout, done.stdout
    again = rack.desk.run("train", "job.yaml")
    assert again.returncode == 0 and "code shipped (0 files" in again.stdout, "what is there does not travel again"
    assert rack.containers() == {}


def test_another_image_under_the_same_name_is_refused_with_its_node(rack: Rack) -> None:
    tag = rack.desk.said("train", rack.job(), "--dry-run")["plan"]["nodes"][0]["container"]["request"]["Image"]
    rack.inside(
        "n2", f"docker tag {tag} kept; c=$(docker create {tag}); docker commit -c 'ENV A=b' $c {tag}; docker rm $c"
    )
    try:
        body = rack.desk.said("train", "job.yaml", code=3)
        (found,) = [check for check in body["checks"] if check["status"] == "fail"]
        assert (found["id"], found["nodes"]) == ("dk.image-drift", ["n2"]) and "clusterft up" in found["fix"][0]
        rack.inside("n2", f"docker rmi {tag}")
        body = rack.desk.said("train", "job.yaml", code=3)
        (found,) = [check for check in body["checks"] if check["status"] == "fail"]
        assert (found["id"], found["nodes"]) == ("dk.image-missing", ["n2"])
    finally:
        rack.inside("n2", f"docker tag kept {tag}; docker rmi kept")
    assert rack.containers() == {}


def test_a_start_that_one_node_cannot_make_leaves_nothing_on_the_others(rack: Rack) -> None:
    rack.inside("n1", "mkdir -p /data/there")
    done = rack.desk.run("train", rack.job(mounts=[*(f"{path}:ro" for path in MOUNTS), "/data/there"]))
    assert done.returncode == 3 and "/data/there" in done.stderr and "n2" in done.stderr, done.stderr
    assert rack.containers() == {}
    assert rack.shared(rack.newest(), "run.json")["state"] == "failed"


def test_a_second_run_is_told_whose_the_nodes_are(rack: Rack) -> None:
    process, run = rack.training(until="step ")
    done = rack.desk.run("train", "job.yaml")
    assert done.returncode == 3 and f"run {run}" in done.stderr and "clusterft stop" in done.stderr, done.stderr
    alive = rack.desk.run("resume", run)
    assert alive.returncode == 3 and "still running" in alive.stderr and f"attach {run}" in alive.stderr
    stopped = rack.desk.said("stop", run, "--now")
    assert (sorted(stopped["told"]), stopped["outcome"]) == (["n1", "n2"], "stopped")
    assert "stopped at step" in ended(process, 130)
    assert rack.containers() == {}


@pytest.mark.long
def test_a_watcher_from_whom_the_run_was_cleared_away_tells_what_it_came_to(rack: Rack) -> None:
    process, run = rack.training(until="step ")
    os.kill(process.pid, signal.SIGSTOP)  # it hears nothing of the end
    try:
        assert rack.desk.said("stop", run, "--now")["outcome"] == "stopped"
        assert rack.containers() == {}
    finally:
        os.kill(process.pid, signal.SIGCONT)
    out = ended(process, 130)
    assert "stopped at step" in out and "lost" not in out, out
    assert rack.containers() == {}, "it has not begun anew"


@pytest.mark.long
def test_a_rank_and_a_container_die_and_the_run_goes_on(rack: Rack) -> None:
    process, run = rack.training(train={"steps": 60})
    rack.rank("n2", 1)
    until(
        lambda: (
            rack.inside("n2", f'grep -c \'"attempt", "attempt": 1\' {rack.lab.shared}/{run}/events/n2.jsonl || :')
            == "1"
        ),
        60,
        "attempt 1",
    )
    rack.inside("n2", "docker kill $(docker ps -q)")  # given up by its engine: the controller brings it back
    out = ended(process, 0)
    assert "rank 1 on n2 was ended by SIGKILL" in out and "continues from step" in out, out
    outcome = rack.shared(run, "outcome.json")
    assert (outcome["end"], outcome["attempts"]) == ("ok", 3), outcome
    assert rack.containers() == {}


@pytest.mark.long
def test_another_controller_attaches_stops_and_resumes(rack: Rack) -> None:
    process, run = rack.training(train={"steps": 60})
    process.kill()
    process.wait()
    other = Desk(rack.desk.root.parent / "other", rack.desk.hosts.read_text())
    (other.root / "job.yaml").write_text((rack.desk.root / "job.yaml").read_text())
    other.up("--no-image")
    attached = subprocess.Popen(
        [sys.executable, "-m", "clusterft", "attach", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=other.env,
    )
    time.sleep(2)
    stopped = other.said("stop", run)
    assert stopped["outcome"] == "stopped", stopped
    body = json.loads(ended(attached, 130))
    assert (body["run"], body["outcome"]) == (run, "stopped")
    assert rack.containers() == {}
    wrong = other.run("resume", run[:-1])
    assert wrong.returncode == 2 and run in wrong.stderr, "the nearest id is offered"
    (other.root / "other.yaml").write_text(
        (other.root / "job.yaml").read_text().replace("rate: 0.001", "rate: 0.002")
    )
    changed = other.run("resume", run, "--job", "other.yaml")
    assert changed.returncode == 2 and "train.learn.unet.rate: 0.001 → 0.002" in changed.stderr, changed.stderr
    done = other.said("resume", run)
    assert (done["outcome"], done["step"]) == ("ok", 60)
    assert done["attempts"][-1]["resumed_from"] == body["step"], "not one step is taken twice"
    assert rack.containers() == {}


@pytest.mark.long
def test_a_spare_takes_the_place_of_a_node_that_stays_dead(rack: Rack) -> None:
    process, run = rack.training(train={"steps": 40})
    rack.lab.node("n2").kill()
    try:
        out = ended(process, 0)
    finally:
        rack.lab.node("n2").start()
    assert "n3 takes the place of n2" in out, out
    assert [part["node"] for part in rack.shared(run, "run.json")["parts"]] == ["n1", "n3"]
    rack.desk.said("status", run)
    assert rack.containers() == {}, "what the dead node still held is gone once it is back"


@pytest.mark.long
def test_the_head_stays_dead_and_another_node_is_it(rack: Rack) -> None:
    process, run = rack.training(train={"steps": 40})
    rack.lab.node("n1").kill()
    try:
        out = ended(process, 0)
    finally:
        rack.lab.node("n1").start()
    assert "planned anew for n2, n3" in out and "continues from step" in out, out
    assert rack.shared(run, "outcome.json")["end"] == "ok"
    rack.desk.said("status", run)
    assert rack.containers() == {}


def test_ctrl_c_on_a_terminal_asks_and_detaching_leaves_the_run_alone(rack: Rack) -> None:
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "clusterft", "train", rack.job(train={"steps": 100_000})],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**rack.desk.env, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
        cwd=rack.desk.root,
        start_new_session=True,
    )
    os.close(terminal)
    seen = bytearray()
    shown(screen, seen, b"loss ")
    process.send_signal(signal.SIGINT)
    shown(screen, seen, b"[d]etach")
    os.write(screen, b"d")
    shown(screen, seen, b"clusterft attach ")
    assert process.wait(30) == 0
    run = rack.newest()
    assert run in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode(errors="replace"))
    assert set(rack.containers()) == {"n1", "n2"}
    assert rack.desk.said("stop", run, "--now")["outcome"] == "stopped"
    assert rack.containers() == {}


def shown(screen: int, seen: bytearray, text: bytes, seconds: float = 60) -> None:
    """Read a terminal until it has shown this."""
    deadline, start = time.monotonic() + seconds, len(seen)
    os.set_blocking(screen, False)
    while text not in seen[max(0, start - len(text)) :]:
        assert time.monotonic() < deadline, seen.decode(errors="replace")[-3000:]
        try:
            seen += os.read(screen, 65536)
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:
            break
