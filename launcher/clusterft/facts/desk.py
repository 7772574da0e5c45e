"""What is true of this machine, the controller, that matters to a cluster: its files, its ssh, its ways. Pure."""

from __future__ import annotations

from typing import NamedTuple


class OwnFile(NamedTuple):
    """A file or directory of ours with another mode than it must have."""

    path: str
    mode: int
    wanted: int


class OpenKey(NamedTuple):
    """A private key of the user's that others may read."""

    path: str
    mode: int
    nodes: tuple[str, ...]  # that it is for


class SharedLogin(NamedTuple):
    """A connection that the user's ssh keeps open to a node, for all commands."""

    node: str
    socket: str
    groups: tuple[str, ...]  # that commands have over it


class Closed(NamedTuple):
    """A node that this machine does not reach, and which of the others do."""

    node: str
    address: str
    port: int
    own: str  # this machine's address on the way there; empty if unknown
    by: tuple[str, ...]
    not_by: tuple[str, ...]


class Desk(NamedTuple):
    """The controller at one moment."""

    loose: tuple[OwnFile, ...] = ()
    open_keys: tuple[OpenKey, ...] = ()
    shared: tuple[SharedLogin, ...] = ()
    crowded: tuple[str, ...] = ()  # nodes whose sshd had too few channels for two commands at once
    closed: tuple[Closed, ...] = ()
    logins: tuple[float, ...] = ()  # seconds that each login took
