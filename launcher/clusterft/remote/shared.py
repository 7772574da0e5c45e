"""OpenSSH's shared connections (ControlMaster) of the user who calls: are there any, and what do they give.

clusterft has none of its own; those of the user's terminal keep the groups that their login began with.
"""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

from clusterft.hosts import Node
from clusterft.remote.login import STANDARD_KEYS
from clusterft.remote.unreachable import Unreachable
from clusterft.remote.way import Ways

_SECONDS = 5.0
_OWN_ONLY = ("-o", "ControlMaster=no", "-o", "BatchMode=yes", "-o", "ConnectTimeout=3")


def groups(ways: Ways, node: Node) -> tuple[str, tuple[str, ...]] | None:
    """(its socket, the groups that commands have over it); None where no connection is shared."""
    try:
        connection = ways.to(node)
    except Unreachable:
        return None
    path = Path(str(connection.ssh_config.get("controlpath", "none"))).expanduser()
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return None
    except OSError:
        return None
    # By the socket alone: where its master is gone, this must not log in anew.
    way = ("ssh", *_OWN_ONLY, "-o", "ProxyCommand=false", "-S", str(path), "-p", str(connection.port))
    try:
        done = subprocess.run(
            [*way, f"{connection.user}@{connection.host}", "id -Gn"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = done.stdout.decode(errors="replace").split()
    return (str(path), tuple(words)) if done.returncode == 0 and words else None


def open_keys(ways: Ways, node: Node) -> tuple[tuple[str, int], ...]:
    """(key file, mode) of those for a node that others may read, which OpenSSH refuses to use."""
    try:
        named = list(ways.to(node).connect_kwargs.get("key_filename", []))
    except Unreachable:
        return ()
    found = []
    standard = (str(Path("~/.ssh").expanduser() / name) for name in STANDARD_KEYS)
    for path in dict.fromkeys(named or standard):
        try:
            told = os.stat(path)
        except OSError:
            continue
        if told.st_uid == os.getuid() and told.st_mode & 0o077:
            found.append((path, stat.S_IMODE(told.st_mode)))
    return tuple(found)
