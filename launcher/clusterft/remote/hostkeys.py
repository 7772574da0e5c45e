"""Which host key a machine must present: the cluster's pins, else the user's known_hosts. Nothing is ever learned.

A pin wins: where the cluster has one for a host, the user's file is not even read. A line that cannot be read is
named, not skipped, as it may be the one that matters.
"""

from __future__ import annotations

import re
from pathlib import Path

import fabric
import paramiko
from paramiko.hostkeys import HostKeyEntry, InvalidHostKey
from paramiko.ssh_exception import SSHException

from clusterft.remote.protocol import Unreachable

_SSH_PORT = 22
_HASHED = re.compile(r"\|1\|[A-Za-z0-9+/]{27}=\|[A-Za-z0-9+/]{27}=\Z")  # salt and digest, 20 bytes each
_UNREADABLE = (InvalidHostKey, SSHException, ValueError, ArithmeticError)  # all that paramiko raises on odd bytes


class UnknownHostKey(SSHException):
    """The host presented a key that nobody has pinned."""

    def __init__(self, host: str, key: paramiko.PKey) -> None:
        super().__init__(f"{host} presented an unpinned {key.get_name()} key {key.fingerprint}")


class _Refuse(paramiko.MissingHostKeyPolicy):
    """fabric's own default would add any key it meets."""

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        raise UnknownHostKey(hostname, key)


def expect(connection: fabric.Connection, pins: Path) -> None:
    """Let an unopened connection accept the keys known for its host, and no other."""
    host, port = str(connection.host), int(connection.port)
    name = host if port == _SSH_PORT else f"[{host}]:{port}"
    client: paramiko.SSHClient = connection.client
    client.set_missing_host_key_policy(_Refuse())
    # paramiko itself would ask the user's file first, so that a stale line there beats the pin.
    known = read(pins).lookup(name) or read(Path("~/.ssh/known_hosts").expanduser()).lookup(name)
    for kind, key in (known or {}).items():
        client.get_host_keys().add(name, kind, key)


def read(path: Path) -> paramiko.HostKeys:
    """The keys of a known_hosts file, none if there is no such file; Unreachable names a line that is broken."""
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise Unreachable("ssh.known-hosts", f"{path} cannot be read: {error.strerror}") from None
    found: list[HostKeyEntry] = []
    revoked: set[bytes] = set()
    for number, line in enumerate(lines, start=1):
        marker, entry = _entry(path, number, line.strip())
        if entry is None or entry.key is None:
            continue
        if marker == "@revoked":
            revoked.add(entry.key.asbytes())
        elif not marker:  # @cert-authority: paramiko knows no host certificates, so such a host stays unknown
            found.append(entry)
    keys = paramiko.HostKeys()
    for entry in found:
        for name in entry.hostnames or ():
            # The first line for a host and kind wins, as in paramiko. A revoked key is no key, whatever the host.
            kind, known = entry.key.get_name(), keys.lookup(name)
            if entry.key.asbytes() not in revoked and not (known and kind in known):
                keys.add(name, kind, entry.key)
    return keys


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
