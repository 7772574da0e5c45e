"""The containers of a plan started as a person with `docker run` would: nothing of clusterft above the launcher.

Takes files, environment, mounts and commands from `train --dry-run --json`, and lays the files out beforehand.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from faults.jobs import NOTES  # noqa: E402 - the lab lies in tests/
from faults.rig import BEHIND, UID, USER, Rig  # noqa: E402

_SECONDS = 300


@dataclass
class ByHand:
    """One run by hand: a container on each node."""

    rig: Rig
    plan: dict[str, Any]
    containers: dict[str, str]  # node -> id
    began: float = 0.0

    def wait(self) -> None:
        """To their end; all must have ended well."""
        for node, container in self.containers.items():
            code = self.rig.sh(node, f"docker wait {container}", _SECONDS)
            if code != "0":
                raise SystemExit(f"by hand, {node} ended with {code}:\n" + _logs(self.rig, node, container))

    def remove(self) -> None:
        """Nothing of it stays."""
        for node, container in self.containers.items():
            self.rig.sh(node, f"docker rm -f {container} >/dev/null; rm -rf {NOTES}/hand", 60)


def dry_run(rig: Rig, **changes: Any) -> dict[str, Any]:
    """The plan of a job."""
    rig.write(**changes)
    plan: dict[str, Any] = rig.desk.said("train", "job.yaml", "--dry-run")["plan"]
    return plan


def start(rig: Rig, plan: dict[str, Any], *, bare: bool = False) -> ByHand:
    """Lay out the files, then start all containers at once. `bare`: each rank by itself, without a launcher."""
    commands = {node["node"]: _prepared(rig, plan, node, bare) for node in plan["nodes"]}
    began = time.time()
    with ThreadPoolExecutor(len(commands)) as pool:
        asked = {name: pool.submit(_typed, rig, name, line) for name, line in commands.items()}
        containers = {name: one.result() for name, one in asked.items()}
    return ByHand(rig, plan, containers, began)


def _prepared(rig: Rig, plan: dict[str, Any], node: dict[str, Any], bare: bool) -> str:
    """Put one node's files there; the line to type."""
    name, request = node["node"], node["container"]["request"]
    here = f"{NOTES}/hand"
    rig.sh(name, f"rm -rf {here}; install -d -o {UID} -g {UID} {here} {here}/logs")
    for path, text in node["files"].items():
        at = here + path.removeprefix(node["directory"])
        rig.sh(name, f"mkdir -p $(dirname {at}); printf %s {shlex.quote(text)} >{at}")
    rig.sh(name, f"chown -R {UID}:{UID} {here}; install -d -o {UID} -g {UID} {BEHIND}/{plan['run']}")
    env = {**node["env"], "CLUSTERFT_LOG_DIR": f"{node['directory']}/logs", "CLUSTERFT_ATTEMPT": "0"}
    argv = node["argv"]
    if bare:
        rank = str(node["machine_rank"])
        env |= {"RANK": rank, "LOCAL_RANK": "0", "WORLD_SIZE": str(plan["world_size"])}
        words = ["-m", "clusterft_trainer", *argv[argv.index("clusterft_trainer") + 1 :]]
        line = f"date +%s.%N >{NOTES}/hand/began; exec " + shlex.join([node["python"], *words])
        argv = ["sh", "-c", line]
    given = [f"--env={key}={value}" for key, value in env.items()]
    given += [f"--env={line}" for line in request["Env"]]
    binds = [
        f"--volume={one['Source']}:{one['Target']}" + ":ro" * bool(one.get("ReadOnly"))
        for one in request["HostConfig"]["Mounts"]
    ]
    fixed = ["--detach", "--init", "--network=host", "--ipc=host", f"--user={request['User']}"]
    place = [f"--volume={here}:{node['directory']}", f"--workdir={node['directory']}"]
    return shlex.join(["docker", "run", *fixed, *binds, *place, *given, request["Image"], *argv])


def _typed(rig: Rig, node: str, line: str) -> str:
    """As a person types it, over SSH."""
    done = rig.lab.access.ssh(node, ["sh", "-c", line], timeout=60, options=["-l", USER])
    if done.returncode != 0:
        raise SystemExit(f"by hand, on {node}: {done.stderr}")
    return done.stdout.strip()


def began(rig: Rig, nodes: list[str]) -> float:
    """When the last of the bare ranks was started, on this machine's clock."""
    return max(float(rig.sh(node, f"cat {NOTES}/hand/began")) for node in nodes)


def first_step(rig: Rig, run: str, attempt: int = 0) -> float:
    """When rank 0 had its first step of an attempt behind it."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        found = [note.at for note in rig.notes(run) if note.rank == 0 and note.attempt == attempt]
        if found:
            return min(found)
        time.sleep(0.5)
    raise SystemExit(f"no step of attempt {attempt} of {run} after {_SECONDS} s")


def _logs(rig: Rig, node: str, container: str) -> str:
    logs = rig.sh(node, f"docker logs --tail 40 {container} 2>&1; tail -n 40 {NOTES}/hand/logs/*.log")
    return json.dumps(logs.splitlines()[-60:], indent=1)
