"""`clusterft doctor --json` against a lab, as a person types it, and what to ask of its answer.

    answer = doctor(lab, "--quick")
    one = finding(answer, "os.disk-full", "n2")
    assert "rm" in one["fix"][0]
    clean(answer)

The answer is the document of `--json` with `code` (exit), `stderr` and `took` (wall seconds) added. Every call has
a home and a $CLUSTERFT_HOME of its own that are gone afterwards, unless a Desk is kept. `Fault` is one thing that
can befall a node: what does it, what mends it, and what doctor must say in between.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.base import Lab, LabNode

Answer = dict[str, Any]
AnyLab = Lab[Any]

# Training without containers and cards, as on light nodes; {shared} is the lab's shared directory.
JOB = """\
name: tiny
shared: {shared}
runtime: {runtime}
resources: {{device: cpu}}
train:
  model: builtin:tiny
  output: {{name: tiny}}
  data: {{sources: [{{builtin: shapes}}]}}
  learn: {{unet: {{rate: 1e-3}}}}
  steps: 3
"""


# The same in containers of a small image that has a python and no torch, which a script need not have.
SCRIPT_JOB = """\
name: tiny
shared: {shared}
resources: {{device: cpu}}
image: {{dockerfile: image/Dockerfile}}
launcher: torchrun
script: {{path: code/hello.py}}
"""


def beside(root: Path, dockerfile: str) -> None:
    """What SCRIPT_JOB names, in the folder of the job."""
    for name, text in (("image/Dockerfile", dockerfile), ("code/hello.py", "print('hello')\n")):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)


class Desk:
    """A person's home with a hostfile, a job and the lab's host keys among known_hosts, for many calls.

    `hosts` is the hostfile's text, else the lab's own; with `job=""`, doctor is told of no job and no shared dir.
    """

    def __init__(
        self,
        lab: AnyLab,
        root: Path,
        *,
        hosts: str | None = None,
        job: str | None = None,
        runtime: str = "process",
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.lab, self.root = lab, root
        self.hosts = root / "rack"
        self.hosts.write_text(lab.hostfile.read_text() if hosts is None else hosts)
        self.job = root / "job.yaml"
        self.job.write_text(JOB.format(shared=lab.shared, runtime=runtime) if job is None else job)
        self.known_hosts = root / ".ssh" / "known_hosts"
        self.known_hosts.parent.mkdir(mode=0o700, exist_ok=True)
        self.known_hosts.write_text(lab.known_hosts.read_text())
        self.env = {**os.environ, "HOME": str(root), "CLUSTERFT_HOME": str(root / ".clusterft")}
        self.env.pop("SSH_AUTH_SOCK", None)

    def run(self, *words: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Any command of clusterft."""
        return subprocess.run(
            [sys.executable, "-m", "clusterft", *words],
            capture_output=True,
            text=True,
            timeout=seconds,
            env=self.env,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
        )

    def doctor(self, *options: str, seconds: float = 120) -> Answer:
        """`clusterft doctor --json` with these options."""
        job = ("--job", str(self.job)) if self.job.read_text() else ()
        began = time.monotonic()
        done = self.run("doctor", "--hosts", str(self.hosts), *job, "--json", *options, seconds=seconds)
        took = time.monotonic() - began
        assert '"checks"' in done.stdout, f"exit {done.returncode}: {done.stdout}{done.stderr}"
        answer: Answer = json.loads(done.stdout)
        return {**answer, "code": done.returncode, "stderr": done.stderr, "took": took}


def doctor(
    lab: AnyLab,
    *options: str,
    hosts: str | None = None,
    job: str | None = None,
    runtime: str = "process",
    seconds: float = 120,
) -> Answer:
    """One call from a fresh home."""
    root = Path(tempfile.mkdtemp(prefix="clusterft-doctoring-"))
    try:
        return Desk(lab, root, hosts=hosts, job=job, runtime=runtime).doctor(*options, seconds=seconds)
    finally:
        shutil.rmtree(root)


def above_info(answer: Answer) -> list[dict[str, Any]]:
    """What blocks or warns."""
    return [one for one in answer["checks"] if one["status"] in ("fail", "warn")]


def finding(answer: Answer, identity: str, *nodes: str) -> dict[str, Any]:
    """The one finding above info of this id, on just these nodes if they are given."""
    found = [one for one in above_info(answer) if one["id"] == identity]
    if nodes:
        found = [one for one in found if set(one["nodes"]) == set(nodes)]
    said = [(one["id"], one["nodes"], one["summary"], one["evidence"]) for one in above_info(answer)]
    assert len(found) == 1, f"{identity} on {nodes or 'any node'}: {len(found)} findings; doctor said {said}"
    return found[0]


def clean(answer: Answer) -> None:
    """Nothing above info was found, and the exit code says so."""
    said = [
        (one["id"], one["status"], one["nodes"], one["summary"], one["evidence"]) for one in above_info(answer)
    ]
    assert not said and answer["verdict"] == "ok" and answer["code"] == 0, (
        f"exit {answer['code']}, verdict {answer['verdict']}: {said}"
    )


def statuses(answer: Answer, identity: str) -> dict[str, str]:
    """Node -> what was said of an id: ok, warn, fail, unknown or skipped."""
    return {node: one["status"] for one in answer["checks"] if one["id"] == identity for node in one["nodes"]}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that befalls one node of a lab, and what doctor must make of it."""

    name: str
    id: str  # the finding that must be there
    inject: Callable[[AnyLab, Desk], object]
    mend: Callable[[AnyLab, Desk], object]  # what the fix line says, done
    fix: tuple[str, ...]  # words that the fix must hold
    nodes: tuple[str, ...] = ("n2",)
    evidence: tuple[str, ...] = ()  # words that the evidence or the summary must hold
    status: str = "fail"
    options: tuple[str, ...] = ("--quick",)
    also: tuple[str, ...] = ()  # ids that may be told as well, as they come of the same fault
    user: str = "root"
    runtime: str = "process"

    def __str__(self) -> str:
        return self.name


def told(fault: Fault, answer: Answer) -> None:
    """Doctor named this fault's id, node and fix, and nothing that it did not do."""
    one = finding(answer, fault.id, *fault.nodes)
    assert one["status"] == fault.status, one
    steps = "\n".join(one["fix"])
    assert all(words in steps for words in fault.fix), (fault.fix, one["fix"])
    shown = one["summary"] + "\n" + one["evidence"] + "\n" + one["cause"]
    assert all(words in shown for words in fault.evidence), (fault.evidence, shown)
    others = {found["id"] for found in above_info(answer)} - {fault.id, *fault.also}
    assert not others, [
        (found["id"], found["nodes"], found["summary"], found["evidence"]) for found in above_info(answer)
    ]
    assert answer["code"] == (3 if answer["verdict"] == "fail" else 0), answer["code"]


def suffers(fault: Fault, lab: AnyLab, root: Path) -> Answer:
    """Inject, examine, mend, examine again: the answer in between. It is mended whatever happens."""
    desk = Desk(lab, root, hosts=lab.access.hostfile_for(fault.user).read_text(), runtime=fault.runtime)
    fault.inject(lab, desk)
    try:
        answer = desk.doctor(*fault.options)
        told(fault, answer)
    finally:
        fault.mend(lab, desk)
    clean(desk.doctor(*fault.options))
    return answer


def on(lab: AnyLab, node: str, script: str, *, user: str = "root", timeout: float = 20) -> str:
    """What a shell script prints on a node; it must succeed."""
    options = [] if user == "root" else ["-l", user]
    done = lab.access.ssh(node, ["sh", "-ec", script], timeout=timeout, options=options)
    assert done.returncode == 0, f"{node}: {script}: exit {done.returncode}: {done.stderr}"
    return done.stdout


def node_of(lab: AnyLab, name: str) -> LabNode:
    """The node, for mypy's sake: a lab of any weight has them."""
    node: LabNode = lab.node(name)
    return node
