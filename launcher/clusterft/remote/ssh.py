"""A node over SSH: one handshake, then a channel for each command.

`dial` has opened the way. argv becomes shell text here, and only here.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import shlex
import time
from typing import Any

import paramiko
from paramiko.ssh_exception import ChannelException, SSHException

from clusterft.hosts import Node
from clusterft.remote import forwarding, way
from clusterft.remote.protocol import SILENCE_SECONDS, Completed, Unreachable
from clusterft.remote.refusal import Hop
from clusterft.remote.stream import Deadline, Lines, Stream, Tail, text, until_ready
from clusterft.remote.unreachable import Broken

_EOF_PAUSE = 0.02
_DRAIN_SECONDS = 4.0  # for output that is still on its way when the command has ended
_CHUNK = 1 << 16
_WAITS = (0.2, 0.5, 1.0, 2.0, 4.0)  # seconds

# Without a handler, Python would print paramiko's tracebacks into the live screen; what went wrong is told by us.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class SshRemote:
    """The Remote of `transport=ssh`, on a hop that has been taken."""

    def __init__(self, node: Node, hop: Hop) -> None:
        transport = hop.connection.client.get_transport()
        if transport is None:
            raise Unreachable("ssh.timeout", "the connection closed as soon as it was made")
        self.hop = hop
        self.crowded = 0  # times that sshd had no further channel for us
        self._node = node
        self._connection = hop.connection
        self._transport: paramiko.Transport = transport

    @property
    def by_password(self) -> bool:
        """Whether no key opened the node."""
        return self.hop.login.by_password

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
            _feed(channel, argv[0], stdin)
            return _collect(channel, argv[0], seconds)
        except (OSError, SSHException) as error:
            raise Broken(str(error)) from None
        finally:
            channel.close()

    def lines(self, argv: tuple[str, ...], *, silence: float | None = SILENCE_SECONDS) -> Lines:
        """Follow a command's stdout on a channel of its own."""
        return Lines(self.stream(argv), silence)

    def stream(self, argv: tuple[str, ...]) -> SshStream:
        """Talk with a command on a channel of its own."""
        return SshStream(self._open(argv))

    def forward(self, address: str, port: int, seconds: float) -> paramiko.Channel:
        """A TCP connection that the node's sshd makes; forwarding.NotForwarded says why it could not."""
        if not isinstance(self._transport, forwarding.Transport):
            raise forwarding.NotForwarded("this connection cannot forward", tried=False)
        return forwarding.connect(self._transport, address, port, seconds)

    def close(self) -> None:
        """Close the connection and all its channels; a bastion before it serves other nodes too."""
        self._connection.client.close()

    def _open(self, argv: tuple[str, ...]) -> paramiko.Channel:
        """Start a command on a new channel; where sshd has no more of them, wait for one."""
        for wait in (*_WAITS, None):
            try:
                channel = self._transport.open_session(timeout=way.SECONDS)
                channel.settimeout(way.SECONDS)
                channel.exec_command(shlex.join(argv))
                return channel
            except ChannelException as error:
                self.crowded += 1
                if wait is None:
                    words = f"no further channel could be opened: {error.text}"
                    fix = ("raise MaxSessions in the node's sshd_config to its default, 10",)
                    raise Unreachable("ssh.maxsessions", words, fix=fix) from None
                time.sleep(wait)
            except (OSError, SSHException, EOFError) as error:
                if not self._transport.is_active():
                    raise Broken(str(error)) from None
                raise Unreachable("ssh.timeout", f"no channel could be opened: {error}") from None
        raise AssertionError("the last wait is None")


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
            _check_whole(self._channel)
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
                _check_whole(self._channel)
                raise BrokenPipeError("the command no longer reads") from None

    def fileno(self) -> int:
        """paramiko's stand-in for a socket."""
        return self._channel.fileno()

    def code(self, seconds: float) -> int:
        """Wait for the exit code."""
        if not self._channel.status_event.wait(seconds):
            raise Unreachable("ssh.timeout", f"it did not end within {seconds:g} s")
        if self._channel.exit_status == -1:
            _check_whole(self._channel)
        return self._channel.recv_exit_status()

    def complaint(self) -> str:
        """The end of what it has said on stderr."""
        self._drain()
        return str(self._tail)

    def _drain(self) -> None:
        while self._channel.recv_stderr_ready():
            self._tail.add(self._channel.recv_stderr(_CHUNK))

    def _end_writing(self) -> None:
        with contextlib.suppress(OSError, SSHException, EOFError):  # it is closed, and recv() tells
            self._channel.shutdown_write()

    def _hang_up(self) -> None:
        self._channel.close()


def _ip(text: str) -> str | None:
    """An address that other machines can use; one of a single link is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return None if address.is_link_local else str(address)


def _check_whole(channel: paramiko.Channel) -> None:
    """A connection that broke looks like an end, with half of the output; only the transport knows better."""
    transport = channel.transport
    if channel.exit_status != -1 and channel.eof_received:
        return
    # It notes why it ends before it closes its channels, and that it has ended only after that.
    if transport is None or not transport.is_active() or transport.saved_exception is not None:
        raise Broken


def _feed(channel: paramiko.Channel, name: str, data: bytes) -> None:
    """All that it shall read, and the end of it; a command that ends without reading is told by what it says."""
    try:
        for start in range(0, len(data), _CHUNK):  # paramiko copies what is left each time it sends
            channel.sendall(data[start : start + _CHUNK])
        channel.shutdown_write()
    except TimeoutError:
        raise Unreachable(
            "ssh.timeout", f"{name} did not read within {way.SECONDS:g} s what it was sent"
        ) from None
    except OSError:
        if not channel.closed:
            raise


def _take(channel: paramiko.Channel, out: bytearray, err: bytearray) -> None:
    """All that has come by now."""
    while channel.recv_ready():
        out += channel.recv(_CHUNK)
    while channel.recv_stderr_ready():
        err += channel.recv_stderr(_CHUNK)


def _collect(channel: paramiko.Channel, name: str, seconds: float) -> Completed:
    out, err = bytearray(), bytearray()
    deadline = time.monotonic() + seconds
    ended: float | None = None  # when the exit status came; sshd may send it before the last of the output
    while True:
        left = deadline - time.monotonic()
        if left <= 0 and ended is None:
            raise Unreachable("ssh.timeout", f"{name} did not end within {seconds:g} s")
        with contextlib.suppress(TimeoutError):
            until_ready(min(max(left, 0.0), _DRAIN_SECONDS / 4), channel.fileno())
        _take(channel, out, err)
        if channel.exit_status_ready():  # or the channel is closed, and none will come
            ended = ended or time.monotonic()
            # Whatever it left behind may hold its output open for ever.
            if channel.eof_received or channel.closed or time.monotonic() - ended > _DRAIN_SECONDS:
                break
        elif channel.eof_received:
            time.sleep(_EOF_PAUSE)  # from then on the channel is always ready
    _take(channel, out, err)
    _check_whole(channel)
    return Completed(channel.recv_exit_status(), text(bytes(out)), text(bytes(err)))
