"""A gang on this machine: several supervisors with directories of their own, on loopback, as real processes.

The "launcher" is a small program that starts ranks as torch's agent does: children in sessions of their own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from clusterft_trainer import stream
from clusterft_trainer.assignment import Assignment, Member, Survival
from clusterft_trainer.rank import start_time

# Starts one rank per slot, waits for them, and reports a death in torch's words; ends all when one has failed.
LAUNCHER = """
import os, signal, subprocess, sys, time
slots, machine, script = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
ranks = []
def leave(*_):
    for rank in ranks:
        rank.kill()
    sys.exit(1)
signal.signal(signal.SIGTERM, leave)
for local in range(slots):
    env = {**os.environ, "RANK": str(machine * slots + local), "LOCAL_RANK": str(local)}
    ranks.append(subprocess.Popen([sys.executable, "-m", "clusterft_trainer.rank", script], env=env,
                                  start_new_session=True))
while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
    time.sleep(0.02)
for local, rank in enumerate(ranks):
    if rank.poll():
        print(f"failed (exitcode: {rank.poll()}) local_rank: {local} (pid: {rank.pid})", flush=True)
        for other in ranks:
            if other.poll() is None:
                other.terminate()
        sys.exit(1)
"""


class Node:
    """One node's directory, and the verbs that a launcher would use on it."""

    def __init__(self, root: Path, told: Assignment) -> None:
        self.root, self.told = root, told
        self.name = told.node
        self.dir = root / told.node / "run"
        self.dir.mkdir(parents=True, exist_ok=True)
        (self.dir / "assignment.json").write_text(told.to_json())

    def verb(self, name: str, *rest: str) -> subprocess.CompletedProcess[str]:
        """Call the supervisor's command line as a controller does."""
        argv = [sys.executable, "-m", "clusterft_trainer.supervisor", name, str(self.dir), *rest]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60)

    def start(self) -> int:
        """Start it detached; the pid of the supervisor."""
        done = self.verb("start")
        assert done.returncode == 0, done.stdout + done.stderr
        return int(json.loads(done.stdout)["pid"])

    def run(self, **environment: str) -> subprocess.Popen[str]:
        """Start it in the foreground, as a container does."""
        argv = [sys.executable, "-m", "clusterft_trainer.supervisor", "run", str(self.dir)]
        env = {**os.environ, **environment}
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)

    def supervisor(self) -> int:
        """Its process."""
        return int(json.loads((self.dir / "supervisor.json").read_text())["pid"])

    def lines(self) -> list[stream.Line]:
        """All it has said so far."""
        path = self.dir / "stream.jsonl"
        texts = path.read_text().splitlines() if path.exists() else []
        return [line for line in map(stream.decode, texts) if line is not None]

    def follow(self) -> list[stream.Line]:
        """Everything it said, to the end."""
        texts = self.verb("follow").stdout.splitlines()
        return [line for line in map(stream.decode, texts) if line is not None]

    def all(self, kind: type[Any]) -> list[Any]:
        """The lines of a kind, so far."""
        return [line for line in self.lines() if isinstance(line, kind)]

    def texts(self, rank: int) -> list[str]:
        """What a rank wrote, as passed on so far."""
        return [line.text for line in self.all(stream.Log) if line.rank == rank]

    def logs(self, attempt: int = 0) -> Path:
        """Where an attempt's logs lie."""
        return self.dir / "logs" / f"attempt-{attempt}"

    def rank_pids(self, attempt: int = 0) -> list[int]:
        """The ranks that have noted themselves and live."""
        notes = [json.loads(note.read_text()) for note in sorted(self.logs(attempt).glob("rank*.pid"))]
        return [note["pid"] for note in notes if start_time(note["pid"]) == note["start"]]

    def state(self) -> dict[str, Any]:
        """What it would know again."""
        found: dict[str, Any] = json.loads((self.dir / "state.json").read_text())
        return found


class GangBench:
    """The nodes of one run. Times are short: survival's are given in seconds."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shared = root / "shared" / "run-1"
        self.shared.mkdir(parents=True)
        self.nodes: list[Node] = []

    def lay_out(
        self, script: str, *, nodes: int = 2, slots: int = 1, survival: Survival | None = None, **changes: object
    ) -> list[Node]:
        """Directories of some nodes whose ranks run `script`."""
        (self.root / "launcher.py").write_text(LAUNCHER)
        (self.root / "rank.py").write_text(textwrap.dedent(script))
        gang_port, first_port = free_ports(2)
        members = tuple(Member(f"n{rank}", rank, slots, "127.0.0.1") for rank in range(nodes))
        told = Assignment(
            run="run-1",
            cluster="c",
            node="n0",
            machine_rank=0,
            slots=slots,
            members=members,
            gang_port=gang_port,
            token="a token of this run",
            first_port=first_port,
            ports=8,
            argv=(
                *(sys.executable, str(self.root / "launcher.py")),
                *(str(slots), "@MACHINE_RANK@", str(self.root / "rank.py")),
            ),
            env={"PATH": os.environ["PATH"], "GIVEN": "yes", "PORT": "@MASTER_PORT@"},
            work_dir=str(self.root),
            run_dir=str(self.shared),
            log_dir="",
            kind="script",
            preflight=False,
            grace_seconds=20.0,
            survival=survival or Survival(patience=10.0),
        )
        told = replace(told, **changes)  # type: ignore[arg-type]
        self.nodes = [self.node(told, member) for member in members]
        return self.nodes

    def node(self, told: Assignment, member: Member) -> Node:
        """One node's directory."""
        folder = self.root / member.node / "run"
        own = replace(
            told,
            node=member.node,
            machine_rank=member.machine_rank,
            slots=member.slots,
            log_dir=str(folder / "logs"),
            lock_file=None if told.contained else str(self.root / member.node / "active.lock"),
        )
        return Node(self.root, own)

    def start(self) -> None:
        """All of them, detached."""
        for node in self.nodes:
            node.start()

    def clear(self) -> None:
        """End what a test left running."""
        for node in self.nodes:
            note = node.dir / "supervisor.json"
            if note.exists():
                body = json.loads(note.read_text())
                if start_time(body["pid"]) == body["start"]:
                    os.kill(body["pid"], signal.SIGKILL)
            for folder in node.dir.glob("logs/attempt-*"):
                for pid in node.rank_pids(int(folder.name.removeprefix("attempt-"))):
                    os.kill(pid, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has, with some room behind the last."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def eventually(condition: Callable[[], object], seconds: float = 15.0) -> bool:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False
