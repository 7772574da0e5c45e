"""A shell on a node for a person: the argv of OpenSSH's own client, taking exactly our way. Runs nothing.

Everything is given on the command line, so that ssh asks no other file whom to believe: the cluster's pins alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

import fabric

from clusterft.hosts import Node
from clusterft.remote import way


def ssh_argv(
    node: Node, pins: Path, key: Path | None, *, tty: bool = True, command: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """ssh to a node: a shell, or a command whose words reach it as they are; Unreachable if there is no way."""
    connection = way.Ways().to(node)
    gateway = connection.gateway
    before: tuple[str, ...] = ("-o", "ProxyJump=none")
    if isinstance(gateway, fabric.Connection):
        inner = ("ssh", *_options(gateway, pins, key), *_proxy(gateway.gateway), "-W", "[%h]:%p")
        # What ssh expands in the outer command must survive it: %h and %p are the node's, all else is ours.
        words = (_escaped(word) if word != "[%h]:%p" else word for word in inner)
        before = ("-o", f"ProxyCommand={shlex.join((*words, '--', _escaped(_destination(gateway))))}")
    elif isinstance(gateway, str):
        before = _proxy(gateway)
    return (
        "ssh",
        "-t" if tty else "-T",
        *_options(connection, pins, key),
        *before,
        "--",
        _destination(connection),
        *((shlex.join(command),) if command else ()),
    )


def _options(connection: fabric.Connection, pins: Path, key: Path | None) -> Iterable[str]:
    files = [*connection.connect_kwargs["key_filename"], *([str(key)] if key and key.is_file() else [])]
    alias = connection.ssh_config.get("hostkeyalias")
    given = {
        "HostName": str(connection.host),
        "Port": str(int(connection.port)),
        "User": str(connection.user),
        "UserKnownHostsFile": _quoted(pins),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "CheckHostIP": "no",
        "ConnectTimeout": f"{way.SECONDS:.0f}",
        "ServerAliveInterval": "15",
        **({"HostKeyAlias": str(alias)} if alias else {}),
    }
    yield from (word for name, value in given.items() for word in ("-o", f"{name}={value}"))
    yield from (word for file in dict.fromkeys(files) for word in ("-o", f"IdentityFile={_quoted(Path(file))}"))


def _proxy(gateway: object) -> tuple[str, ...]:
    """A ProxyCommand as it stands; none must not be found in ~/.ssh/config after all."""
    if isinstance(gateway, str) and gateway:
        return ("-o", f"ProxyCommand={gateway}")
    return ("-o", "ProxyJump=none")


def _destination(connection: fabric.Connection) -> str:
    """The name by which ~/.ssh/config knows it; where that is, HostName says."""
    return str(connection.original_host)


def _quoted(path: Path) -> str:
    """A path as a value of ssh_config: blanks are kept by quotes, and % is a token's first letter."""
    return '"' + _escaped(str(path)) + '"'


def _escaped(word: str) -> str:
    return word.replace("%", "%%")
