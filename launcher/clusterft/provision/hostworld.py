"""The host-to-host world: the files by which nodes find and believe each other. Pure text.

Refuses what a person's ~/.ssh or an agent could add: no other key, no question, no learning of keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from clusterft import relay
from clusterft.places import NodePlaces
from clusterft.provision.member import Member

_PLAIN = re.compile(r"[A-Za-z0-9@._/+,:=-]+\Z")
_USER = re.compile(r"[^\s\"'%#${}\\-][^\s\"'%#${}\\]*(\\[^\s\"'%#${}\\]+)?\$?\Z")  # DOMAIN\user, machine$
_WAIT_SECONDS = 5  # for a peer's TCP answer: a LAN needs milliseconds


class File(NamedTuple):
    """One file as it is to be."""

    path: PurePosixPath
    text: str
    mode: int


class Peer(NamedTuple):
    """Where a node finds another one's sshd."""

    node: str
    address: str
    port: int
    user: str


def wanted(
    member: Member, peers: Mapping[str, Peer], keys: Mapping[str, tuple[str, ...]], hostfile: str
) -> tuple[File, ...]:
    """The files of one node; `peers` may hold the node itself, which is left out."""
    places = member.places
    files = [File(places.hostfile, hostfile, 0o600)]
    if member.local:
        return tuple(files)
    others = tuple(peer for name, peer in peers.items() if name != member.node)
    pins = "".join(f"{peer.node} {key}\n" for peer in others for key in keys[peer.node])
    files.append(File(places.known_hosts, pins, 0o600))
    files.append(File(places.ssh_config, ssh_config(places, others), 0o600))
    files.append(File(places.relay, relay.SCRIPT, 0o700))
    return tuple(files)


def ssh_config(places: NodePlaces, peers: tuple[Peer, ...]) -> str:
    """`ssh -F` this reaches each peer by its name, with the relay key alone."""
    lines = ["# Written by `clusterft up`: the ways from this node to the others.\n"]
    for peer in peers:
        lines.append(
            f"Host {peer.node}\n"
            f"    HostName {peer.address}\n"
            f"    HostKeyAlias {peer.node}\n"
            f"    Port {peer.port}\n"
            f"    User {user(peer.user)}\n"
        )
    lines.append(
        "Host *\n"
        f"    IdentityFile {_path(places.relay_key, places.root)}\n"
        f"    UserKnownHostsFile {_path(places.known_hosts, places.root, '~')}\n"
        "    GlobalKnownHostsFile /dev/null\n"
        "    StrictHostKeyChecking yes\n"
        "    UpdateHostKeys no\n"
        "    CheckHostIP no\n"
        "    IdentitiesOnly yes\n"
        "    IdentityAgent none\n"
        "    PreferredAuthentications publickey\n"
        "    BatchMode yes\n"
        "    ForwardAgent no\n"
        "    ForwardX11 no\n"
        "    ControlPath none\n"
        f"    ConnectTimeout {_WAIT_SECONDS}\n"
        "    ServerAliveInterval 3\n"
        "    ServerAliveCountMax 3\n"
        "    Compression no\n"
        "    LogLevel ERROR\n"
    )
    return "".join(lines)


def writable(name: str) -> bool:
    """Whether a login name can stand in ssh_config."""
    return bool(_USER.match(name))


def user(name: str) -> str:
    """A login name for ssh_config; ValueError for one that its readers, old and new, would not read alike."""
    if not writable(name):
        raise ValueError(f"the login name {name!r} cannot be written into ssh_config")
    return name


def _path(path: PurePosixPath, root: PurePosixPath, tilde: str = "%d") -> str:
    """A path for ssh_config; where the home's name would be read as something else, ssh is to put it in itself.

    %d is put in last, so that nothing in the home's name is looked at again. In UserKnownHostsFile it works from
    OpenSSH 8.4 on; ~ always does, but % and ${ in the home's name would be read as tokens.
    """
    if _PLAIN.match(str(path)):
        return str(path)
    home = str(root.parent)
    short = "%d" if "%" in home or "${" in home else tilde
    return f"{short}/{path.relative_to(root.parent)}"
