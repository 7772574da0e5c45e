"""What one node sees of the others' ports: by a program on it, else by what its sshd can reach for us.

Owns how a node is asked, not who asks whom and when; judges nothing. A node that stops answering has no say.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from clusterft.probing.at_once import begun
from clusterft.probing.crew import Crew, Silent, Talk
from clusterft.remote import Remote, Unreachable

_HELLO = 8.0  # seconds for a program to begin; a container takes some
_ECHO = 2.0
_SMALL, _LARGE = 1 << 10, 1 << 16
_WORKERS = 32  # connections at one time that one node's sshd makes for us
Said = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom to dial, and where."""

    to: str
    address: str
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """What one node tells of its tries."""

    dials: tuple[Said, ...] = ()
    macs: Mapping[str, str] = field(default_factory=dict)
    unanswered: Mapping[str, str] = field(default_factory=dict)  # address -> interface: no answer to ARP


class Dialler(Protocol):
    """One node's part."""

    def dial(self, peers: tuple[Peer, ...], seconds: float, *, again: bool) -> Seen:
        """Try them all; Silent or Unreachable when the node itself is lost."""


class Program:
    """`agent/ports.py` at work on a node."""

    def __init__(self, crew: Crew, node: str) -> None:
        self._talk: Talk = crew.start(node, "ports")
        hello = self._talk.hear(_HELLO)
        self.node = node
        self.boot = str(hello.get("boot") or "")
        self.range = _range(hello.get("range"))
        self.high = 0  # the port that waits there; 0 without one
        self.busy: dict[int, str] = {}

    def listen(self, word: str, ports: tuple[int, ...], high: Iterable[int], *, wide: bool) -> None:
        """Open these ports, and one of the high ones."""
        asked = {"do": "listen", "name": self.node, "word": word, "ports": ports, "high": list(high), "wide": wide}
        said = self._ask(asked, 5.0)
        self.high = int(said["high"]) if isinstance(said.get("high"), int) else 0
        opened = said.get("ports")
        found = opened if isinstance(opened, dict) else {}
        self.busy = {port: str(found.get(str(port))) for port in ports if found.get(str(port)) != ""}

    def dial(self, peers: tuple[Peer, ...], seconds: float, *, again: bool) -> Seen:
        """All at once. `again`: also how small packets must be where large ones are lost."""
        told = [{"to": one.to, "address": one.address, "ports": one.ports} for one in peers]
        said = self._ask({"do": "dial", "peers": told, "seconds": seconds, "narrow": again}, seconds + 13.0)
        dials = said.get("dials")
        return Seen(
            tuple(one for one in dials if isinstance(one, dict)) if isinstance(dials, list) else (),
            _words(said.get("macs")),
            _words(said.get("unanswered")),
        )

    def measure(self, address: str, port: int, seconds: float, pings: int) -> Said:
        """What can be sent to one other in a moment."""
        amounts = {"seconds": seconds, "bytes": 32 << 20, "pings": pings, "ping_seconds": seconds}
        return self._ask({"do": "measure", "address": address, "port": port, **amounts}, seconds * 2 + 12.0)

    def close(self) -> None:
        """It ends, and its ports with it."""
        self._talk.close()

    def _ask(self, body: dict[str, Any], seconds: float) -> dict[str, Any]:
        self._talk.tell(body)
        return self._talk.hear(seconds)


class Forwarding:
    """A node without a program: its sshd makes the connections, and tells in its kernel's words why it cannot."""

    def __init__(self, remote: Remote, word: str) -> None:
        self._remote = remote
        self._word = word
        self.refused = ""  # why it does not even try

    def dial(self, peers: tuple[Peer, ...], seconds: float, *, again: bool) -> Seen:
        """A few dozen at once; what sshd refuses to try is no answer, and left out."""
        tries = [(peer, port) for peer in peers for port in peer.ports]
        found = begun(tries, lambda one: self._one(*one, seconds), width=_WORKERS)(None)
        return Seen(tuple(said for said in found.values() if said is not None))

    def _one(self, peer: Peer, port: int, seconds: float) -> dict[str, Any] | None:
        from clusterft.remote.forwarding import NotForwarded
        from clusterft.remote.ssh import SshRemote

        if not isinstance(self._remote, SshRemote):
            self.refused = "it is not reached by SSH"
            return None
        one: dict[str, Any] = {"to": peer.to, "address": peer.address, "port": port}
        began = time.monotonic()
        try:
            channel = self._remote.forward(peer.address, port, seconds)
        except NotForwarded as error:
            if not error.tried:
                self.refused = f"its sshd forwards nothing ({error.words})"
                return None
            return {**one, "error": error.words, "seconds": time.monotonic() - began}
        one["seconds"] = time.monotonic() - began
        try:
            _talk(one, channel, self._word)
        finally:
            channel.close()
        return one


def _talk(one: dict[str, Any], channel: Any, word: str) -> None:
    """As the program talks, at the other end of a forwarded connection."""
    channel.settimeout(_ECHO)
    try:
        channel.sendall((json.dumps({"word": word, "do": "echo"}) + "\n").encode())
        said = json.loads(_received(channel, b"\n", 512))
        one["name"], one["boot"] = str(said["name"]), str(said["boot"])
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        one["stranger"] = "timed out" if isinstance(error, TimeoutError) else "it answers something else"
        return
    for size, key in ((_SMALL, "small"), (_LARGE, "large")):
        began = time.monotonic()
        try:
            channel.sendall(bytes(size))
            _received(channel, None, size)
        except (OSError, EOFError) as error:
            one["lost"] = [key, "timed out" if isinstance(error, TimeoutError) else str(error), ""]
            return
    one["large"] = time.monotonic() - began


def _received(channel: Any, end: bytes | None, size: int) -> bytes:
    """Up to an end, or so many bytes."""
    said, deadline = b"", time.monotonic() + _ECHO
    while len(said) < size and not (end and said.endswith(end)):
        channel.settimeout(max(0.01, deadline - time.monotonic()))
        chunk = channel.recv(1 << 16)
        if not chunk:
            raise EOFError("closed by the other side")
        said += chunk
    return said


def _words(said: object) -> dict[str, str]:
    return {str(key): str(value) for key, value in said.items()} if isinstance(said, dict) else {}


def _range(said: object) -> tuple[int, int] | None:
    words = [str(word) for word in said] if isinstance(said, list) else []
    if len(words) != 2 or not all(word.isdecimal() and len(word) < 6 for word in words):
        return None
    low, high = int(words[0]), int(words[1])
    return (low, high) if 0 < low <= high < 65536 else None


def lost(error: Exception) -> str:
    """Why a node has no say, in words."""
    return error.what if isinstance(error, Unreachable) else str(error)


__all__ = ["Dialler", "Forwarding", "Peer", "Program", "Seen", "Silent", "lost"]
