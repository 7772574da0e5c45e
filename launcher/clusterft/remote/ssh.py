"""A node over SSH: one handshake, then a channel for each command.

`way` finds out how to get there, `hostkeys` whom to believe; here the way is opened, and what stops it is named.
argv becomes shell text here, and only here.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import select
import shlex
import socket
import time
from pathlib import Path
from typing import Any

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
from clusterft.remote.protocol import SILENCE_SECONDS, Completed, Unreachable
from clusterft.remote.stream import Deadline, Lines, Stream, Tail, until_ready

_KEEPALIVE_SECONDS = 15
_CHUNK = 1 << 16

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

    def lines(self, argv: tuple[str, ...], *, silence: float | None = SILENCE_SECONDS) -> Lines:
        """Follow a command's stdout on a channel of its own."""
        return Lines(self.stream(argv), silence)

    def stream(self, argv: tuple[str, ...]) -> SshStream:
        """Talk with a command on a channel of its own."""
        return SshStream(self._open(argv))

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


class SshStream(Stream):
    """A running command on a node; closing the channel ends it when it next writes."""

    def __init__(self, channel: paramiko.Channel) -> None:
        super().__init__()
        self._channel = channel
        self._tail = Tail()

    def recv(self, size: int) -> bytes:
        """What it has written; stderr is emptied meanwhile, as both share one window."""
        deadline = Deadline(self._timeout)
        while not self._channel.recv_ready():
            self._drain()
            if self._channel.closed or self._channel.eof_received:
                break
            until_ready(deadline.left(), self.fileno())
        self._drain()
        # recv_ready() is not asked again: what came just before the end is taken, else recv() answers at once.
        data: bytes = self._channel.recv(size)
        if not data:
            self._check_whole()
        return data

    def sendall(self, data: Any) -> None:
        """Write to its stdin, in pieces that paramiko does not copy again and again."""
        left = memoryview(data).cast("B")
        self._channel.settimeout(self._timeout)
        while left:
            try:
                if self._channel.eof_sent:
                    raise BrokenPipeError("its end has been sent already")
                left = left[self._channel.send(bytes(left[:_CHUNK])) :]
            except TimeoutError:
                raise
            except (OSError, SSHException, EOFError):
                self._check_whole()
                raise BrokenPipeError("the command no longer reads") from None

    def fileno(self) -> int:
        """paramiko's stand-in for a socket."""
        return self._channel.fileno()

    def code(self, seconds: float) -> int:
        """Wait for the exit code."""
        if not self._channel.status_event.wait(seconds):
            raise Unreachable("ssh.timeout", f"it did not end within {seconds:g} s")
        self._check_whole()
        return self._channel.recv_exit_status()

    def complaint(self) -> str:
        """The end of what it has said on stderr."""
        self._drain()
        return str(self._tail)

    def _check_whole(self) -> None:
        """A connection that broke looks like an end; only the transport knows better."""
        transport = self._channel.transport
        if self._channel.exit_status == -1 and not (transport and transport.is_active()):
            raise Unreachable("ssh.timeout", "the connection broke")

    def _drain(self) -> None:
        while self._channel.recv_stderr_ready():
            self._tail.add(self._channel.recv_stderr(_CHUNK))

    def _end_writing(self) -> None:
        with contextlib.suppress(OSError, SSHException, EOFError):  # it is closed, and recv() tells
            self._channel.shutdown_write()

    def _hang_up(self) -> None:
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
