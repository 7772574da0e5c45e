"""Candidate: something that may have been the first cause; and how one is worded. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from clusterft.diagnosis.heard import End, Quote, Sighting
from clusterft.diagnosis.signatures import Match, told

SAID, SPECIFIC, OWN, CONTACT, ECHO, CODE = range(6)  # strengths, the strongest first
_ELSEWHERE = frozenset({"rdzv.partial"})  # said by those that came, of those that did not


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that may have been first."""

    strength: int
    id: str
    node: str
    rank: int | None
    at: float | None  # on the clock that all are compared by
    order: int  # in which it was read
    summary: str
    cause: str = ""
    fix: tuple[str, ...] = ()
    quotes: tuple[Quote, ...] = ()
    gang: bool = False  # what the head found: it has heard all of them
    kernel: bool = False  # what a kernel said, and no end of a process is known to be of it
    ends: tuple[End, ...] = ()
    called: tuple[str, str] | None = None  # (rank, collective), where the others called something else
    built: Mapping[str, str] | None = None  # what torch says of this rank's model and of another's, in its words


def as_signature(base: Candidate, strength: int, match: Match, node: str) -> Candidate:
    words = {**match.words, "node": node or "that node"}
    rank, where = base.rank, node
    if match.words.get("rank"):
        rank, where = int(match.words["rank"]), node if int(match.words["rank"]) == base.rank else ""
    elif match.signature.id in _ELSEWHERE:
        rank, where = None, ""
    return replace(
        base,
        strength=strength,
        id=match.signature.id,
        rank=rank,
        node=where,
        called=(match.words["one"], match.words["op"]) if match.words.get("one") else None,
        built=match.words if match.words.get("mine") else None,
        cause=told(match.signature.cause, words),
        fix=tuple(told(step, words) for step in match.signature.fix),
    )


def as_seen(
    one: Sighting, strength: int, rank: int | None, at: float | None, quotes: tuple[Quote, ...]
) -> Candidate:
    base = Candidate(
        strength, "", one.node, rank, at, one.order, who(one.node, rank, short(one.quote.text)), quotes=quotes
    )
    return as_signature(base, strength, one.match, one.node)


def who(node: str, rank: int | None, text: str) -> str:
    where = f"rank {rank} on {node}" if rank is not None and node else f"rank {rank}" if rank is not None else node
    return f"{where}: {text}" if where else text


def short(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."
