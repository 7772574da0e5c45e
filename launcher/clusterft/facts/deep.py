"""What collectives and cards at work came to: `doctor --deep`. Pure.

A group that did not come back has no figure; its stage tells how far it got, its words are torch's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from clusterft.facts.share import number

Kind = Literal["node", "pair", "all", "part"]  # one node's ranks; two nodes; all of them; some, while searching
Backend = Literal["gloo", "nccl"]
_UNCONNECTED = ("timed out", "timeout", "connection refused", "no route to host", "unreachable")
RENDEZVOUS = ("store", "group", "first")  # stages in which nothing has been measured yet


@dataclass(frozen=True, slots=True)
class Said:
    """What the process of one slot has told, and how it ended."""

    node: str
    slot: int
    said: tuple[Mapping[str, Any], ...] = ()
    code: int | None = None  # None: it never told
    late: bool = False  # killed at its deadline
    stopped: bool = False  # killed by us, as another of its group had ended
    words: str = ""  # the end of its stderr, or why nothing was heard

    @property
    def stage(self) -> str:
        """The last that it has begun."""
        stages = [one["stage"] for one in self.said if isinstance(one.get("stage"), str)]
        return str(stages[-1]) if stages else "start"

    @property
    def done(self) -> Mapping[str, Any] | None:
        """Its result."""
        return next((one for one in self.said if one.get("stage") == "done"), None)

    @property
    def error(self) -> Mapping[str, Any] | None:
        """The exception that it ended with, as it told it."""
        return next((one for one in self.said if "error" in one), None)


@dataclass(frozen=True, slots=True)
class Group:
    """One collective among some nodes."""

    kind: Kind
    nodes: tuple[str, ...]
    ranks: int
    busbw: float | None = None  # GB/s; None: it did not come back
    seconds: float | None = None
    bytes: int | None = None
    spread: float | None = None  # between the slowest and the fastest repetition, of the median
    hung: bool = False  # it came to no end by its deadline, or nobody was to be reached
    stage: str = ""  # how far the slowest rank got, where there is no figure
    words: str = ""
    resent: Mapping[str, float] = field(default_factory=dict)  # node -> share of its TCP segments sent again

    @property
    def name(self) -> str:
        """How it is called in a table."""
        return "-".join(self.nodes)


@dataclass(frozen=True, slots=True)
class Card:
    """One slot at work."""

    node: str
    slot: int
    name: str = ""
    flops: float | None = None  # a second
    samples: tuple[tuple[float, float, float], ...] = ()  # watts, watts at most, utilisation in per cent
    unasked: str = ""  # why there are no more samples
    launch: float | None = None  # seconds of the host for one small kernel
    words: str = ""


@dataclass(frozen=True, slots=True)
class Direct:
    """Two cards of a node whose collectives hung: did they come back without direct copies between cards?"""

    node: str
    with_direct: bool
    without: bool
    words: str = ""


@dataclass(frozen=True, slots=True)
class Saving:
    """One node's part of a DeepSpeed checkpoint through the shared directory."""

    node: str
    stage: str
    ok: bool = False
    missing: tuple[str, ...] = ()  # files of other ranks that it did not see
    there: tuple[str, ...] = ()
    kind: str = ""  # of the exception
    errno: int | None = None
    free: float | None = None  # bytes that were left in the shared dir when saving failed
    words: str = ""
    late: bool = False


@dataclass(frozen=True, slots=True)
class Deep:
    """All of it."""

    backend: Backend = "gloo"
    groups: tuple[Group, ...] = ()
    cards: tuple[Card, ...] = ()
    direct: tuple[Direct, ...] = ()
    savings: Mapping[str, Saving] = field(default_factory=dict)
    directory: str = ""  # where the checkpoint was saved
    addresses: Mapping[str, str] = field(default_factory=dict)  # node -> how the others reach it
    interfaces: Mapping[str, str] = field(default_factory=dict)
    wires: Mapping[str, int] = field(default_factory=dict)  # node -> Mbit/s of its interface, where it is told
    equal: bool = False  # four or more nodes of one kind
    before: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # what earlier runs measured, by `key`
    missing: Mapping[str, str] = field(default_factory=dict)  # node -> why it took no part
    refused: str = ""  # why nothing was done at all
    notes: tuple[str, ...] = ()


def key(kind: str, where: Iterable[str], backend: str) -> str:
    """Under which name a figure is remembered."""
    return f"{backend} {kind} {' '.join(where)}"


def busbw(amount: float, seconds: float, ranks: int) -> float:
    """GB/s of an all-reduce, as nccl-tests counts it."""
    return amount / seconds * 2 * (ranks - 1) / ranks / 1e9


def group(kind: Kind, nodes: tuple[str, ...], said: Iterable[Said]) -> Group:
    """The processes of one collective -> what it came to."""
    ranks = tuple(said)
    results = [one.done for one in ranks]
    measured = [number(one.get("seconds")) for one in results if one]
    sizes = [number(one.get("bytes")) for one in results if one]
    times = [one for one in measured if one]
    amounts = [one for one in sizes if one]
    if len(times) < len(ranks) or len(amounts) < len(ranks) or not ranks:
        return _failed(kind, nodes, ranks)
    count, seconds, amount = len(ranks), max(times), amounts[0]
    spreads = [number(one.get("spread")) for one in results if one]
    return Group(
        kind=kind,
        nodes=nodes,
        ranks=count,
        busbw=busbw(amount, seconds, count),
        seconds=seconds,
        bytes=int(amount),
        spread=max((one for one in spreads if one is not None), default=None),
        resent={one.node: share for one in ranks if (share := _resent(one)) is not None},
    )


def card(said: Said) -> Card:
    """One slot's process -> what its card did."""
    done = said.done
    flops = number(done.get("flops")) if done else None
    if done is None or not flops:
        return Card(said.node, said.slot, words=_words(said))
    samples = done.get("samples")
    rows = samples if isinstance(samples, list) else []
    return Card(
        node=said.node,
        slot=said.slot,
        name=str(done.get("name", "")),
        flops=flops,
        samples=tuple(sample for row in rows if (sample := _sample(row))),
        unasked=str(done.get("unasked") or "")[:200],
        launch=number(done.get("launch")),
    )


def saving(said: Said) -> Saving:
    """One node's process -> its part of the checkpoint."""
    seen: Mapping[str, Any] = next((one for one in said.said if one.get("stage") == "seen"), {})
    error = said.error or {}
    errno = error.get("errno")
    done = said.done
    return Saving(
        node=said.node,
        stage=said.stage,
        ok=bool(done and done.get("same") is True),
        missing=_strings(seen.get("missing")),
        there=_strings(seen.get("there")),
        kind=str(error.get("kind", "")),
        errno=errno if isinstance(errno, int) else None,
        free=number(error.get("free")),
        words=_words(said) if not done else "" if done.get("same") is True else "other weights came back",
        late=said.late,
    )


def _failed(kind: Kind, nodes: tuple[str, ...], ranks: tuple[Said, ...]) -> Group:
    """The rank that got least far says most; one that was only left alone by its peers says least."""
    order = ("start", *RENDEZVOUS, "measure", "done")
    stages = [one.stage if one.stage in order else "start" for one in ranks]
    lines = [f"{one.node}: {words}" for one in ranks if (words := _words(one))]
    return Group(
        kind=kind,
        nodes=nodes,
        ranks=len(ranks),
        hung=any(one.late or _unconnected(one) for one in ranks),
        stage=min(stages, key=order.index, default="start"),
        words="\n".join(dict.fromkeys(lines))[:2000],
    )


def _unconnected(one: Said) -> bool:
    """Torch waited for as long as it was told to, or was turned away at once."""
    words = str((one.error or {}).get("error", "")).lower()
    return any(sign in words for sign in _UNCONNECTED)


def _words(one: Said) -> str:
    """Why it has no result, in a line."""
    if one.error:
        return str(one.error["error"]).strip().split("\n")[0][:400]
    if one.late:
        return f"no end in time, at stage {one.stage}"
    last = one.words.strip().splitlines()[-1:] or [""]
    if one.code is None:
        return last[0][:400] or "nothing more was heard of it"
    ended = f"ended by signal {-one.code}" if one.code < 0 else f"ended with {one.code}"
    return "" if one.done else f"{ended} at stage {one.stage}" + (f": {last[0][:300]}" if last[0] else "")


def _resent(one: Said) -> float | None:
    pair = (one.done or {}).get("segments")
    if not isinstance(pair, list) or len(pair) != 2:
        return None
    sent, again = number(pair[0]), number(pair[1])
    return again / sent if sent and again is not None and sent >= 100 else None


def _sample(row: object) -> tuple[float, float, float] | None:
    figures = [number(one) for one in row] if isinstance(row, list) else []
    known = [one for one in figures if one is not None]
    return (known[0], known[1], known[2]) if len(known) == len(figures) == 3 else None


def _strings(body: object) -> tuple[str, ...]:
    return tuple(str(one) for one in body) if isinstance(body, list) else ()
