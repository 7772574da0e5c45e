"""Logging in to nodes: keys, pins, and the files that ssh and clusterft read.

Owns the lab's key, the host keys of the nodes, known_hosts, ssh_config and the
hostfile. Refuses every shortcut around host key checking: the pins come from the
keys that the lab made, never from asking the network.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .proc import environment, run

# Every node's sshd: keys only, and patience for many logins at once. `state` holds its host key.
SSHD_CONFIG = """\
Port 22
HostKey {state}/ssh_host_ed25519_key
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
X11Forwarding no
MaxStartups 100:30:200
LoginGraceTime 30
Subsystem sftp internal-sftp
"""


# Lets the sshd of a node read its new host key, and waits until it presents it, without
# a network that may be cut. To be followed by the path of the public key.
TAKE_NEW_KEY = (
    'kill -HUP "$(cat /run/sshd.pid)"; until ssh-keyscan -T 5 -t ed25519 127.0.0.1 2>/dev/null | '
    "cut -d' ' -f3 | grep -qFf - {public}; do sleep 0.1; done"
)


@dataclass(frozen=True)
class Endpoint:
    """Where a node's sshd answers."""

    name: str
    address: str
    port: int
    slots: int = 1


def make_key(path: Path, comment: str) -> None:
    """A new ed25519 key pair; an old one at that place goes."""
    for old in (path, path.with_name(path.name + ".pub")):
        old.unlink(missing_ok=True)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)])


def public_half(path: Path) -> str:
    """The public line of a key pair made by `make_key`."""
    return path.with_name(path.name + ".pub").read_text().strip()


class Access:
    """The files of one lab that let a person or a test log in."""

    def __init__(self, state: Path) -> None:
        self.key = state / "id_ed25519"
        self.known_hosts = state / "known_hosts"
        self.ssh_config = state / "ssh_config"
        self.hostfile = state / "hostfile"

    def write(self, nodes: Iterable[tuple[Endpoint, str]]) -> None:
        """Write hostfile, ssh config and pins for nodes with these public host keys."""
        pins, hosts = [], []
        for node, public in nodes:
            kind, blob = public.split()[:2]
            at = f"[{{}}]:{node.port}" if node.port != 22 else "{}"
            names = f"{at.format(node.name)},{at.format(node.address)}"
            pins.append(f"{names} {kind} {blob}\n")
            hosts.append(node)
        self.known_hosts.write_text("".join(pins))
        self.ssh_config.write_text("\n".join(self._config(hosts)) + "\n")
        self.hostfile.write_text("".join(self._line(node) for node in hosts))

    def _line(self, node: Endpoint) -> str:
        return (
            f"{node.name} slots={node.slots} addr={node.address} user=root port={node.port} identity={self.key}\n"
        )

    def _config(self, nodes: Iterable[Endpoint]) -> Iterable[str]:
        for node in nodes:
            yield f"Host {node.name}"
            yield f"  HostName {node.address}"
            yield f"  Port {node.port}"
        yield "Host *"
        yield "  User root"
        yield f"  IdentityFile {self.key}"
        yield "  IdentitiesOnly yes"
        yield "  BatchMode yes"
        yield "  StrictHostKeyChecking yes"
        yield "  UpdateHostKeys no"
        yield f"  UserKnownHostsFile {self.known_hosts}"
        yield "  GlobalKnownHostsFile /dev/null"
        yield "  ConnectTimeout 10"
        yield "  LogLevel ERROR"

    def ssh(
        self,
        name: str,
        argv: Sequence[str],
        *,
        timeout: float,
        options: Sequence[str] = (),
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a node through the real ssh; does not judge its exit status."""
        environ = environment()
        # An agent of the person's own would offer keys that no node knows.
        environ.pop("SSH_AUTH_SOCK", None)
        return subprocess.run(
            ["ssh", "-F", str(self.ssh_config), *options, name, "--", shlex.join(argv)],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environ,
            check=False,
        )


def private_file(path: Path, text: str) -> None:
    """Write a file that only its owner may read, before anyone can."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(text)


def greets(address: str, port: int, timeout: float = 1.0) -> bool:
    """Whether an sshd says hello there."""
    try:
        with socket.create_connection((address, port), timeout=timeout) as wire:
            return wire.recv(4) == b"SSH-"
    except OSError:
        return False
