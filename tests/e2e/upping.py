"""A controller of a test's own that types `clusterft up` and the verbs around it, as a person does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lab import FullLab

# Little more than what the last layers ask for; the engine here builds it once.
DOCKERFILE = """\
FROM debian:bookworm-slim
RUN apt-get -q update && apt-get -q install -y --no-install-recommends python3 openssh-server openssh-client \\
 && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*
"""
JOB = """\
name: tiny
shared: /shared
runtime: process
resources: {device: cpu}
image: {dockerfile: image/Dockerfile}
train:
  model: builtin:tiny
  output: {name: tiny}
  data: {sources: [{builtin: shapes}]}
  learn: {unet: {rate: 1e-3}}
  steps: 3
"""


class Desk:
    """A home, a hostfile and a job."""

    def __init__(self, root: Path, hostfile: str) -> None:
        root.mkdir(exist_ok=True)
        self.root = root
        self.hosts = root / "rack"
        self.hosts.write_text(hostfile)
        (root / "image").mkdir(parents=True)
        (root / "image" / "Dockerfile").write_text(DOCKERFILE)
        (root / "job.yaml").write_text(JOB)
        self.env = {**os.environ, "HOME": str(root), "CLUSTERFT_HOME": str(root / ".clusterft")}
        self.env.pop("SSH_AUTH_SOCK", None)

    def run(self, *words: str, seconds: float = 240, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """One command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "clusterft", *words],
            capture_output=True,
            text=True,
            timeout=seconds,
            env=self.env,
            cwd=self.root,
            input=stdin,
        )

    def said(self, *words: str, code: int = 0) -> dict[str, Any]:
        """The one JSON document of a command that ends with this code."""
        done = self.run(*words, "--json")
        assert done.returncode == code, done.stdout + done.stderr
        body: dict[str, Any] = json.loads(done.stdout)
        return body

    def up(self, *words: str, code: int = 0) -> dict[str, Any]:
        """`up` for the first time: the lab's machines are trusted as they are."""
        hosts = ("--hosts", str(self.hosts), "--job", "job.yaml")
        return self.said("up", *hosts, "--accept-new-host-keys", *words, code=code)


def desk(lab: FullLab, root: Path, user: str = "root") -> Desk:
    """A desk for the nodes of a lab."""
    return Desk(root, lab.access.hostfile_for(user).read_text())


def changes(body: dict[str, Any]) -> dict[str, list[str]]:
    """What a command changed, on nodes and on the controller; only where it changed something."""
    found = {node["node"]: node["changes"] for node in body["nodes"]}
    found["controller"] = body["controller_changes"]
    return {place: what for place, what in found.items() if what}


def blocking(body: dict[str, Any]) -> dict[str, list[str]]:
    """Check id -> nodes, of what failed."""
    return {check["id"]: check["nodes"] for check in body["checks"] if check["status"] == "fail"}
