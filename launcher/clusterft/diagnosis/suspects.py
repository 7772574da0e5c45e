"""Who is to blame when all complain of others: the rank that is behind, or that did not complain. Pure."""

from __future__ import annotations

import re
from dataclasses import replace

from clusterft.diagnosis.candidate import Candidate
from clusterft.diagnosis.heard import Heard, Quote, Sighting, Voice

_PEER = (
    "on {node}: uptime; sudo dmesg -T | tail   did it reboot, lose power or its network?",
    "look at what it wrote last",
)


def blame(heard: Heard, echoes: list[Candidate], found: list[Candidate]) -> Candidate:
    """From echoes alone."""
    waited = [one for one in echoes if one.id == "run.watchdog"]
    first = min(waited or echoes, key=lambda one: (one.at if one.at is not None else float("inf"), one.order))
    behind = _behind(heard)
    if behind is not None:
        voice, seen, words = behind
        return replace(
            first, id="run.watchdog", node=voice.node, rank=voice.rank, cause=words,
            summary=f"rank {voice.rank} on {voice.node}: {words}" if voice.node else f"rank {voice.rank}: {words}",
            quotes=(seen.quote, *first.quotes),
        )  # fmt: skip
    quiet = _quiet(heard, echoes)
    if not quiet:
        return replace(first, quotes=tuple(quote for one in echoes[:4] for quote in one.quotes[-2:]))
    return _named(heard, first, quiet, hung=bool(waited))


# A program's own word for its end.
_THROUGH = re.compile(r"\b(?:done|finished|complete|completed|all saved)\b", re.IGNORECASE)


def odd_one(chosen: Candidate, found: list[Candidate]) -> Candidate:
    """Of ranks that called different collectives, the one that is alone with its own; of two, neither."""
    called = dict(one.called for one in found if one.called)
    kinds = list(called.values())
    alone = [rank for rank, kind in called.items() if kinds.count(kind) == 1]
    if len(called) < 3 or len(alone) != 1:
        ranks = ", ".join(sorted(called, key=int))
        return replace(chosen, node="", rank=None, summary=f"ranks {ranks} called different collectives")
    rank = int(alone[0])
    others = next(kind for kind in kinds if kind != called[alone[0]])
    words = f"rank {rank} called {called[alone[0]]} while the others called {others}"
    return replace(chosen, node="", rank=rank, summary=words)


def _behind(heard: Heard) -> tuple[Voice, Sighting, str] | None:
    """NCCL's watchdog counts collectives: the lowest number, or another operation, is behind."""
    seen: dict[int, tuple[Voice, Sighting]] = {}
    for voice in heard.voices:
        for one in voice.sightings.values():
            if one.match.words.get("seq") and voice.rank is not None:
                seen.setdefault(voice.rank, (voice, one))
    if len(seen) < 2 or (heard.world and len(seen) < heard.world):
        return None
    numbers = sorted((int(one.match.words["seq"]), rank) for rank, (_, one) in seen.items())
    if numbers[0][0] < numbers[1][0]:
        voice, one = seen[numbers[0][1]]
        return voice, one, f"it is behind: at collective {numbers[0][0]}, the others at {numbers[1][0]}"
    kinds = [one.match.words.get("op", "") for _, one in seen.values()]
    odd = [rank for rank, (_, one) in seen.items() if kinds.count(one.match.words.get("op", "")) == 1]
    if len(set(kinds)) > 1 and len(odd) == 1:
        voice, one = seen[odd[0]]
        common = next(kind for kind in kinds if kind != one.match.words.get("op"))
        return voice, one, f"it called {one.match.words['op']} while the others called {common}"
    return None


def _quiet(heard: Heard, echoes: list[Candidate]) -> list[tuple[str, int | None]]:
    """Ranks, else nodes, that are known and did not complain."""
    complained = {one.rank for one in echoes if one.rank is not None}
    known = seated(heard)
    quiet: list[tuple[str, int | None]] = [(known[rank], rank) for rank in sorted(known) if rank not in complained]
    if quiet and complained:
        return quiet
    nodes = {one.node for one in echoes}
    silent = dict.fromkeys(voice.node for voice in heard.voices if voice.node and voice.node not in nodes)
    return [
        (node, None) for node in (*silent, *(one for one in heard.nodes if one not in nodes and one not in silent))
    ]


def seated(heard: Heard) -> dict[int, str]:
    """The ranks that are known of, and their nodes as far as any line tells."""
    known: dict[int, str] = {}
    for voice in heard.voices:
        if voice.rank is not None:
            known.setdefault(voice.rank, voice.node)
    for end in heard.ends:
        if end.rank is not None:
            known.setdefault(end.rank, end.node)
    for node, ranks in heard.places.items():
        for rank in ranks:
            known.setdefault(rank, node)
    for rank in range(heard.world or 0):
        known.setdefault(rank, "")
    return known


def _named(heard: Heard, first: Candidate, quiet: list[tuple[str, int | None]], *, hung: bool) -> Candidate:
    nodes = list(dict.fromkeys(node for node, _ in quiet))
    node = nodes[0] if len(nodes) == 1 else ""
    rank = quiet[0][1] if len(quiet) == 1 else None
    whole = rank is None and bool(node)
    last = _last(heard, node, rank)
    who = f"rank {rank} on {node}" if rank is not None and node else f"rank {rank}" if rank is not None else node
    if not who:
        who = (
            "ranks " + ", ".join(str(one) for _, one in quiet)
            if quiet[0][1] is not None
            else "nodes " + " ".join(nodes)
        )
    if hung:
        words, identity = "the others waited in vain for it, and it said nothing", "run.watchdog"
    else:
        words, identity = (
            "the others lost it, and its log ends without a word",
            "node-lost" if whole else "peer-lost",
        )
    if not hung and last and _THROUGH.search(last[0].text):
        return _through(first, node, rank, who, last)
    fix = first.fix if hung else tuple(step.replace("{node}", node or "that node") for step in _PEER)
    return replace(
        first, id=identity, node=node, rank=rank, summary=f"{who}: {words}", cause=words, fix=fix,
        quotes=(*last, *first.quotes),
    )  # fmt: skip


def _through(first: Candidate, node: str, rank: int | None, who: str, last: tuple[Quote, ...]) -> Candidate:
    """It says itself that it came to its end, and the others were still at work."""
    where = node or "its node"
    return replace(
        first,
        id="job.uneven",
        node=node,
        rank=rank,
        summary=f"{who} had come to its end while the others went on, and they lost it",
        cause="it had fewer steps to do than the others: its data ran out first, or it left the loop by itself",
        fix=(
            "give every rank as many batches: DistributedSampler(..., drop_last=True), or count steps",
            f"on {where}: count what its loader finds; are there fewer files than on the other nodes?",
            "or wrap the loop in torch.distributed.algorithms.Join",
        ),
        quotes=(*last, *first.quotes),
    )


def _last(heard: Heard, node: str, rank: int | None) -> tuple[Quote, ...]:
    """The last line of those that are quiet."""
    voices = [one for one in heard.voices if one.tail and one.node == node and (rank is None or one.rank == rank)]
    return tuple(one.tail[-1] for one in voices[:1])
