"""A node over SSH: one handshake, then a channel for each command. fabric finds the way, paramiko carries it.

Host keys are verified against the cluster's pins and the user's known_hosts; an unknown or changed one is refused,
never learned. `~/.ssh/config` is honoured. argv becomes shell text here, and only here.
"""

from __future__ import annotations

import select
import shlex
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import fabric
import paramiko
from paramiko.ssh_exception import (
    AuthenticationException,
    BadHostKeyException,
    NoValidConnectionsError,
    PasswordRequiredException,
    SSHException,
)

from clusterft.hosts import Node
from clusterft.remote.protocol import Completed, Unreachable

_CONNECT_SECONDS = 10.0
_KEEPALIVE_SECONDS = 15
_CHUNK = 1 << 16
_SILENCE_SECONDS = 45.0  # a follower says something every 10 s; beyond this the line is dead


class UnknownHostKey(SSHException):
    """The host presented a key that nobody has pinned."""

    def __init__(self, host: str, key: paramiko.PKey) -> None:
        super().__init__(f"{host} presented an unpinned {key.get_name()} key {key.fingerprint}")


class _Refuse(paramiko.MissingHostKeyPolicy):
    """fabric's own default would add any key it meets."""

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        raise UnknownHostKey(hostname, key)


class SshRemote:
    """The Remote of `transport=ssh`; `address` is the IP that the connection went to."""

    def __init__(self, node: Node, connection: fabric.Connection) -> None:
        self._node = node
        self._connection = connection
        transport = connection.client.get_transport()
        if transport is None:  # open() would have raised
            raise Unreachable("ssh.timeout", "the connection closed as soon as it was made")
        transport.set_keepalive(_KEEPALIVE_SECONDS)
        self._transport: paramiko.Transport = transport

    @property
    def address(self) -> str:
        """The peer's IP; through a bastion the channel has none, and the configured host stands for it."""
        try:
            return str(self._transport.getpeername()[0])
        except (OSError, AttributeError):
            return str(self._connection.host)

    def run(self, argv: tuple[str, ...], *, stdin: bytes = b"", seconds: float = 30.0) -> Completed:
        """Run to the end on a channel of its own."""
        channel = self._open(argv)
        try:
            channel.sendall(stdin)
            channel.shutdown_write()
            return _collect(channel, argv[0], seconds)
        except (OSError, SSHException) as error:
            raise Unreachable("ssh.timeout", f"the connection broke: {error}") from None
        finally:
            channel.close()

    def lines(self, argv: tuple[str, ...]) -> SshLines:
        """Follow a command's stdout on a channel of its own."""
        return SshLines(self._open(argv))

    def close(self) -> None:
        """Close the connection and all its channels."""
        self._connection.close()

    def _open(self, argv: tuple[str, ...]) -> paramiko.Channel:
        try:
            channel = self._transport.open_session(timeout=_CONNECT_SECONDS)
            channel.settimeout(_CONNECT_SECONDS)
            channel.exec_command(shlex.join(argv))
        except (OSError, SSHException, EOFError) as error:
            raise Unreachable("ssh.timeout", f"no channel could be opened: {error}") from None
        return channel


class SshLines:
    """A running command on a node."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        channel.settimeout(_SILENCE_SECONDS)

    def __iter__(self) -> Iterator[str]:
        rest = b""
        while chunk := self._channel.recv(_CHUNK):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line.decode("utf-8", errors="backslashreplace")

    def close(self) -> None:
        """Close the channel; sshd then ends the command when it next writes."""
        self._channel.close()


def connect(node: Node, pins: Path) -> SshRemote:
    """Log in to a node; Unreachable says why not, in ssh's own words."""
    extra: dict[str, object] = {"banner_timeout": _CONNECT_SECONDS, "auth_timeout": _CONNECT_SECONDS}
    if node.identity:
        extra["key_filename"] = str(Path(node.identity).expanduser())
    connection = fabric.Connection(
        # addr= is what other nodes use; the controller goes by the name, which ~/.ssh/config may explain.
        host=_contact(node),
        user=node.user,
        port=node.port,
        gateway=fabric.Connection(node.jump) if node.jump else None,
        connect_timeout=int(_CONNECT_SECONDS),
        connect_kwargs=extra,
    )
    for hop in (connection, connection.gateway):
        if isinstance(hop, fabric.Connection):
            _trust(hop.client, pins)
    try:
        connection.open()
    except (OSError, SSHException, EOFError) as error:
        connection.close()
        raise _unreachable(node, connection, error) from None
    return SshRemote(node, connection)


def _contact(node: Node) -> str:
    """The name, when ~/.ssh/config or the resolver knows it; else addr=, so that a hostfile can stand alone."""
    if node.addr is None or node.jump:
        return node.name
    configured = str(fabric.Config().base_ssh_config.lookup(node.name).get("hostname", node.name))
    try:
        socket.getaddrinfo(configured, None)
    except socket.gaierror:
        return node.addr
    return node.name


def _trust(client: paramiko.SSHClient, pins: Path) -> None:
    client.set_missing_host_key_policy(_Refuse())
    client.load_system_host_keys()
    if pins.exists():
        client.load_host_keys(str(pins))


def _collect(channel: paramiko.Channel, name: str, seconds: float) -> Completed:
    out, err = bytearray(), bytearray()
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Unreachable("ssh.timeout", f"{name} did not end within {seconds:g} s")
        select.select([channel], [], [], min(left, 1.0))
        while channel.recv_ready():
            out += channel.recv(_CHUNK)
        while channel.recv_stderr_ready():
            err += channel.recv_stderr(_CHUNK)
        if channel.exit_status_ready() and not channel.recv_ready() and not channel.recv_stderr_ready():
            break
        if channel.closed:
            raise SSHException("closed by the other side")
    return Completed(channel.recv_exit_status(), _text(out), _text(err))


def _unreachable(node: Node, connection: fabric.Connection, error: Exception) -> Unreachable:
    """Map what ssh said to an id of the catalogue, keeping its words."""
    login = f"{connection.user}@{connection.host}"
    if isinstance(error, BadHostKeyException):
        words = (
            f"{connection.host} presented {error.key.get_name()} {error.key.fingerprint}, "
            f"pinned is {error.expected_key.fingerprint}"
        )
        return Unreachable("ssh.hostkey-changed", words, fix=("confirm the fingerprint on the node's console",))
    if isinstance(error, UnknownHostKey):
        remedy = f"compare the fingerprint out of band, then log in once: ssh -p {connection.port} {login}"
        return Unreachable("ssh.hostkey-unknown", str(error), fix=(remedy,))
    if isinstance(error, (AuthenticationException, PasswordRequiredException)):
        remedy = f"ssh-copy-id -p {connection.port} {login}"
        return Unreachable("ssh.auth", f"{login}: {error}", fix=(remedy,))
    if isinstance(error, socket.gaierror):
        remedy = f"correct the name, or give addr= in the hostfile (line {node.line})"
        return Unreachable("ssh.dns", f"{connection.host}: {error.strerror}", fix=(remedy,))
    reasons = list(error.errors.values()) if isinstance(error, NoValidConnectionsError) else [error]
    return _from_errno(f"{login}:{connection.port}", reasons[0])


def _from_errno(target: str, error: Exception) -> Unreachable:
    number = error.errno if isinstance(error, OSError) else None
    if number == 111:
        fix = ("sudo systemctl enable --now ssh   (on the node); check port=",)
        return Unreachable("ssh.refused", f"{target}: connection refused", fix=fix)
    if number == 113:
        fix = ("power the node on; check its firewall",)
        return Unreachable("ssh.no-route", f"{target}: no route to host", fix=fix)
    if isinstance(error, TimeoutError):
        fix = ("power the node on; open its ssh port for this machine",)
        return Unreachable("ssh.timeout", f"{target}: no answer within {_CONNECT_SECONDS:g} s", fix=fix)
    words = f"{target}: {error or type(error).__name__}"
    if "banner" in words or isinstance(error, EOFError):
        return Unreachable("ssh.maxstartups", words, fix=("try again; raise MaxStartups on the node",))
    return Unreachable("ssh.timeout", words)


def _text(data: bytearray) -> str:
    return bytes(data).decode("utf-8", errors="backslashreplace")
