"""A node over SSH: one handshake, then a channel for each command.

`way` finds out how to get there, `hostkeys` whom to believe; here the way is opened, and what stops it is named.
argv becomes shell text here, and only here.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
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
    ChannelException,
    NoValidConnectionsError,
    PasswordRequiredException,
    SSHException,
)

from clusterft.hosts import Node
from clusterft.remote import hostkeys, way
from clusterft.remote.protocol import Completed, Unreachable

_KEEPALIVE_SECONDS = 15
_CHUNK = 1 << 16
_SILENCE_SECONDS = 45.0  # a follower says something every 10 s; beyond this the line is dead

# Without a handler, Python would print paramiko's tracebacks into the live screen; what went wrong is told by us.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class SshRemote:
    """The Remote of `transport=ssh`."""

    def __init__(self, node: Node, connection: fabric.Connection) -> None:
        self._node = node
        self._connection = connection
        for hop in way.hops(connection):
            transport = hop.client.get_transport()
            if transport is None:  # open() would have raised
                raise Unreachable("ssh.timeout", "the connection closed as soon as it was made")
            transport.set_keepalive(_KEEPALIVE_SECONDS)
        self._transport: paramiko.Transport = transport

    @property
    def address(self) -> str | None:
        """The node's IP as seen from here; None where only the node itself can tell, which is behind a bastion."""
        if self._connection.gateway:
            return _ip(self._node.addr or "")  # the peer would be the bastion
        try:
            return _ip(str(self._transport.getpeername()[0]))
        except OSError:
            return None

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
        """Close the connection and all its channels, then the bastion's."""
        _close(self._connection)

    def _open(self, argv: tuple[str, ...]) -> paramiko.Channel:
        try:
            channel = self._transport.open_session(timeout=way.SECONDS)
            channel.settimeout(way.SECONDS)
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
    connection = way.to(node)
    for hop in way.hops(connection):
        try:
            hostkeys.expect(hop, pins)
            hop.open()
        except Unreachable:
            _close(connection)
            raise
        except (OSError, SSHException, EOFError, ValueError) as error:
            refusal = _unreachable(node, hop, error)
            _close(connection)
            raise refusal from None
    return SshRemote(node, connection)


def _close(connection: fabric.Connection) -> None:
    """fabric's own close spares the gateway, and a connection that failed half way."""
    for hop in reversed(way.hops(connection)):
        hop.client.close()


def _ip(text: str) -> str | None:
    """An address that other machines can use; one of a single link is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return None if address.is_link_local else str(address)


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


def _unreachable(node: Node, hop: fabric.Connection, error: Exception) -> Unreachable:
    """Map what ssh said at one hop to an id of the catalogue, keeping its words."""
    login = f"{hop.user}@{hop.host}"
    if isinstance(error, BadHostKeyException):
        words = (
            f"{hop.host} presented {error.key.get_name()} {error.key.fingerprint}, "
            f"pinned is {error.expected_key.fingerprint}"
        )
        return Unreachable("ssh.hostkey-changed", words, fix=("confirm the fingerprint on the node's console",))
    if isinstance(error, hostkeys.UnknownHostKey):
        remedy = f"compare the fingerprint out of band, then log in once: ssh -p {hop.port} {login}"
        return Unreachable("ssh.hostkey-unknown", str(error), fix=(remedy,))
    if isinstance(error, socket.gaierror):
        remedy = f"correct the name, or give addr= in the hostfile (line {node.line})"
        return Unreachable("ssh.dns", f"{hop.host}: {error.strerror}", fix=(remedy,))
    if ended := _proxy_command_ended(hop):
        return Unreachable("ssh.jump", f"{login}: {ended}")
    if _silent(error):
        return _from_errno(f"{login}:{hop.port}", TimeoutError())
    if isinstance(error, AuthenticationException) or _asked_for_keys(hop):
        return _no_login(hop, error)
    if isinstance(error, ChannelException):
        fix = (f"on the bastion: ssh -p {hop.port} {login}; AllowTcpForwarding yes in its sshd_config",)
        return Unreachable("ssh.jump", f"the bastion opens no way to {hop.host}:{hop.port}: {error.text}", fix=fix)
    reasons = list(error.errors.values()) if isinstance(error, NoValidConnectionsError) else [error]
    return _from_errno(f"{login}:{hop.port}", reasons[0])


def _silent(error: Exception) -> bool:
    """Whether nothing was heard in time; paramiko has a sentence of its own for most places where that happens."""
    waited = isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError)
    return waited or str(error) in ("No existing session", "Timeout opening channel.", "Authentication timeout.")


def _asked_for_keys(hop: fabric.Connection) -> bool:
    """Whether the host key was accepted and the connection stood: what went wrong then is the login."""
    transport = hop.client.get_transport()
    return transport is not None and transport.is_active() and transport.initial_kex_done


def _no_login(hop: fabric.Connection, error: Exception) -> Unreachable:
    login = f"{hop.user}@{hop.host}"
    standard = (Path("~/.ssh").expanduser() / f"id_{kind}" for kind in ("rsa", "ecdsa", "ed25519"))
    keys = dict.fromkeys((*hop.connect_kwargs["key_filename"], *(str(path) for path in standard)))
    locked = [key for key in keys if _encrypted(key)]
    words = f"{login}: {error}"
    if locked:
        words += f"; {', '.join(locked)}: encrypted, and no agent offers it"
    fix = (*(f"ssh-add {shlex.quote(key)}" for key in locked), f"ssh-copy-id -p {hop.port} {login}")
    return Unreachable("ssh.auth", words, fix=fix)


def _encrypted(path: str) -> bool:
    for kind in (paramiko.RSAKey, paramiko.ECDSAKey, paramiko.Ed25519Key):
        try:
            kind.from_private_key_file(path)
        except PasswordRequiredException:
            return True
        except (SSHException, OSError, ValueError):
            continue  # another kind of key, or none
    return False


def _proxy_command_ended(hop: fabric.Connection) -> str | None:
    """What a ProxyCommand said when it gave up; paramiko reports a missing banner instead."""
    transport = hop.client.get_transport()
    sock = getattr(transport, "sock", None)
    if not isinstance(sock, paramiko.ProxyCommand) or sock.process.poll() is None:
        return None
    said = sock.process.stderr.read(_CHUNK) if sock.process.stderr else b""
    return f"the ProxyCommand ended with exit code {sock.process.returncode}: {_text(bytearray(said)).strip()}"


def _from_errno(target: str, error: Exception) -> Unreachable:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ECONNREFUSED:
        fix = ("sudo systemctl enable --now ssh   (on the node); check port=",)
        return Unreachable("ssh.refused", f"{target}: connection refused", fix=fix)
    if number in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        fix = ("power the node on; check its firewall",)
        return Unreachable("ssh.no-route", f"{target}: no route to host", fix=fix)
    if isinstance(error, TimeoutError):
        fix = ("power the node on; open its ssh port for this machine",)
        return Unreachable("ssh.timeout", f"{target}: no answer within {way.SECONDS:g} s", fix=fix)
    words = f"{target}: {error or type(error).__name__}"
    if "banner" in words or isinstance(error, EOFError):
        return Unreachable("ssh.maxstartups", words, fix=("try again; raise MaxStartups on the node",))
    return Unreachable("ssh.timeout", words)


def _text(data: bytearray) -> str:
    return bytes(data).decode("utf-8", errors="backslashreplace")
