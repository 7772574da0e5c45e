"""The process runtime: a detached supervisor on the node itself, no Docker engine needed.

Takes the same plan as a container would; the run's directory on the node stands for /run/clusterft.
"""

from __future__ import annotations

import json

from clusterft.errors import ClusterftError
from clusterft.plan import NodePlan
from clusterft.remote import Lines, Remote
from clusterft.remote.files import NewFile, create

_START_SECONDS = 30.0


class CannotStart(ClusterftError):
    """A node's part could not be started."""

    exit_code = 3
    kind = "cannot-start"


def put(node: NodePlan, remote: Remote, secrets: dict[str, str]) -> None:
    """Write the run's files on the node; secrets join them here, and are nowhere before."""
    files = [NewFile(str(f.path.relative_to(node.directory)), f.text, f.mode) for f in node.files]
    if secrets:
        files.append(NewFile("secrets.json", json.dumps(secrets), 0o600))
    create(remote, node.directory, files)


def start(node: NodePlan, remote: Remote) -> None:
    """Start the supervisor; CannotStart names the run that is in the way, or what the node said."""
    done = remote.run(node.supervisor("start"), seconds=_START_SECONDS)
    said = answer(done.out)
    if "pid" in said:
        return
    if "busy" in said:
        raise CannotStart(
            f"{node.node.name} is in use by run {said['busy']}",
            remedy=f"wait for it, or end it: clusterft stop {said['busy']}",
        )
    words = str(said.get("error") or done.err).strip()[-600:]
    if "No module named" in words or done.code in (126, 127):
        raise CannotStart(
            f"{node.node.name} has no clusterft[trainer] at {node.python}: {words.rpartition(chr(10))[2]}",
            remedy="install it there, or set python: in job.yaml to an interpreter that has it",
        )
    raise CannotStart(f"{node.node.name} could not start its supervisor: {words}")


def discard(node: NodePlan, remote: Remote) -> None:
    """After a start that failed: stop what may still come up, and leave no secrets behind."""
    stop(node, remote)
    stop(node, remote)
    if node.assignment.secrets_file:
        remote.run(("rm", "-f", node.assignment.secrets_file), seconds=_START_SECONDS)


def follow(node: NodePlan, remote: Remote) -> Lines:
    """What the supervisor says, from its first line."""
    return remote.lines(node.supervisor("follow"))


def stop(node: NodePlan, remote: Remote) -> None:
    """Ask the supervisor to stop; the second time it no longer waits for the ranks."""
    remote.run(node.supervisor("stop"), seconds=_START_SECONDS)


def answer(out: str) -> dict[str, object]:
    """The JSON in the last line of what a supervisor verb printed; a login shell may have printed before it."""
    lines = out.strip().splitlines()
    try:
        body = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
