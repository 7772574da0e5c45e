"""What stopped a way into a node: paramiko's exceptions -> a name of the catalogue, in ssh's own words. Pure."""

from __future__ import annotations

import errno
import shlex
import socket
from dataclasses import dataclass

import fabric
import paramiko
from paramiko.ssh_exception import (
    AuthenticationException,
    BadHostKeyException,
    ChannelException,
    IncompatiblePeer,
)

from clusterft.hosts import Node
from clusterft.remote import account, hostkeys, way
from clusterft.remote.login import Login
from clusterft.remote.stream import text
from clusterft.remote.unreachable import Unreachable

_CHUNK = 1 << 16
_PORT = 22
_STARTUPS = (
    "try again; if it stays, on the node: MaxStartups 100:30:200 in /etc/ssh/sshd_config, then: "
    "sudo systemctl reload ssh"
)
# What of paramiko's sentence -> sshd's setting, and what every ssh knows.
_ALGORITHMS = {
    "kex": ("KexAlgorithms", "curve25519-sha256"),
    "host key": ("HostKeyAlgorithms", "ssh-ed25519"),
    "ciphers": ("Ciphers", "aes256-ctr"),
    "macs": ("MACs", "hmac-sha2-256"),
    "": ("KexAlgorithms", "curve25519-sha256"),
}
_AT_ONCE = 1.0  # seconds: a machine that is off costs some 3 s of asking for its card, a firewall answers at once


class Strange(Unreachable):
    """A host whose key nobody has pinned; `stranger` is what it presented."""

    def __init__(self, words: str, stranger: hostkeys.Stranger) -> None:
        key, who = stranger.key, stranger.name if stranger.bastion else " ".join(stranger.nodes)
        look = f"on the console of {who}: ssh-keygen -lf {key.file}   must show {key.fingerprint}"
        pin = "if it does: clusterft up   (it asks; with --accept-new-host-keys it does not)"
        super().__init__("ssh.hostkey-unknown", words, fix=(look, pin))
        self.stranger = stranger


@dataclass(frozen=True, slots=True)
class Hop:
    """One machine to log in to on the way to a node."""

    node: Node
    connection: fabric.Connection
    source: hostkeys.Source
    login: Login

    @property
    def bastion(self) -> bool:
        """Whether it is the one before the node."""
        return bool(self.connection.original_host != self.node.name)

    @property
    def account(self) -> account.Login:
        """As whom it is logged in to, and how a person gets there."""
        user, port = str(self.connection.user), int(self.connection.port)
        way_there = f"{user}@{self.connection.host}"
        return account.Login(user, way_there if port == _PORT else f"-p {port} {way_there}")

    @property
    def presented(self) -> hostkeys.HostKey:
        """The key that an open hop has presented, and that was found right."""
        transport = self.connection.client.get_transport()
        return hostkeys.HostKey.of(transport.get_remote_server_key())


def of(hop: Hop, error: Exception, took: float | None = None) -> Unreachable:
    """Why the hop could not be taken; `took` is the time to failure in seconds."""
    connection, login = hop.connection, f"{hop.connection.user}@{hop.connection.host}"
    if presented := _by_its_key(hop, error):
        return presented
    if isinstance(error, socket.gaierror):
        remedy = f"correct the name, or give addr= in the hostfile (line {hop.node.line})"
        return Unreachable("ssh.dns", f"{connection.host}: {error.strerror}", fix=(remedy,))
    if ended := _proxy_command_ended(connection):
        return Unreachable("ssh.jump", f"{login}: {ended}")
    if _silent(error):
        return _silence(connection, login)
    if shut := account.closed(hop.login.told, hop.account):
        return shut
    if isinstance(error, AuthenticationException) or _asked_for_keys(connection):
        return _no_login(hop, error)
    if isinstance(error, ChannelException):
        fix = (f"on the bastion: ssh -p {connection.port} {login}; AllowTcpForwarding yes in its sshd_config",)
        words = f"the bastion opens no way to {connection.host}:{connection.port}: {error.text}"
        return Unreachable("ssh.jump", words, fix=fix)
    if _greeted(connection) and not isinstance(error, (OSError, EOFError)):
        return _handshake(connection, login, error)
    return from_errno(f"{login}:{connection.port}", error, took)


def _by_its_key(hop: Hop, error: Exception) -> Unreachable | None:
    """What its host key says against it."""
    if isinstance(error, BadHostKeyException):
        return hostkeys.changed(hop.connection, error, hop.source, way.label(hop.connection, hop.node))
    if isinstance(error, hostkeys.UnknownHostKey):
        return Strange(str(error), hostkeys.Stranger(error.name, error.key, hop.bastion, (hop.node.name,)))
    if isinstance(error, hostkeys.RevokedHostKey):
        return Unreachable("ssh.hostkey-revoked", str(error), fix=("give the host a new key, then: clusterft up",))
    return None


def _greeted(connection: fabric.Connection) -> bool:
    """Whether its sshd has said hello: then no firewall is in the way."""
    transport = connection.client.get_transport()
    return transport is not None and bool(transport.remote_version)


def _silent(error: Exception) -> bool:
    """Whether nothing was heard in time; paramiko has a sentence of its own for most places where that happens."""
    waited = isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError)
    return waited or str(error) in ("No existing session", "Timeout opening channel.", "Authentication timeout.")


def _silence(connection: fabric.Connection, login: str) -> Unreachable:
    transport = connection.client.get_transport()
    if transport is not None and transport.remote_version and not transport.initial_kex_done:
        words = f"{login}:{connection.port}: it said hello, and nothing more for {way.SECONDS:g} s"
        fix: tuple[str, ...] = (
            "large packets may be lost on the way: compare the MTU of both ends and the switch: ip link",
            "where one is larger than the way allows: sudo ip link set dev INTERFACE mtu 1500",
        )
        return Unreachable("ssh.kex-hang", words, fix=fix)
    if transport is not None and not transport.remote_version:
        words = f"{login}:{connection.port}: it took the connection, and said nothing"
        fix = (
            "look at its console: it hangs, sleeps or has no time for anything; restart it if nothing helps",
            "if logins there are only slow: UseDNS no in its sshd_config, or mend its name server",
        )
        cause = "its kernel takes connections, and its sshd does not answer: no firewall is in the way"
        return Unreachable("ssh.timeout", words, fix=fix, cause=cause)
    return from_errno(f"{login}:{connection.port}", TimeoutError())


def _handshake(connection: fabric.Connection, login: str, error: Exception) -> Unreachable:
    """Most often paramiko and the node's sshd have no algorithm in common; OpenSSH may still get in."""
    words = f"{login}:{connection.port}: {error or type(error).__name__}"
    fix: tuple[str, ...] = (f"ssh -v -p {connection.port} {login}   shows where it ends",)
    if isinstance(error, IncompatiblePeer):
        setting, usual = next(known for sign, known in _ALGORITHMS.items() if sign in words)
        fix = (
            f"on the node: sudo sshd -T | grep -i '^{setting}'   tells which it takes",
            f"on the node: in the line {setting} of /etc/ssh/sshd_config or sshd_config.d: add ,{usual}   "
            "then: sudo systemctl reload ssh",
        )
    return Unreachable("ssh.handshake", words, fix=fix)


def _asked_for_keys(connection: fabric.Connection) -> bool:
    """Whether the host key was accepted and the connection stood: what went wrong then is the login."""
    transport = connection.client.get_transport()
    return transport is not None and transport.is_active() and bool(transport.initial_kex_done)


def _no_login(hop: Hop, error: Exception) -> Unreachable:
    connection, login = hop.connection, f"{hop.connection.user}@{hop.connection.host}"
    words = f"{login}: {error}; tried: {', '.join(hop.login.tried) or 'nothing'}"
    locked = hop.login.locked
    if locked:
        words += f"; {', '.join(locked)}: encrypted, and no agent offers it"
    fix = (
        *(f"ssh-add {shlex.quote(key)}" for key in locked),
        "check user= and identity= in the hostfile, or User and IdentityFile in ~/.ssh/config",
        f"ssh-copy-id -p {connection.port} {login}   puts your key there, if a password opens it",
        "if it is there already, sshd passes it over while others may write it; on the node: "
        "chmod go-w ~ ~/.ssh ~/.ssh/authorized_keys",
        f"is the account locked or over? as another user on the node: sudo passwd -S {hop.connection.user}   (L: "
        f"sudo usermod -U {hop.connection.user}); sudo chage -l {hop.connection.user}",
        "its sshd has written why: sudo journalctl -u ssh -n 20   (sshd on Fedora, Arch and SUSE)",
    )
    return Unreachable("ssh.auth", words, fix=fix)


def _proxy_command_ended(connection: fabric.Connection) -> str | None:
    """What a ProxyCommand said when it gave up; paramiko reports a missing banner instead."""
    transport = connection.client.get_transport()
    sock = getattr(transport, "sock", None)
    if not isinstance(sock, paramiko.ProxyCommand) or sock.process.poll() is None:
        return None
    said = sock.process.stderr.read(_CHUNK) if sock.process.stderr else b""
    return f"the ProxyCommand ended with exit code {sock.process.returncode}: {text(said).strip()}"


def from_errno(target: str, error: Exception, took: float | None = None) -> Unreachable:
    """What the system said about the network, after so many seconds."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ECONNREFUSED:
        fix = ("check port= in the hostfile; on the node: sudo systemctl enable --now ssh",)
        return Unreachable("ssh.refused", f"{target}: connection refused", fix=fix)
    if number in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return _no_route(target, number, took)
    if isinstance(error, TimeoutError):
        fix = ("power the node on; open its ssh port for this machine",)
        return Unreachable("ssh.timeout", f"{target}: no answer within {way.SECONDS:g} s", fix=fix)
    words = f"{target}: {error or type(error).__name__}"
    if "banner" in words or isinstance(error, (EOFError, ConnectionResetError)):
        return Unreachable("ssh.maxstartups", words, fix=(_STARTUPS,))
    return Unreachable("ssh.timeout", words)


def _no_route(target: str, number: int, took: float | None) -> Unreachable:
    after = "" if took is None else f" after {took:.1f} s"
    if number == errno.ENETUNREACH:
        fix: tuple[str, ...] = (
            "this machine has no route to that network: ip route; correct addr= or bring it up",
        )
        return Unreachable("ssh.no-route", f"{target}: network is unreachable", fix=fix)
    if took is None:
        fix = ("power the node on; check its firewall",)
    elif took < _AT_ONCE:
        fix = (
            "a firewall turns it away; on the node: sudo firewall-cmd --permanent --add-service=ssh && "
            "sudo firewall-cmd --reload   or, with ufw: sudo ufw allow OpenSSH",
        )
    else:
        fix = ("nothing has that address here: power the node on, check its cable and VLAN, or correct addr=",)
    return Unreachable("ssh.no-route", f"{target}: no route to host{after}", fix=fix)
