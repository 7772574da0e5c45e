"""A member's line to the head: dial, prove, say hello, and again whenever it breaks.

Owns reconnecting. What was said while there was no connection is not kept: `Hello` says where the member stands.
"""

from __future__ import annotations

import errno
import os
import random
import select
import socket
from collections.abc import Callable
from typing import Protocol

from clusterft_trainer.supervisor.messages import Hello, Message
from clusterft_trainer.supervisor.wire import Channel

_DIAL = 5.0  # seconds for a connection to come about
_FIRST, _MOST = 0.2, 3.0  # seconds between tries


class Line(Protocol):
    """How a supervisor talks to its gang's head."""

    problem: str  # why there is no connection; empty while there is one

    def turn(self, now: float) -> list[Message]:
        """What the head said since the last turn."""

    def send(self, message: Message) -> None:
        """Say something, if there is a connection."""

    def sockets(self) -> list[socket.socket]:
        """What may have something to read."""

    def close(self) -> None:
        """Say no more."""


class Member:
    """The line of a supervisor on another node than the head's."""

    def __init__(self, address: str, port: int, token: str, hello: Callable[[], Hello]) -> None:
        self.problem = "not tried yet"
        self._where = (address, port)
        self._token, self._hello = token, hello
        self._dialling: socket.socket | None = None
        self._channel: Channel | None = None
        self._next, self._wait = 0.0, _FIRST
        self._deadline = 0.0
        self._greeted = False

    def turn(self, now: float) -> list[Message]:
        """Dial if there is no connection, else take what came."""
        if self._channel is None:
            self._connect(now)
        if self._channel is None:
            return []
        came = self._channel.pump(now)
        if self._channel.proven and not self._greeted:
            # Only now: what a hello says must be true when it is heard, and nothing can be said before it.
            self._greeted, self.problem, self._wait = True, "", _FIRST
            self._channel.send(self._hello())
            came += self._channel.pump(now)
        if self._channel.closed:
            self._lost(self._channel.closed, now)
            self._channel = None
        return came

    def send(self, message: Message) -> None:
        """Nothing is kept for later: Hello will say it."""
        if self._channel is not None and self._greeted:
            self._channel.send(message)

    def sockets(self) -> list[socket.socket]:
        """The one that is open."""
        return [self._channel.socket] if self._channel is not None else []

    def close(self) -> None:
        """End the connection."""
        for one in (self._channel, self._dialling):
            if isinstance(one, Channel):
                one.drain()
                one.close("done")
            elif one is not None:
                one.close()

    def _connect(self, now: float) -> None:
        if self._dialling is None:
            if now < self._next:
                return
            self._deadline = now + _DIAL
            try:
                self._dialling = _dialled(self._where)
            except OSError as error:
                self._lost(error.strerror or str(error), now)
                return
        number = _arrived(self._dialling)
        if number == 0:
            self._channel = Channel(self._dialling, "member", self._token, now)
            self._greeted, self._dialling = False, None
        elif number is not None or now > self._deadline:
            self._dialling.close()
            self._dialling = None
            self._lost(f"timed out after {_DIAL:.0f} s" if number is None else os.strerror(number), now)

    def _lost(self, problem: str, now: float) -> None:
        self.problem = problem
        self._next = now + self._wait * random.uniform(0.8, 1.2)
        self._wait = min(self._wait * 2, _MOST)


def _dialled(where: tuple[str, int]) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    number = made.connect_ex(address)
    if number not in (0, errno.EINPROGRESS):
        made.close()
        raise OSError(number, os.strerror(number))
    return made


def _arrived(sock: socket.socket) -> int | None:
    """0 for a connection, the error's number for none, None while neither is known."""
    waiting = select.poll()
    waiting.register(sock, select.POLLOUT)
    if not waiting.poll(0):
        return None
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    # A port nobody listens on may, on one machine, be the very port that this end was given: then it met itself.
    if number == 0 and sock.getsockname() == sock.getpeername():
        return errno.ECONNREFUSED
    return number
