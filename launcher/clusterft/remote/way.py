"""The way to a node: hostfile and ~/.ssh/config -> an unopened connection, with at most one bastion before it.

~/.ssh/config is read once for all nodes.

Refuses more bastions than one: fabric visits them in the reverse of OpenSSH's order. Opens nothing.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import threading
from pathlib import Path

import fabric
from fabric.connection import derive_shorthand
from paramiko.config import SSHConfig
from paramiko.ssh_exception import SSHException

from clusterft.hosts import Node
from clusterft.remote.protocol import Unreachable

SSH_PORT = 22
_NAME_SECONDS = 2.0  # for a name server, where addr= would do as well
SECONDS = 10.0  # for each of: TCP, key exchange, login, a channel
_BANNER_SECONDS = 8.0  # less, or the key exchange would give up first, with words that tell nothing
_CONFIGS = (Path("~/.ssh/config"), Path("/etc/ssh/ssh_config"))
# As OpenSSH runs it, with a shell; in a session of its own, so that it cannot ask for a passphrase at the terminal
# and a Ctrl-C does not cut the way on which the nodes are to be told to stop.
_ALONE = "import os, sys; os.setsid(); os.execvp('sh', ('sh', '-c', 'exec ' + sys.argv[1]))"


class Ways:
    """The ways to the nodes of one fleet."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._read: fabric.Config | Unreachable | None = None
        self._asking = threading.Lock()
        self._mute = False

    def to(self, node: Node) -> fabric.Connection:
        """The connection to a node; its gateway is a Connection, the text of a ProxyCommand, or False."""
        config = self._config()
        try:
            gateway = _gateway(node, config)
            made = _connection(node.name, config, gateway, user=node.user, port=node.port)
        except (SSHException, ValueError, KeyError) as error:
            words = f"{_CONFIGS[0]} or jump=, for {node.name} (hostfile, line {node.line}): {error}"
            raise Unreachable(
                "ssh.config", words, fix=(f"ssh -G {node.name}   shows what OpenSSH makes of it",)
            ) from None
        if node.identity:
            made.connect_kwargs["key_filename"] = [_identity(node), *made.connect_kwargs["key_filename"]]
        # addr= is what other nodes use; the controller goes by the name, which ~/.ssh/config may explain. Behind a
        # bastion it is the bastion that resolves the name.
        if node.addr and not gateway and not self._resolves(str(made.host)):
            made.host = node.addr
        return made

    def bastion(self, node: Node) -> str:
        """What a node lies behind, the same text for all nodes behind it; empty if it is reached directly."""
        try:
            gateway = _gateway(node, self._config())
        except (Unreachable, SSHException, ValueError, KeyError):
            return ""  # whoever goes there is told
        if isinstance(gateway, fabric.Connection):
            return known_as(gateway)
        return gateway if isinstance(gateway, str) else ""

    def _resolves(self, host: str) -> bool:
        """Whether a name means anything here; a name server that does not answer is not waited for twice.

        One at a time: of many questions at once, some servers drop most, and each is repeated after 5 seconds.
        """
        with self._asking:
            if self._mute:
                return False
            found: list[bool] = []
            asking = threading.Thread(target=lambda: found.append(_is_name(host)), daemon=True)
            asking.start()
            asking.join(_NAME_SECONDS)
            self._mute = not found
            return found == [True]

    def _config(self) -> fabric.Config:
        with self._turn:
            if self._read is None:
                try:
                    self._read = _config()
                except Unreachable as error:
                    self._read = error
        if isinstance(self._read, Unreachable):
            raise self._read
        return self._read


def hops(connection: fabric.Connection) -> tuple[fabric.Connection, ...]:
    """Everything to log in to, in order: the bastion, if there is one, then the node."""
    gateway = connection.gateway
    return (gateway, connection) if isinstance(gateway, fabric.Connection) else (connection,)


def label(connection: fabric.Connection, node: Node) -> str:
    """What a person calls a hop: the node's name, or the bastion's as they wrote it."""
    return str(node.name if connection.original_host == node.name else connection.original_host)


def address(connection: fabric.Connection) -> str:
    """Where a hop is, as known_hosts writes it."""
    return name_of(str(connection.host), int(connection.port))


def known_as(connection: fabric.Connection) -> str:
    """What a hop's key is filed under: a HostKeyAlias, else where it is."""
    alias = connection.ssh_config.get("hostkeyalias")
    return str(alias) if alias else address(connection)


def name_of(host: str, port: int) -> str:
    """A host and port in the manner of known_hosts."""
    return host if port == SSH_PORT else f"[{host}]:{port}"


def _config() -> fabric.Config:
    """What ssh's own files say; not fabric's, in which a gateway or a password might lie."""
    try:
        config = fabric.Config(lazy=True)
        config.load_ssh_config()
    except (SSHException, ValueError, OSError) as error:
        place = next(filter(None, (_broken_line(path.expanduser()) for path in _CONFIGS)), None)
        words = place or f"{_CONFIGS[0]}: {error}"
        raise Unreachable("ssh.config", words, fix=("mend this line, as in: man ssh_config",)) from None
    return config


def _broken_line(path: Path) -> str | None:
    """file:line and what is wrong there; each line of such a file can be read by itself."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        return f"{path}: {error}"
    for number, line in enumerate(lines, start=1):
        try:
            SSHConfig.from_text(line)
        except (SSHException, ValueError) as error:
            return f"{path}:{number}: {error}"
    return None


def _gateway(node: Node, config: fabric.Config) -> fabric.Connection | str | bool:
    options = config.base_ssh_config.lookup(node.name)
    jump = node.jump or options.get("proxyjump") or ""
    if jump.lower() == "none":
        return False
    first, *more = (hop.strip().removeprefix("ssh://") for hop in jump.split(","))
    host = derive_shorthand(first)["host"]
    if not more and host in (None, node.name, options["hostname"]):
        # `Host *` with a ProxyJump is meant for all but the bastion itself.
        return False if jump else _proxy_command(options)
    before = config.base_ssh_config.lookup(host)
    further = before.get("proxyjump", "none")
    if more or (further.lower() != "none" and derive_shorthand(further)["host"] != host):
        ways = jump if more else f"{further},{jump}"
        last = more[-1] if more else first
        fix = f"in ~/.ssh/config, under Host {node.name}: ProxyCommand ssh -W %h:%p {last}"
        raise Unreachable("ssh.jump", f"{ways}: more than one bastion is not supported", fix=(fix,))
    return _connection(first, config, _proxy_command(before))


def _proxy_command(options: dict[str, str | None]) -> str | bool:
    command = options.get("proxycommand")
    return shlex.join((sys.executable, "-c", _ALONE, command)) if command else False


def _connection(
    name: str,
    config: fabric.Config,
    gateway: fabric.Connection | str | bool,
    *,
    user: str | None = None,
    port: int | None = None,
) -> fabric.Connection:
    made = fabric.Connection(
        host=name,
        user=user,
        port=port,
        config=config,
        gateway=gateway,  # never None: fabric would then make one of its own, which trusts any host key
        forward_agent=False,
        connect_timeout=int(SECONDS),
        connect_kwargs={
            "banner_timeout": _BANNER_SECONDS,
            "auth_timeout": SECONDS,
            "channel_timeout": SECONDS,  # paramiko's own is an hour
        },
    )
    # As ssh does, pass over an IdentityFile that is not there; paramiko would give up.
    keys = made.connect_kwargs.get("key_filename", [])
    made.connect_kwargs["key_filename"] = [key for key in keys if os.path.isfile(key) and os.access(key, os.R_OK)]
    return made


def _identity(node: Node) -> str:
    path = Path(node.identity or "").expanduser()
    try:
        path.open("rb").close()
    except OSError as error:
        words = f"identity={node.identity} (hostfile, line {node.line}): {path}: {error.strerror}"
        raise Unreachable("ssh.auth", words, fix=("correct identity= in the hostfile",)) from None
    return str(path)


def _is_name(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except (socket.gaierror, UnicodeError):
        return False
    return True
