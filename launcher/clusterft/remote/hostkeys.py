"""Which host key a machine must present: the cluster's pins, else the user's known_hosts; none is learned unasked.

A pin wins: where the cluster has one for a host, the user's file is not even read. A line that cannot be read is
named, not skipped, as it may be the one that matters.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import fabric
import paramiko
from paramiko.hostkeys import HostKeyEntry, InvalidHostKey
from paramiko.ssh_exception import BadHostKeyException, SSHException

from clusterft.remote import private, way
from clusterft.remote.unreachable import Unreachable

_HASHED = re.compile(r"\|1\|[A-Za-z0-9+/]{27}=\|[A-Za-z0-9+/]{27}=\Z")  # salt and digest, 20 bytes each
_UNREADABLE = (InvalidHostKey, SSHException, ValueError, ArithmeticError)  # all that paramiko raises on odd bytes
_USERS = Path("~/.ssh/known_hosts")
# What an RSA key is called among the algorithms of the key exchange.
_ALGORITHMS = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}


@dataclass(frozen=True, slots=True)
class HostKey:
    """A host's public key."""

    kind: str
    base64: str
    fingerprint: str  # SHA256:...

    @property
    def line(self) -> str:
        """As known_hosts has it, after the name."""
        return f"{self.kind} {self.base64}"

    @property
    def file(self) -> str:
        """Where sshd of that host has it, unless it was told otherwise."""
        kind = "ecdsa" if self.kind.startswith("ecdsa-") else self.kind.removeprefix("ssh-")
        return f"/etc/ssh/ssh_host_{kind}_key.pub"

    @staticmethod
    def of(key: paramiko.PKey) -> HostKey:
        """What paramiko holds."""
        return HostKey(key.get_name(), key.get_base64(), str(key.fingerprint))


@dataclass(frozen=True, slots=True)
class Stranger:
    """A host that nobody has pinned, and the key that it presented; nobody has logged in there."""

    name: str  # as known_hosts has it: host, or [host]:port
    key: HostKey
    bastion: bool
    nodes: tuple[str, ...] = ()  # the nodes that are reached by it, which is one or all behind a bastion


class UnknownHostKey(SSHException):
    """The host presented a key that nobody has pinned."""

    def __init__(self, name: str, key: paramiko.PKey) -> None:
        super().__init__(f"{name} presented an unpinned {key.get_name()} key {key.fingerprint}")
        self.name = name
        self.key = HostKey.of(key)


class RevokedHostKey(SSHException):
    """The host presented a key that is marked @revoked."""


class Read:
    """One known_hosts file."""

    def __init__(self) -> None:
        self.revoked: set[bytes] = set()
        self._plain: dict[str, dict[str, paramiko.PKey]] = {}
        self._hashed: list[tuple[str, paramiko.PKey]] = []

    def add(self, name: str, key: paramiko.PKey) -> None:
        """One name of one line; the first line for a host and kind wins, as in paramiko."""
        if name.startswith("|"):
            self._hashed.append((name, key))
        else:
            self._plain.setdefault(name.lower(), {}).setdefault(key.get_name(), key)

    def lookup(self, name: str) -> dict[str, paramiko.PKey]:
        """The keys of a host by their kinds; a revoked key is no key, whatever the host."""
        found = dict(self._plain.get(name.lower(), {}))
        for hidden, key in self._hashed:
            if key.get_name() not in found and paramiko.HostKeys.hash_host(name, hidden) == hidden:
                found[key.get_name()] = key
        return {kind: key for kind, key in found.items() if key.asbytes() not in self.revoked}


Source = Literal["pins", "user", ""]


class Known:
    """The keys that one fleet goes by; both files are read once."""

    def __init__(self, pins: Path) -> None:
        self._pins = pins
        self._turn = threading.Lock()
        self._read: dict[Path, Read] = {}

    def expect(self, connection: fabric.Connection) -> Source:
        """Let an unopened connection accept the keys known for its host, and no other; where they are from."""
        name = way.known_as(connection)
        pinned = self._file(self._pins)
        found, revoked = pinned.lookup(name), pinned.revoked
        source: Source = "pins"
        if not found:
            # paramiko itself would ask the user's file first, so that a stale line there beats the pin.
            users = self._file(_USERS.expanduser())
            found, revoked = users.lookup(name), revoked | users.revoked
            source = "user" if found else ""
        client: paramiko.SSHClient = connection.client
        client.set_missing_host_key_policy(_Refuse(name, revoked))
        at = way.address(connection)  # where paramiko looks; known_as() may be an alias
        client.get_host_keys().clear()
        for kind, key in found.items():
            client.get_host_keys().add(at, kind, key)
        return source

    def reread(self) -> None:
        """The pins have changed."""
        with self._turn:
            self._read.pop(self._pins, None)

    def _file(self, path: Path) -> Read:
        with self._turn:
            if path not in self._read:
                self._read[path] = read(path)
            return self._read[path]


class _Refuse(paramiko.MissingHostKeyPolicy):
    """fabric's own default would add any key it meets."""

    def __init__(self, name: str, revoked: set[bytes]) -> None:
        self._name = name
        self._revoked = revoked

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        if key.asbytes() in self._revoked:
            raise RevokedHostKey(f"{self._name} presented a revoked {key.get_name()} key {key.fingerprint}")
        raise UnknownHostKey(self._name, key)


def prefer_known(transport: paramiko.Transport, connection: fabric.Connection) -> None:
    """Ask for the kinds of key that are known: a host has several, and would present another one."""
    known = connection.client.get_host_keys().lookup(way.address(connection)) or {}
    wanted = [name for kind in known for name in _ALGORITHMS.get(kind, (kind,))]
    options = transport.get_security_options()
    offered = list(options.key_types)
    first = [name for name in offered if name in wanted]
    options.key_types = (*first, *(name for name in offered if name not in first))


def changed(connection: fabric.Connection, error: BadHostKeyException, source: Source, name: str) -> Unreachable:
    """A key that is another than the one known: both fingerprints, and how to go on if that is right."""
    at = way.known_as(connection)
    words = (
        f"{at} presented {error.key.get_name()} {error.key.fingerprint}, "
        f"{'pinned' if source == 'pins' else 'in your known_hosts'} is "
        f"{error.expected_key.get_name()} {error.expected_key.fingerprint}"
    )
    key = HostKey.of(error.key)
    look = f"on the console of {name}: ssh-keygen -lf {key.file}   must show {key.fingerprint}"
    drop = f"clusterft up --forget-host-key {name}" if source == "pins" else f"ssh-keygen -R '{at}'"
    return Unreachable("ssh.hostkey-changed", words, fix=(look, f"if it does: {drop}"))


def pin(pins: Path, entries: Iterable[tuple[str, HostKey]]) -> bool:
    """Add keys to the pins (0600, in a directory 0700); whether there was anything to add."""
    have = read(pins)
    fresh = [f"{name} {key.line}\n" for name, key in dict.fromkeys(entries) if key.kind not in have.lookup(name)]
    if fresh:
        old = pins.read_text(encoding="utf-8", errors="surrogateescape") if pins.exists() else ""
        text = old + ("\n" if old and not old.endswith("\n") else "") + "".join(fresh)
        private.write(pins, text.encode("utf-8", errors="surrogateescape"))
    return bool(fresh)


def forget(pins: Path, host: str, port: int = way.SSH_PORT) -> bool:
    """Drop every pin of a host; whether there was one."""
    return forget_name(pins, way.name_of(host, port))


def forget_name(pins: Path, name: str) -> bool:
    """Drop every pin of a name as known_hosts has it; lines of other hosts stay as they are."""
    read(pins)  # a line that cannot be read is named before anything is changed
    if not pins.exists():
        return False
    lines = pins.read_text(encoding="utf-8", errors="surrogateescape").splitlines(keepends=True)
    kept = [line for number, line in enumerate(lines, start=1) if not _is_of(pins, number, line.strip(), name)]
    if len(kept) < len(lines):
        private.write(pins, "".join(kept).encode("utf-8", errors="surrogateescape"))
    return len(kept) < len(lines)


def _is_of(path: Path, number: int, line: str, name: str) -> bool:
    marker, entry = _entry(path, number, line)
    if marker or entry is None or entry.key is None:
        return False
    alone = Read()
    for one in entry.hostnames or ():
        alone.add(one, entry.key)
    return bool(alone.lookup(name))


def read(path: Path) -> Read:
    """The keys of a known_hosts file, none if there is no such file; Unreachable names a line that is broken."""
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise Unreachable("ssh.known-hosts", f"{path} cannot be read: {error.strerror}") from None
    found = Read()
    for number, line in enumerate(lines, start=1):
        marker, entry = _entry(path, number, line.strip())
        if entry is None or entry.key is None:
            continue
        if marker == "@revoked":
            found.revoked.add(entry.key.asbytes())
        elif not marker:  # @cert-authority: paramiko knows no host certificates, so such a host stays unknown
            for name in entry.hostnames or ():
                found.add(name, entry.key)
    return found


def _entry(path: Path, number: int, line: str) -> tuple[str, HostKeyEntry | None]:
    """(marker, entry) of one line; no entry for comments and for kinds of keys that paramiko does not know."""
    if not line or line.startswith("#"):
        return "", None
    marker, _, rest = line.partition(" ") if line.startswith("@") else ("", "", line)
    # OpenSSH takes any run of blanks between fields; paramiko counts each one as a separator.
    fields = rest.split()
    try:
        entry = HostKeyEntry.from_line(" ".join(fields)) if len(fields) >= 3 else None
    except _UNREADABLE:
        entry = None
        fields = []
    hashed = [name for name in fields[:1] if name.startswith("|")]
    if len(fields) < 3 or any(not _HASHED.match(name) for name in hashed):
        fix = f"mend or delete line {number} of {path}"
        raise Unreachable("ssh.known-hosts", f"{path}:{number}: not a line of known_hosts", fix=(fix,))
    return marker, entry
