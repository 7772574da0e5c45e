"""The head's table: connections of all members, a Gang that decides, and its actions carried out.

Thin: what is decided, is decided in `gang`. The head's own part sits at the table without a socket.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from pathlib import Path

from clusterft_trainer import stream
from clusterft_trainer.assignment import Assignment
from clusterft_trainer.supervisor import actions, ledger
from clusterft_trainer.supervisor.actions import World
from clusterft_trainer.supervisor.gang import Gang
from clusterft_trainer.supervisor.ledger import Ledger
from clusterft_trainer.supervisor.messages import Hello, Message, Over
from clusterft_trainer.supervisor.wire import Channel

_STRANGERS = 32  # connections that have not introduced themselves
_BACKLOG = 64
_SHUT = 15.0  # seconds for a port that another program holds to become free
REPLACED = "replaced"  # the failure of a member whose place another has


class Head:
    """Also a Line: the head's own supervisor talks to it through `turn` and `send`."""

    def __init__(self, told: Assignment, past: Ledger, path: Path, hello: Callable[[], Hello]) -> None:
        self.problem = ""
        self.unkept = ""  # why the ledger is not on the disk
        self.parted = False  # all who can be told know that the run is over
        self.said: list[stream.Plain] = []  # for the part's stream
        self._told, self._ledger, self._path, self._hello = told, past, path, hello
        self._gang = Gang(told, past, time.monotonic(), World(self._pick, time.time))
        self._strangers: list[Channel] = []
        self._channels: dict[int, Channel] = {}
        self._refused: list[Channel] = []
        self._mine: list[Message] = []
        self._rank = told.machine_rank
        self._listener: socket.socket | None = None
        self._greeted = False
        self._shut_since = 0.0

    def turn(self, now: float) -> list[Message]:
        """Hear everybody, decide, tell them; what the head's own part is told."""
        if not self._greeted:
            self._greeted = True
            self._gang.hello(self._hello(), now)
        if len(self._told.members) > 1:
            self._accept(now)
            self._hear(now)
        self._gang.tick(now)
        self._act()
        for channel in (*self._channels.values(), *self._refused):
            for message in channel.pump(now):  # pushes out what was just said
                self._take(channel, message, now)
        mine, self._mine = self._mine, []
        return mine

    def send(self, message: Message) -> None:
        """From the head's own part."""
        self._gang.heard(self._rank, message, time.monotonic())

    @property
    def is_short(self) -> bool:
        """Whether members are out of reach: they, or a controller, may think the same of this head."""
        return len(self._gang.roster.here()) < len(self._told.members)

    def supersede(self) -> None:
        """Another gang has the run."""
        self._gang.supersede(time.monotonic())

    def leave(self) -> None:
        """This machine shuts down."""
        self._gang.leave()

    def sockets(self) -> list[socket.socket]:
        """What may have something to read."""
        listener = [self._listener] if self._listener is not None else []
        return [*listener, *(one.socket for one in (*self._strangers, *self._channels.values(), *self._refused))]

    def close(self) -> None:
        """End all connections."""
        for channel in (*self._strangers, *self._channels.values(), *self._refused):
            channel.close("the head is done")
        if self._listener is not None:
            self._listener.close()

    # --- connections

    def _accept(self, now: float) -> None:
        if self._listener is None:
            try:
                self._listener = _listening(self._told.members[0].address, self._told.gang_port)
                self.problem = ""
            except OSError as error:
                self.problem = f"port {self._told.gang_port} cannot be opened: {error.strerror}"
                self._shut_since = self._shut_since or now
                if now - self._shut_since > _SHUT:
                    self._gang.shut(self.problem, now)
                return
        while len(self._strangers) < _STRANGERS:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._strangers.append(Channel(sock, "head", self._told.token, now))

    def _hear(self, now: float) -> None:
        for channel in list(self._strangers):
            for message in channel.pump(now):
                self._take(channel, message, now)
            if channel.closed and channel in self._strangers:
                self._strangers.remove(channel)
        for rank, channel in list(self._channels.items()):
            for message in channel.pump(now):
                self._take(channel, message, now)
            if channel.closed and self._channels.get(rank) is channel:
                del self._channels[rank]
                self._gang.gone(rank, now)
        self._refused = [channel for channel in self._refused if not channel.closed]

    def _take(self, channel: Channel, message: Message, now: float) -> None:
        rank = next((rank for rank, one in self._channels.items() if one is channel), None)
        if rank is not None:
            try:
                self._gang.heard(rank, message, now)
            except ValueError as error:
                channel.close(str(error))
        elif channel in self._strangers and isinstance(message, Hello):
            self._strangers.remove(channel)
            self._welcome(channel, message, now)

    def _welcome(self, channel: Channel, hello: Hello, now: float) -> None:
        rank = hello.member.machine_rank
        old = self._channels.get(rank)
        if old is not None and self._gang.roster.node(rank) == hello.member.node:
            old.close("it has a new connection")
            del self._channels[rank]
            self._gang.gone(rank, now)
        refused = self._gang.hello(hello, now) if rank != self._rank else f"{rank} is the head"
        if refused:
            channel.send(Over("failed", REPLACED, refused))
            self._refused.append(channel)
            return
        self._channels[rank] = channel

    # --- actions

    def _act(self) -> None:
        for action in self._gang.drain():
            match action:
                case actions.Send(rank, message):
                    if rank == self._rank:
                        self._mine.append(message)
                    elif rank in self._channels:
                        self._channels[rank].send(message)
                case actions.Say(line):
                    self.said.append(line)
                case actions.Keep():
                    self.unkept = ledger.keep(self._path, self._ledger)
                case actions.Part():
                    self.parted = True

    def _pick(self, before: int | None) -> int | None:
        """A free port for the rendezvous, not that of the attempt before if there is another."""
        first, last = self._told.first_port, self._told.first_port + max(1, self._told.ports)
        ports = [port for port in range(first, last) if port not in (before, self._told.gang_port)]
        if before is not None:
            later = [port for port in ports if port > before]
            ports = [*later, *(port for port in ports if port < before), before]
        return next((port for port in ports if _free(port)), None)


def _listening(address: str, port: int) -> socket.socket:
    """All interfaces: the address that others know the head by need not be one of its own."""
    wide = ":" in address
    listener = socket.create_server(
        ("::" if wide else "", port), family=socket.AF_INET6 if wide else socket.AF_INET,
        backlog=_BACKLOG, dualstack_ipv6=False,
    )  # fmt: skip
    listener.setblocking(False)
    return listener


def _free(port: int) -> bool:
    for family, any_address in ((socket.AF_INET, ""), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((any_address, port))
        except OSError as error:
            if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                continue  # this machine does not speak it
            return False
    return True
