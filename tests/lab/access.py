"""Logging in to nodes: keys, pins, and the files that ssh and clusterft read.

Owns the lab's keys and password, the host keys of the nodes, known_hosts, ssh_config
and the hostfile. Refuses every shortcut around host key checking: the pins come from the
keys that the lab made, never from asking the network.
"""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .proc import environment, run


@dataclass(frozen=True)
class Endpoint:
    """Where a node's sshd answers."""

    name: str
    address: str
    port: int
    slots: int = 1
    jump: str = ""


def make_key(path: Path, comment: str) -> None:
    """A new ed25519 key pair; an old one at that place goes."""
    for old in (path, path.with_name(path.name + ".pub")):
        old.unlink(missing_ok=True)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)])


# Says the secret of the file that LAB_SECRET names to an ssh that asks for one.
_ASKPASS = '#!/bin/sh\nexec cat "$LAB_SECRET"\n'


def public_half(path: Path) -> str:
    """The public line of a key pair made by `make_key`."""
    return path.with_name(path.name + ".pub").read_text().strip()


class Access:
    """The files of one lab that let a person or a test log in."""

    def __init__(self, state: Path) -> None:
        self.key = state / "id_ed25519"
        self.encrypted_key = state / "id_encrypted"
        self.passphrase_file = state / "passphrase"
        self.password_file = state / "password"
        self.known_hosts = state / "known_hosts"
        self.ssh_config = state / "ssh_config"
        # The cluster is called like its hostfile, and keeps its pins under that name: one for each lab.
        self.hostfile = state / f"lab-{state.name}"
        self._askpass = state / "askpass"

    def make_secrets(self, comment: str) -> None:
        """The two keys that nodes know, one of them encrypted, and the typist's password."""
        make_key(self.key, comment)
        for path in (self.passphrase_file, self.password_file):
            private_file(path, secrets.token_urlsafe(12) + "\n")
        self._askpass.write_text(_ASKPASS)
        self._askpass.chmod(0o700)
        # One round of the slow hash is enough for a key that dies with the lab.
        words = ["-t", "ed25519", "-a", "1", "-C", f"{comment}-encrypted", "-f", str(self.encrypted_key)]
        run(["ssh-keygen", "-q", *words], env=self._telling(self.passphrase_file))

    @property
    def passphrase(self) -> str:
        """What opens `encrypted_key`."""
        return self.passphrase_file.read_text().strip()

    @property
    def password(self) -> str:
        """What the user `typist` types."""
        return self.password_file.read_text().strip()

    @property
    def authorized(self) -> str:
        """The authorized_keys of every user but `typist`."""
        return f"{public_half(self.key)}\n{public_half(self.encrypted_key)}\n"

    def hostfile_for(self, user: str) -> Path:
        """The hostfile with another user than root."""
        other = self.hostfile.with_name(f"{self.hostfile.name}-{user}")
        other.write_text(self.hostfile.read_text().replace(" user=root ", f" user={user} "))
        return other

    def _telling(self, secret: Path) -> dict[str, str]:
        return {"SSH_ASKPASS": str(self._askpass), "SSH_ASKPASS_REQUIRE": "force", "LAB_SECRET": str(secret)}

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
        words = f"{node.name} slots={node.slots} addr={node.address} user=root port={node.port}"
        return f"{words} identity={self.key}" + (f" jump={node.jump}" if node.jump else "") + "\n"

    def _config(self, nodes: Iterable[Endpoint]) -> Iterable[str]:
        for node in nodes:
            yield f"Host {node.name}"
            yield f"  HostName {node.address}"
            yield f"  Port {node.port}"
            if node.jump:
                yield f"  ProxyJump {node.jump}"
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
        secret: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a node through the real ssh; does not judge its exit status.

        `secret` is the file that holds what ssh will ask for.
        """
        environ = environment(self._telling(secret) if secret else None)
        # The lab's ssh_config lets nothing be asked; the first setting that ssh meets counts.
        asking = ["-o", "BatchMode=no"] if secret else []
        # An agent of the person's own would offer keys that no node knows.
        environ.pop("SSH_AUTH_SOCK", None)
        return subprocess.run(
            ["ssh", "-F", str(self.ssh_config), *asking, *options, name, "--", shlex.join(argv)],
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
