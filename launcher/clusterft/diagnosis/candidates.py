"""Heard -> candidates for the first cause: each with its strength, its time and the lines that prove it. Pure.

Owns what is an own end and what the echo of another's: an exception whose first error speaks of a peer, or that
was raised within a collective, tells of somebody else. Ranks nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from clusterft.diagnosis import known
from clusterft.diagnosis.candidate import (
    CODE,
    CONTACT,
    ECHO,
    OWN,
    SAID,
    SPECIFIC,
    Candidate,
    as_seen,
    as_signature,
    short,
    who,
)
from clusterft.diagnosis.deaths import AROUND, echoes, killed_by, merged, of_end, placed
from clusterft.diagnosis.ends import LAUNCHERS
from clusterft.diagnosis.heard import Block, End, Heard, Quote, Sighting, Told, Voice
from clusterft.diagnosis.signatures import MEMORY, Match, find, told

_NEAR = 400  # lines before a voice's last one in which it may speak of its end
_SILENT = frozenset({"ckpt.latest", "job.hostfile"})  # a warning once, and then all goes wrong without a word
_COLLECTIVE = re.compile(r"torch/distributed/|c10d|deepspeed/comm/|accelerate/utils/operations")
_WAITED = re.compile(r"(torch\.distributed\.)?(RuntimeError|Dist\w*Error|ConnectionError|TimeoutError|OSError)\b")
_CRASH = re.compile(r"Fatal Python error: |terminate called|.*(Segmentation fault|Bus error|Aborted)")
_LIBRARY = re.compile(r"site-packages/|dist-packages/|<frozen|/lib/python3")
_NAN = re.compile(
    r"FloatingPointError|\b(loss|gradients?|grad_norm)\b.{0,40}\b(nan|inf)\b|\bnan\b.{0,20}\bloss\b", re.I
)
_TRAINS = re.compile(r"^(python|pt_|torchrun|deepspeed|accelerate)")
_PAST = 900.0  # seconds after the last line: some only notice that a share hangs when a watchdog ends them
_HARMLESS_XIDS = frozenset({"43", "45", "63"})  # 43 and 45 are told of any program that dies
_IDS = {  # classes of the trainer that the catalogue has an id for
    "host-oom": "os.oom",
    "disk-full": "os.disk-full",
    "ecc": "gpu.ecc",
    "oom": "job.memory",
}
_NOBODYS = frozenset({"rdzv.partial", "interrupted", "ctl.sighup", "job.hostfile", "ckpt.latest"})
_OF_PEERS = frozenset({"peer-lost"})


def gather(heard: Heard) -> list[Candidate]:
    """All of them."""
    ends = merged(heard)
    found = [
        *_told(heard),
        *_kernel(heard, ends),
        *(one for voice in heard.voices for one in _of_voice(heard, voice, ends)),
        *(one for end in ends for one in of_end(heard, end)),
    ]
    return _ranked(heard, [_explained(heard, one) for one in found])


def _ranked(heard: Heard, found: list[Candidate]) -> list[Candidate]:
    """A line that does not say whose it is, such as NCCL's, is that of the rank that failed of it, or is alone."""
    kept: list[Candidate] = []
    lines: dict[int, tuple[Quote, ...]] = {}  # of those that say no rank, by the place of who failed of it
    for one in found:
        nobodys = one.rank is None and one.quotes and not one.ends and not one.gang
        same = [
            place for place, other in enumerate(found) if nobodys and other.rank is not None and _alike(one, other)
        ]
        if same:
            lines[id(found[same[0]])] = (*lines.get(id(found[same[0]]), ()), *one.quotes)
        else:
            kept.append(_alone(heard, one) if nobodys else one)
    return [replace(one, quotes=(*lines.get(id(one), ()), *one.quotes)) for one in kept]


def _explained(heard: Heard, one: Candidate) -> Candidate:
    """A worker that was killed while the kernel of its node killed for memory."""
    if one.id != "killed" or one.strength != SPECIFIC:
        return one
    for seen in heard.kernel:
        at = heard.true(seen.node, seen.at)
        near = at is None or one.at is None or abs(at - one.at) < AROUND
        if seen.match.signature.id == "os.oom" and seen.node == one.node and near:
            cause = told(seen.match.signature.cause, seen.match.words)
            return replace(one, id="os.oom", cause=cause, fix=(MEMORY,), quotes=(seen.quote, *one.quotes))
    return one


def _alike(one: Candidate, other: Candidate) -> bool:
    return (one.id, one.node) == (other.id, other.node) and one.strength == other.strength


def _alone(heard: Heard, one: Candidate) -> Candidate:
    """With the rank that is the only one in its file."""
    if one.id in _NOBODYS or one.strength not in (SPECIFIC, CONTACT):
        return one
    name = one.quotes[0].where.rpartition(":")[0]
    ranks = {voice.rank for voice in heard.voices if voice.source.name == name and voice.rank is not None}
    if len(ranks) != 1:
        return one
    (rank,) = ranks
    return replace(one, rank=rank, summary=who(one.node, rank, one.summary.removeprefix(f"{one.node}: ")))


# -- what the trainer and the gang said ----------------------------------------------------------


def _told(heard: Heard) -> Iterator[Candidate]:
    for one in heard.told:
        if one.failure in _OF_PEERS or (
            one.gang and one.failure in ("launcher", "exception", "bug", "killed", "crash")
        ):
            strength = CODE if one.gang and one.failure not in _OF_PEERS else ECHO
        else:
            strength = SAID if one.failure != "bug" else ECHO if _of_a_peer(one.text) else OWN
        yield Candidate(
            strength,
            "exception" if one.failure == "bug" else _IDS.get(one.failure, one.failure),
            one.node,
            one.rank,
            heard.true(one.node, one.at),
            one.order,
            who(one.node, one.rank, one.text),
            cause=one.text,
            fix=_remedies(one),
            quotes=(one.quote,),
            gang=one.gang,
        )


def _of_a_peer(text: str) -> bool:
    """Whether an error that nobody foresaw speaks of another rank's end, or of the way to it."""
    return any(match.signature.weight in ("secondary", "contact") for match in find(text, known.ALL))


def _remedies(one: Told) -> tuple[str, ...]:
    if one.remedy:
        return (one.remedy,)
    if one.failure in ("node-lost", "head-lost", "container", "interrupted") and one.node:
        return (
            f"on {one.node}: uptime; sudo dmesg -T | tail   did it reboot, lose power, or kill the supervisor?",
        )
    if one.failure in ("host-oom", "killed") and one.node:
        return (f"on {one.node}: sudo dmesg -T | grep -i -E 'killed process|out of memory'", MEMORY)
    return ()


# -- what kernels said ---------------------------------------------------------------------------


def _kernel(heard: Heard, ends: list[End]) -> Iterator[Candidate]:
    """While the run was there: what came before it is another's, or the run would have met it at once."""
    times = [at for voice in heard.voices for at in (voice.first_at, voice.last_at) if at is not None]
    for one in heard.kernel:
        if one.match.signature.weight != "kernel" or one.match.words.get("xid") in _HARMLESS_XIDS:
            continue
        if one.at is not None and times and not min(times) - AROUND <= one.at <= max(times) + _PAST:
            continue
        end, strength = None, SPECIFIC
        if one.match.signature.id == "os.oom":
            end = killed_by(one, ends)
            if end is None and not _TRAINS.match(one.match.words.get("name", "")):
                continue
            strength = (
                SPECIFIC if end else CONTACT
            )  # another program's on the same node, if anybody ended otherwise
        seen = as_seen(one, strength, end.rank if end else None, heard.true(one.node, one.at), (one.quote,))
        yield replace(seen, kernel=end is None)


# -- what ranks and launchers wrote --------------------------------------------------------------


def _of_voice(heard: Heard, voice: Voice, ends: list[End]) -> Iterator[Candidate]:
    blocks = [
        one
        for one in voice.blocks
        if voice.lines - one.last <= _NEAR and not _is_launchers(one) and (one.errors or one.frames)
    ]
    if voice.rank is not None and blocks:
        blocks = blocks[:1] if not blocks[0].bare else blocks[:2]
    within = {quote.where for one in blocks for _, quote, _ in one.matches}
    for place, block in enumerate(blocks):
        yield _of_block(heard, voice, block, _owner(voice, block, blocks, place, ends))
    for seen in voice.sightings.values():
        if seen.quote.where not in within:
            yield from _of_sighting(heard, voice, seen, ends)


def _is_launchers(block: Block) -> bool:
    texts = [one.text for one in block.errors]
    return bool(texts) and all(LAUNCHERS.match(text) for text in texts)


def _owner(voice: Voice, block: Block, blocks: list[Block], place: int, ends: list[End]) -> End | None:
    """The process that ended with this traceback, as its launcher numbered it."""
    mine = [end for end in ends if end.source.name == voice.source.name or (end.node == voice.node != "")]
    if voice.rank is not None:
        return next((end for end in mine if end.rank == voice.rank), None)
    if voice.local is not None:
        return next((end for end in mine if end.local == voice.local and end.code > 0), None)
    failed = [end for end in mine if end.code > 0 and (end.rank is not None or end.local is not None)]
    if len(failed) == 1:
        return failed[0]
    return failed[place] if len(failed) == len(blocks) else next((end for end in failed if end.first), None)


def _of_block(heard: Heard, voice: Voice, block: Block, end: End | None) -> Candidate:
    first = block.errors[0] if block.errors else block.frames[-1]
    last = block.errors[-1] if block.errors else first
    rank = voice.rank if voice.rank is not None else end.rank if end else placed(heard, voice.node, voice.local)
    at = block.at if block.at is not None else end.at if end else None
    quotes = (*_frame(block), *dict.fromkeys((first, last)), *((end.quote,) if end else ()))
    base = Candidate(
        OWN, "exception", voice.node, rank, heard.true(voice.node, at), block.order,
        who(voice.node, rank, short(last.text)), quotes=quotes, ends=(end,) if end else (),
    )  # fmt: skip
    specific = _match(block, ("specific", "kernel"))
    if specific:
        return as_signature(base, SPECIFIC, specific, voice.node)
    contact, secondary = _match(block, ("contact",)), _match(block, ("secondary",), first_only=True)
    if contact:
        return as_signature(base, CONTACT, contact, voice.node)
    if secondary:
        return as_signature(base, ECHO, secondary, voice.node)
    if _within_a_collective(block) or (_CRASH.match(first.text) and echoes(heard, voice.source, rank)):
        return replace(base, strength=ECHO, id="peer-lost")
    return _own(base, block, first.text)


def _match(block: Block, weights: tuple[str, ...], *, first_only: bool = False) -> Match | None:
    """The first in the errors' messages; a chain is an echo if its first error is."""
    for match, _, segment in block.matches:
        if match.signature.weight in weights and segment > 0 and (not first_only or segment == 1):
            return match
    return None


def _within_a_collective(block: Block) -> bool:
    """Whether the call that failed was one in which ranks wait for each other."""
    inner = block.frames[-1].text if block.frames else ""
    first = block.errors[0].text if block.errors else ""
    return bool(_COLLECTIVE.search(inner) and _WAITED.match(first))


def _own(base: Candidate, block: Block, text: str) -> Candidate:
    if text.startswith("KeyboardInterrupt"):
        where = f"{base.node}: {text}" if base.node else text
        return replace(
            base,
            id="interrupted",
            rank=None,
            summary=where,
            cause="somebody pressed Ctrl-C, or sent SIGINT",
            fix=("start it again, or: clusterft resume RUN",),
        )
    if _NAN.search(text):
        fix = ("lower the learning rate, or raise warm-up; look at the last steps' loss and grad_norm",)
        return replace(base, id="nan", cause="the loss or its gradients are not numbers any more", fix=fix)
    if _CRASH.match(text):
        return replace(base, id="crash", cause="native code crashed", fix=("look at the innermost frame above",))
    frame = _frame(block)
    place = re.match(r'File "([^"]+)", line (\d+)', frame[0].text) if frame else None
    steps = (f"look at {place[1]}, line {place[2]}",) if place else ("look at the lines before it",)
    return replace(base, cause="the program raised an error that it did not handle", fix=steps)


def _frame(block: Block) -> tuple[Quote, ...]:
    """The innermost line of the user's own code, else the innermost."""
    own = [one for one in block.frames if not _LIBRARY.search(one.text)]
    return tuple((own or block.frames)[-1:])


def _of_sighting(heard: Heard, voice: Voice, seen: Sighting, ends: list[End]) -> Iterator[Candidate]:
    """A text outside of any traceback: a warning is worth something only close to its voice's end."""
    signature = seen.match.signature
    near = voice.lines - seen.line <= _NEAR
    if signature.id == "killed" and "local_rank" in seen.quote.text or signature.number == 31:
        return  # `ends` knows more of it
    strength = {"contact": CONTACT, "secondary": ECHO}.get(signature.weight, SPECIFIC)
    if not near and signature.id not in _SILENT:
        return
    yield as_seen(seen, strength, voice.rank, heard.true(voice.node, seen.at), (seen.quote,))
