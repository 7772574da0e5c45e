"""`clusterft ssh`: a shell on a node, or in a run's container on it, by OpenSSH's own client and our pins.

Becomes that client: what is typed, resized and interrupted is its affair, and its exit code is ours.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from clusterft.apply import settings
from clusterft.errors import UsageError
from clusterft.hosts import Cluster, Node

# The container is found on the node, by its labels: whoever started it, from wherever.
_ENTER = (
    "run=$1 node=$2 flags=$3; shift 3; docker=docker; "
    'docker version >/dev/null 2>&1 || docker="sudo -n docker"; '
    "id=$($docker ps -q --filter label=clusterft.run=$run --filter label=clusterft.node=$node) || exit; "
    '[ -n "$id" ] || { echo "clusterft: $node has no running container of $run; these run there:" >&2; '
    "$docker ps --filter label=clusterft.run --format '  {{.Label \"clusterft.run\"}}' >&2; exit 3; }; "
    'exec $docker exec "$flags" -- "$id" "$@"'
)


def run(
    name: str, command: tuple[str, ...], *, container: str | None, hosts: Path | None, cluster: str | None
) -> int:
    """Never comes back: the process is ssh from here on."""
    from clusterft.remote.interactive import ssh_argv

    if command[:1] == ("--",):
        command = command[1:]
    if len(command) == 1:  # a line for the shell, as with ssh; several words are one command and its arguments
        command = ("sh", "-c", command[0])
    meant = settings.find(hosts, cluster)
    node = _node(meant, name)
    where = settings.cluster_places(meant.name)
    tty = sys.stdin.isatty() and sys.stdout.isatty()
    if container:
        inside = command or ("sh", "-c", "command -v bash >/dev/null && exec bash -l || exec sh -l")
        command = ("sh", "-c", _ENTER, "sh", _plain(container), name, "-it" if tty else "-i", *inside)
    if node.transport == "local":
        argv = command or (os.environ.get("SHELL") or "sh",)
    else:
        argv = ssh_argv(node, where.known_hosts, where.key, tty=tty, command=command)
    try:
        os.execvp(argv[0], argv)
    except FileNotFoundError:
        raise UsageError(f"{argv[0]} is not on this machine", remedy="install OpenSSH's client") from None


def _node(cluster: Cluster, name: str) -> Node:
    for node in cluster.nodes:
        if node.name == name:
            return node
    listed = ", ".join(node.name for node in cluster.nodes)
    raise UsageError(
        f'cluster {cluster.name} has no node "{name}"', where=str(cluster.path), remedy=f"its nodes: {listed}"
    )


def _plain(run: str) -> str:
    """A run id, which stands in a filter of docker's."""
    if not all(char.isalnum() or char in "._-" for char in run):
        raise UsageError(f'"{run}" is not a run id')
    return run
