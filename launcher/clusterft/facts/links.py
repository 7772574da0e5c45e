"""What every node could reach of every other: the port matrix. Pure; nothing in here is a judgement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["rendezvous", "high"]
_FEWER = 0.9  # of connections, which a network that is well makes all
SPAN = (
    64  # ports: for the rendezvous of one attempt after the other; as many again for the supervisors' own meeting
)
# What a kernel says, and what sshd says for it.
_WORDS = {
    "timed out": "timed out",
    "connection timed out": "timed out",
    "connection refused": "connection refused",
    "no route to host": "no route to host",
    "network is unreachable": "network is unreachable",
}


@dataclass(frozen=True, slots=True)
class Dial:
    """One node's try to reach a port of another."""

    source: str
    target: str
    address: str
    port: int
    kind: Kind
    listened: bool = True  # whether a program of ours waits there; else a refusal is an answer
    error: str = ""  # empty: it came about
    seconds: float = 0.0  # until it did, or did not
    stranger: str = ""  # it came about, and whoever answered was not ours
    boot: str = ""  # the boot id of who answered, and what that one is called
    name: str = ""
    large: float | None = None  # seconds of an echo of 64 KB
    lost: tuple[str, str, str] | None = None  # small or large, why, and on which way: there, back or empty
    passes: int | None = None  # the largest MTU of those tried with which 64 KB came through; 0: none of them
    mss: int | None = None
    some: tuple[int, int] | None = None  # of more connections that were made at once: how many came about

    @property
    def partly(self) -> bool:
        """Whether some connections come about and others do not, whatever became of the first."""
        return self.some is not None and 0 < self.some[0] <= _FEWER * self.some[1]

    @property
    def reached(self) -> bool:
        """Whether packets and answers pass; where nobody listens, a refusal is one."""
        return self.partly or not self.error or (not self.listened and self.error == "connection refused")

    @property
    def told(self) -> str:
        """In words, as evidence."""
        after = "at once" if self.seconds < 0.1 else f"after {self.seconds:.1f} s"
        way = f"{self.source} → {self.target} {self.address} port {self.port}"
        if self.partly and self.some:
            return f"{way}: {self.some[0]} of {self.some[1]} connections at once came about"
        return f"{way}: {self.error} {after}" if self.error else f"{way}: open"


@dataclass(frozen=True, slots=True)
class Flow:
    """What one node could send to another in a moment."""

    source: str
    target: str
    rate: float | None = None  # bytes a second
    packets: int = 0  # small ones, one at a time, there and back
    again: int | None = None  # of those, sent more than once


@dataclass(frozen=True, slots=True)
class Links:
    """The matrix."""

    addresses: Mapping[str, str] = field(default_factory=dict)  # node -> where the others dial it
    dials: tuple[Dial, ...] = ()
    flows: tuple[Flow, ...] = ()
    busy: Mapping[str, Mapping[int, str]] = field(default_factory=dict)  # node -> port -> why it could not be had
    macs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # node -> neighbour's address -> its MAC
    # node -> address that it asked its own wire for, without an answer -> by which interface; IPv4 alone
    unanswered: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)  # addresses on a network that does connect all
    missing: Mapping[str, str] = field(default_factory=dict)  # node -> why nothing is known of it
    machines: tuple[str, ...] = ()  # nodes that were to try each other
    mute: Mapping[str, str] = field(default_factory=dict)  # node -> why it could dial nobody
    unsent: Mapping[str, str] = field(default_factory=dict)  # node -> why nothing was sent to be measured
    notes: tuple[str, ...] = ()
    own: Mapping[str, Dial] = field(
        default_factory=dict
    )  # node -> its try to reach itself, of those that made one

    def of(self, kind: Kind) -> Iterator[Dial]:
        """The tries of one kind."""
        return (one for one in self.dials if one.kind == kind)


def dial(source: str, kind: Kind, said: Mapping[str, Any], *, listened: bool = True) -> Dial:
    """What a node's program tells of one try; whatever is not as it should be is left out."""
    lost = said.get("lost")
    whole = isinstance(lost, list) and len(lost) == 3
    return Dial(
        source=source,
        target=str(said.get("to")),
        address=str(said.get("address")),
        port=_whole(said.get("port")) or 0,
        kind=kind,
        listened=listened,
        error=plain(str(said.get("error") or "")),
        seconds=_seconds(said.get("seconds")) or 0.0,
        stranger=str(said.get("stranger") or "")[:200],
        boot=str(said.get("boot") or "")[:64],
        name=str(said.get("name") or "")[:64],
        large=_seconds(said.get("large")),
        lost=(str(lost[0]), plain(str(lost[1])), str(lost[2])) if lost and whole else None,
        passes=_whole(said.get("passes")),
        mss=_whole(said.get("mss")),
        some=_pair(said.get("some")),
    )


def flow(source: str, target: str, said: Mapping[str, Any]) -> Flow:
    """What a node's program tells of what it could send."""
    own, theirs = _whole(said.get("again")), _whole(said.get("again_there"))
    return Flow(
        source=source,
        target=target,
        rate=_seconds(said.get("rate")),
        packets=2 * (_whole(said.get("pings")) or 0),
        again=None if own is None or theirs is None else own + theirs,
    )


def joined(one: Flow, other: Flow) -> Flow:
    """Two measurements of one way: the better rate, and all packets."""
    again = None if one.again is None or other.again is None else one.again + other.again
    rate = max((each.rate for each in (one, other) if each.rate), default=None)
    return Flow(one.source, one.target, rate, one.packets + other.packets, again)


def plain(words: str) -> str:
    """An error in the kernel's words, whoever passes them on."""
    return _WORDS.get(words.strip().lower(), words.strip()[:200])


def _pair(value: object) -> tuple[int, int] | None:
    whole = [_whole(one) for one in value] if isinstance(value, list) else []
    return (whole[0], whole[1]) if len(whole) == 2 and whole[0] is not None and whole[1] is not None else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40 else None


def _seconds(value: object) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15
    return float(value) if good else None  # type: ignore[arg-type]
