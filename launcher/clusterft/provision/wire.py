"""Asking nodes: a script with its parameters goes out, an answer or a Finding comes back, the others go on."""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import Callable, Collection, Mapping
from typing import Protocol, TypeVar

from clusterft.findings import Finding, Outcome
from clusterft.places import NodePlaces
from clusterft.provision import scripts
from clusterft.provision.hostworld import File
from clusterft.provision.member import Member
from clusterft.provision.seen import Refused, Seen, Unreadable, answers, parse
from clusterft.remote import Remote, Unreachable

STAGE = "keys"  # of `up`, in what is reported
_SECONDS = 60.0  # making a key on a machine that has just booted, or waiting for a lock
_LOCK_SECONDS = 90.0
_DAMAGED = "is damaged"  # as LOOK says it, too
T = TypeVar("T")


class Nodes(Protocol):
    """What is needed of a Fleet."""

    def each(self, work: Callable[[str, Remote], T]) -> dict[str, T | Unreachable]:
        """Do the same on every reached node at once."""


class Ledger:
    """What changed on each node, in order, or what stopped it there."""

    def __init__(self, nodes: Collection[str]) -> None:
        self._changes: dict[str, list[str]] = {node: [] for node in nodes}
        self.failed: dict[str, Finding] = {}

    def add(self, node: str, *sentences: str) -> None:
        """Note what changed; an empty sentence is no change."""
        self._changes[node] += filter(None, sentences)

    def take(self, found: Mapping[str, T | Finding]) -> dict[str, T]:
        """Keep the failures, hand on the rest."""
        fine: dict[str, T] = {}
        for node, outcome in found.items():
            if isinstance(outcome, Finding):
                self.failed[node] = outcome
            else:
                fine[node] = outcome
        return fine

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """By node."""
        return {node: self.failed.get(node, tuple(changes)) for node, changes in self._changes.items()}


def each(fleet: Nodes, nodes: Collection[str], work: Callable[[str, Remote], T]) -> dict[str, T | Finding]:
    """Do it on some nodes at once; whatever a node refuses becomes its Finding."""

    def one(node: str, remote: Remote) -> T | Finding | None:
        if node not in nodes:
            return None
        try:
            return work(node, remote)
        except (Refused, Unreadable, ValueError) as error:
            return _finding(node, error)

    if not nodes:
        return {}
    found: dict[str, T | Finding] = {}
    for node, outcome in fleet.each(one).items():
        if isinstance(outcome, Unreachable):
            found[node] = Finding(outcome.id, "fail", (node,), outcome.what, fix=outcome.fix)
        elif outcome is not None:
            found[node] = outcome
    return found


def look(remote: Remote, member: Member, files: tuple[File, ...] = (), make: str = "no") -> Seen:
    """What is there; with `make`, also what only the node itself can make."""
    places = member.places
    paths = tuple(str(file.path) for file in files)
    given = (str(places.root), places.cluster, places.node, make, secrets.token_hex(16), *paths)
    word, out = run(remote, scripts.LOOK, given)
    seen = parse(out, word, len(files))
    if make == "key" and seen.public is None:  # said here, of this node: its peers have to write the key down
        raise Refused(f"{places.relay_key}.pub {_DAMAGED}: it holds no ed25519 public key")
    return seen


def look_home(remote: Remote, places: NodePlaces) -> Seen:
    """The same where only the login directory is known."""
    word, out = run(remote, scripts.LOOK, ("", places.cluster, places.node, "no", ""))
    return parse(out, word, 0)


def put(remote: Remote, member: Member, files: tuple[File, ...]) -> None:
    """Write files, each at once."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for index, file in enumerate(files):
            data = file.text.encode()
            entry = tarfile.TarInfo(str(index))
            entry.size, entry.mode = len(data), file.mode
            tar.addfile(entry, io.BytesIO(data))
    given = (str(member.places.root), *(str(file.path) for file in files))
    word, out = run(remote, scripts.PUT, given, packed.getvalue())
    answers(out, word)


def run(remote: Remote, script: str, given: tuple[str, ...], stdin: bytes = b"") -> tuple[str, str]:
    """(word, stdout) of one script; Refused when it broke off."""
    word = secrets.token_hex(8)
    seconds = _LOCK_SECONDS if script is scripts.KEYS else _SECONDS
    done = remote.run(("sh", "-c", script, "sh", word, *given), stdin=stdin, seconds=seconds)
    if done.code != 0:
        raise Refused(done.err.strip()[-500:] or f"the script ended with exit code {done.code}")
    return word, done.out


def _finding(node: str, error: Exception) -> Finding:
    words = str(error)
    if "ssh-keygen is not there" in words:
        fix = ("sudo apt-get install openssh-client",)
        return Finding("ssh.client", "fail", (node,), f"{node} has no ssh-keygen", words, fix=fix, needs_root=True)
    if "No space left" in words or "quota exceeded" in words:
        fix = ("make room in the home directory: du -xh ~ | sort -h | tail",)
        return Finding("os.disk-full", "fail", (node,), f"{node}: the home directory is full", words, fix=fix)
    if _DAMAGED in words:
        fix = (f"remove the file on {node}, then: clusterft up   (a new key is made)",)
        return Finding("ssh.relay", "fail", (node,), f"{node}: its relay key cannot be used", words, fix=fix)
    summary = f"{node}: the files under ~/.clusterft and ~/.ssh/authorized_keys cannot be written"
    fix = ("ls -ld ~ ~/.ssh ~/.ssh/authorized_keys ~/.clusterft   (on the node)",)
    return Finding("fs.home", "fail", (node,), summary, words, fix=fix)
