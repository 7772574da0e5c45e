"""Opening the ways of one fleet: one handshake a node, one for all nodes behind a bastion.

Whom to believe is known by `hostkeys`, how to prove who we are by `login`. Here is the order of the steps, a
deadline for each, and patience with an sshd that has too many callers at once.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import fabric
import paramiko
from paramiko.ssh_exception import SSHException

from clusterft.hosts import Node
from clusterft.remote import forwarding, hostkeys, refusal, way
from clusterft.remote.login import Keyring, Login
from clusterft.remote.pulse import Pulse
from clusterft.remote.refusal import Hop
from clusterft.remote.ssh import SshRemote
from clusterft.remote.unreachable import Unreachable

_TURNED_AWAY = "ssh.maxstartups"
_TRIES = 6  # when sshd has too many callers; the waits add up to some 10 s
_FIRST_WAIT = 0.3  # seconds, doubled each time
_LOGINS = 5  # connections for one login: sshd hangs up after MaxAuthTries keys
_FRESH = 5.0  # seconds for which a bastion's refusal stands for all who wait for it
_FAILURES = (OSError, SSHException, EOFError, ValueError)  # all that paramiko and the system raise on the way
PULSE = Pulse()  # one for all fleets of this process


class Dialer:
    """Opens ways; keeps the bastions."""

    def __init__(self, pins: Path, keyring: Keyring) -> None:
        self.ways = way.Ways()
        self._pins = pins
        self._known = hostkeys.Known(pins)
        self._keyring = keyring
        self._turn = threading.Lock()
        self._bastions: dict[tuple[str, str, int], _Bastion] = {}

    def connect(self, node: Node) -> SshRemote:
        """Log in to a node; Unreachable says why not, in ssh's own words; Strange where its key is unknown."""
        connection = self.ways.to(node)
        if isinstance(connection.gateway, fabric.Connection):
            connection.gateway = self._bastion(connection.gateway).opened(node, self)
        return SshRemote(node, self.open(node, connection))

    def trust(self, strangers: tuple[hostkeys.Stranger, ...]) -> None:
        """Pin what these hosts presented."""
        hostkeys.pin(self._pins, ((one.name, one.key) for one in strangers))
        self._known.reread()
        with self._turn:
            for bastion in self._bastions.values():
                bastion.forgive()

    def adopt(self, remotes: list[SshRemote]) -> bool:
        """Pin the keys that the user's own known_hosts vouched for; whether there were any."""
        hops = [hop for remote in remotes for hop in (remote.hop, self._bastion_of(remote)) if hop]
        vouched = [(way.known_as(hop.connection), hop.presented) for hop in hops if hop.source == "user"]
        changed = hostkeys.pin(self._pins, vouched)
        self._known.reread()
        return changed

    def forget(self, node: Node, name: str) -> bool:
        """Drop the pins of a node, or of its bastion, by the name that a person uses; whether there were any."""
        names = [way.known_as(one) for one in way.hops(self.ways.to(node)) if way.label(one, node) == name]
        dropped = [hostkeys.forget_name(self._pins, one) for one in names]
        self._known.reread()
        return any(dropped)

    def close(self) -> None:
        """Close the bastions' connections."""
        with self._turn:
            bastions = list(self._bastions.values())
        for bastion in bastions:
            bastion.close()

    def open(self, node: Node, connection: fabric.Connection) -> Hop:
        """Take one hop; what is before it is open."""
        hop = Hop(node, connection, self._known.expect(connection), self._login(connection))
        tries = logins = 0
        while True:
            began = time.monotonic()
            try:
                self._once(hop)
                return hop
            except _FAILURES as error:
                refused = refusal.of(hop, error, time.monotonic() - began)
                connection.client.close()
                shut = refused.cause  # of the account itself: no other key opens it
                if hop.login.cut_off and not shut and (logins := logins + 1) < _LOGINS:
                    continue
                if refused.id != _TURNED_AWAY or (tries := tries + 1) == _TRIES:
                    raise refused from None
            time.sleep(random.uniform(0.5, 1.5) * _FIRST_WAIT * 2**tries)

    def _once(self, hop: Hop) -> None:
        connection = hop.connection
        client: paramiko.SSHClient = connection.client

        def transport(sock: Any, **options: Any) -> paramiko.Transport:
            made = forwarding.Transport(sock, **options)
            hostkeys.prefer_known(made, connection)
            return made

        client.connect(
            str(connection.host),
            int(connection.port),
            username=connection.user,
            sock=_socket(connection),
            timeout=way.SECONDS,
            banner_timeout=connection.connect_kwargs["banner_timeout"],
            auth_timeout=connection.connect_kwargs["auth_timeout"],
            channel_timeout=connection.connect_kwargs["channel_timeout"],
            transport_factory=transport,
            auth_strategy=hop.login,  # type: ignore[arg-type]
        )
        opened = client.get_transport()
        if opened is None or not opened.is_active():
            raise EOFError("the connection closed as soon as it was made")
        PULSE.watch(opened)

    def _login(self, connection: fabric.Connection) -> Login:
        return Login(
            str(connection.user),
            str(connection.host),
            self._keyring,
            files=list(connection.connect_kwargs["key_filename"]),
            only_files=connection.ssh_config.get("identitiesonly", "no").lower() == "yes",
        )

    def _bastion(self, connection: fabric.Connection) -> _Bastion:
        key = (str(connection.user), str(connection.host), int(connection.port))
        with self._turn:
            return self._bastions.setdefault(key, _Bastion(connection))

    def _bastion_of(self, remote: SshRemote) -> Hop | None:
        gateway = remote.hop.connection.gateway
        return self._bastion(gateway).hop if isinstance(gateway, fabric.Connection) else None


class _Bastion:
    """One connection for all the nodes behind it; made by whoever comes first, made anew once it has broken."""

    def __init__(self, connection: fabric.Connection) -> None:
        self.hop: Hop | None = None
        self._connection = connection
        self._turn = threading.Lock()
        self._refused: tuple[float, Unreachable] | None = None

    def opened(self, node: Node, dialer: Dialer) -> fabric.Connection:
        """The open connection; whoever waited for a refusal hears the same one."""
        with self._turn:
            transport = self._connection.client.get_transport()
            if self.hop and transport is not None and transport.is_active():
                return self._connection
            if self._refused and time.monotonic() - self._refused[0] < _FRESH:
                raise self._told(node, self._refused[1])
            try:
                self.hop = dialer.open(node, self._connection)
            except Unreachable as error:
                self._refused = (time.monotonic(), error)
                raise
            return self._connection

    @staticmethod
    def _told(node: Node, refused: Unreachable) -> Unreachable:
        """The same for another node; each has its own exception, as it is raised in several threads."""
        if isinstance(refused, refusal.Strange):
            one = refused.stranger
            return refusal.Strange(refused.what, hostkeys.Stranger(one.name, one.key, True, (node.name,)))
        return Unreachable(refused.id, refused.what, fix=refused.fix, cause=refused.cause)

    def forgive(self) -> None:
        """Its key is trusted now: the next one tries again."""
        self._refused = None

    def close(self) -> None:
        """End it."""
        self._connection.client.close()


def _socket(connection: fabric.Connection) -> Any:
    """What carries the connection: a socket, a channel of the bastion, or a ProxyCommand."""
    if connection.gateway:
        return _through(connection)
    sock = socket.create_connection((str(connection.host), int(connection.port)), timeout=way.SECONDS)
    sock.setsockopt(
        socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
    )  # our messages are small, and each waits for an answer
    return sock


def _through(connection: fabric.Connection) -> Any:
    gateway = connection.gateway
    if not isinstance(gateway, fabric.Connection):
        return connection.open_gateway()  # a ProxyCommand, whose %h and %p fabric fills in
    transport = gateway.client.get_transport()
    if transport is None:
        raise EOFError("the bastion has gone")
    to = (str(connection.host), int(connection.port))
    return transport.open_channel("direct-tcpip", to, ("", 0), timeout=way.SECONDS)
