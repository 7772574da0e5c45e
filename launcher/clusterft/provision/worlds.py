"""The container-to-container world of a run: what lies in `/run/clusterft/`, so that `ssh gpu1` is that on gpu1.

Made for each run on the controller, in memory; nothing of a host's own SSH is used, and no key outlives its run.
Decides names, text and modes; refuses to start sshd or to put files anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from clusterft.errors import UsageError
from clusterft.places import CONTAINER
from clusterft.plan.container import Person
from clusterft.provision.member import ip, is_address

SSH = CONTAINER / "ssh"
CONFIG, SSHD_CONFIG, HOSTFILE = SSH / "config", SSH / "sshd_config", CONTAINER / "hostfile"
# For an image's /etc/ssh/ssh_config.d/, so that a plain `ssh gpu1` reads our file. DeepSpeed asks that way.
INCLUDE = f"Include {CONFIG}\n"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class KeyPair(NamedTuple):
    """An ed25519 key: OpenSSH's private file, and the public half as `ssh-ed25519 AAAA...`."""

    private: bytes
    public: str


@dataclass(frozen=True, slots=True)
class Keys:
    """One run's keys; never printed."""

    run: KeyPair = field(repr=False)
    hosts: Mapping[str, KeyPair] = field(repr=False)


class Box(NamedTuple):
    """One container of the gang, as the others find it."""

    node: str
    address: str
    slots: int
    listen: str | None = None  # its own end of that address, where it has one: sshd then answers there alone


@dataclass(frozen=True, slots=True)
class World:
    """All containers of one run. `env` is what their processes are to find in a session, as the image has it."""

    cluster: str
    run: str
    person: Person
    port: int
    boxes: tuple[Box, ...]
    env: Mapping[str, str] = field(default_factory=dict)


class Entry(NamedTuple):
    """One file of a container."""

    path: PurePosixPath
    data: bytes
    mode: int
    uid: int
    gid: int


def fresh_keys(nodes: Iterable[str], run: str) -> Keys:
    """New keys for one run: one to log in with, and a host key for each container."""
    return Keys(_pair(f"clusterft:{run}"), {node: _pair(f"clusterft:{run}:{node}") for node in nodes})


def entries(world: World, keys: Keys) -> dict[str, tuple[Entry, ...]]:
    """The files of each node's container."""
    shared = {
        SSH / "id_ed25519": keys.run.private,
        SSH / "id_ed25519.pub": f"{keys.run.public}\n".encode(),
        SSH / "authorized_keys": f"{keys.run.public}\n".encode(),
        SSH / "known_hosts": known_hosts(world, keys).encode(),
        CONFIG: config(world).encode(),
        HOSTFILE: hostfile(world).encode(),
        CONTAINER / "environment": "".join(f"{name}={value}\n" for name, value in environment().items()).encode(),
    }
    return {
        box.node: tuple(
            Entry(path, data, 0o600, world.person.uid, world.person.gid)
            for path, data in {
                **shared,
                SSH / "host_ed25519": keys.hosts[box.node].private,
                SSH / "host_ed25519.pub": f"{keys.hosts[box.node].public}\n".encode(),
                SSHD_CONFIG: sshd_config(world, box).encode(),
            }.items()
        )
        for box in world.boxes
    }


def environment() -> dict[str, str]:
    """What makes launchers of other people use this world."""
    return {"PDSH_RCMD_TYPE": "ssh", "PDSH_SSH_ARGS_APPEND": f"-F {CONFIG}"}


def hostfile(world: World) -> str:
    """DeepSpeed's."""
    return "".join(f"{box.node} slots={box.slots}\n" for box in world.boxes)


def known_hosts(world: World, keys: Keys) -> str:
    """One key a container, under the node's name."""
    return "".join(f"{box.node} {keys.hosts[box.node].public}\n" for box in world.boxes)


def config(world: World) -> str:
    """ssh's side. Without a User: the same number has the same name in every container, whatever it is called."""
    lines = [f"# The containers of run {world.run}.\n"]
    for box in world.boxes:
        if not is_address(box.address):
            raise UsageError(f"{box.address!r} is not an address", where=box.node)
        names = box.node if box.address == box.node else f"{box.node} {box.address}"
        lines.append(
            f"Host {names}\n    HostName {box.address}\n    HostKeyAlias {box.node}\n    Port {world.port}\n"
            f"    IdentityFile {SSH}/id_ed25519\n"
            f"    UserKnownHostsFile {SSH}/known_hosts\n"
            "    GlobalKnownHostsFile /dev/null\n"
            "    StrictHostKeyChecking yes\n"
            "    UpdateHostKeys no\n"
            "    CheckHostIP no\n"
            "    IdentitiesOnly yes\n"
            "    IdentityAgent none\n"
            "    PreferredAuthentications publickey\n"
            "    BatchMode yes\n"
            "    ForwardAgent no\n"
            "    ControlPath none\n"
            "    ConnectTimeout 10\n"
            "    ServerAliveInterval 15\n"
            "    ServerAliveCountMax 4\n"
            "    LogLevel ERROR\n"
        )
    return "".join(lines)


def sshd_config(world: World, box: Box) -> str:
    """sshd's side, for `sshd -D -e -f` by the run's own user; a session gets the image's environment back.

    Where that user is root, sshd also wants an empty directory /run/sshd.
    """
    lines = [f"# The container of run {world.run} on {box.node}.", f"Port {world.port}"]
    if box.listen:
        if ip(box.listen) is None:
            raise UsageError(f"{box.listen!r} is not an address to listen on", where=box.node)
        lines.append(f"ListenAddress {box.listen}")
    if world.person.uid == 0:  # who is not root can let in nobody but himself
        lines += ["AllowUsers root", "PermitRootLogin prohibit-password"]
    lines += [
        f"HostKey {SSH}/host_ed25519",
        f"AuthorizedKeysFile {SSH}/authorized_keys",
        "AuthenticationMethods publickey",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "UsePAM no",
        "UseDNS no",
        "PidFile none",
        "PrintMotd no",
        "AllowAgentForwarding no",
        "AllowTcpForwarding no",
        "X11Forwarding no",
        "PermitTunnel no",
        "PermitUserEnvironment no",
        "MaxStartups 128:30:256",
        "MaxSessions 64",
        "ClientAliveInterval 15",
        "ClientAliveCountMax 4",
        "LogLevel ERROR",
        "Subsystem sftp internal-sftp",
    ]
    if world.env:
        # All on one line: sshd reads the first SetEnv and no other.
        lines.append("SetEnv " + " ".join(_assignment(name, value) for name, value in sorted(world.env.items())))
    return "\n".join(lines) + "\n"


def _assignment(name: str, value: str) -> str:
    r"""NAME=value as one word of sshd_config. Within quotes only \" and \\ mean something else (OpenSSH 8.7)."""
    if not _NAME.match(name):
        raise UsageError(f"{name!r} is not the name of an environment variable")
    if re.search(r"[\0\r\n]", value):
        raise UsageError(f"{name} holds a line break, which sshd cannot hand on", remedy=f"leave {name} out")
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{name}={quoted}"'


def _pair(comment: str) -> KeyPair:
    # Costs 0.05 s that only a run with containers has to pay.
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH).decode("ascii")
    return KeyPair(private, f"{public} {comment}")
