"""Heard -> candidates for the first cause: each with its strength, its time and the lines that prove it. Pure.

Owns what is an own end and what the echo of another's: an exception whose first error speaks of a peer, or that
was raised within a collective, tells of somebody else. Ranks nothing.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace

from clusterft.diagnosis.ends import LAUNCHERS, named
from clusterft.diagnosis.heard import Block, End, Heard, Quote, Sighting, Told, Voice
from clusterft.diagnosis.signatures import Match, Signature, told

SAID, SPECIFIC, OWN, CONTACT, ECHO, CODE = range(6)  # strengths, the strongest first
_NEAR = 400  # lines before a voice's last one in which it may speak of its end
_SILENT = frozenset({"ckpt.latest", "job.hostfile"})  # a warning once, and then all goes wrong without a word
_COLLECTIVE = re.compile(r"torch/distributed/|c10d|deepspeed/comm/|accelerate/utils/operations")
_LIBRARY = re.compile(r"site-packages/|dist-packages/|<frozen|/lib/python3")
_NAN = re.compile(
    r"FloatingPointError|\b(loss|gradients?|grad_norm)\b.{0,40}\b(nan|inf)\b|\bnan\b.{0,20}\bloss\b", re.I
)
_TRAINS = re.compile(r"^(python|pt_|torchrun|deepspeed|accelerate)")
_AROUND = 120.0  # seconds between a kernel's word and what a launcher makes of it
_PAST = 900.0
_HARMLESS_XIDS = frozenset({"63"})
_IDS = {  # classes of the trainer that the catalogue has an id for
    "host-oom": "os.oom",
    "disk-full": "os.disk-full",
    "ecc": "gpu.ecc",
    "oom": "job.memory",
}
_ELSEWHERE = frozenset({"rdzv.partial"})  # said by those that came, of those that did not
_OF_PEERS = frozenset({"peer-lost"})
_FROM_OUTSIDE = "SIGKILL comes from outside: from the kernel when memory runs out, else from a person or an engine"
_MEMORY = "lower train.data.workers, leave out offload, or use nodes with more memory"


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
    gang: bool = False
    ends: tuple[End, ...] = ()
    called: tuple[str, str] | None = None  # (rank, collective), where the others called something else
    at_once: float | None = None


def gather(heard: Heard) -> list[Candidate]:
    """All of them."""
    ends = _merged(heard)
    found = [
        *_told(heard),
        *_kernel(heard, ends),
        *(one for voice in heard.voices for one in _of_voice(heard, voice, ends)),
        *(one for end in ends for one in _of_end(heard, end)),
    ]
    return found


# -- what the trainer and the gang said ----------------------------------------------------------


def _told(heard: Heard) -> Iterator[Candidate]:
    for one in heard.told:
        if one.failure in _OF_PEERS or (
            one.gang and one.failure in ("launcher", "exception", "bug", "killed", "crash")
        ):
            strength = CODE if one.gang and one.failure not in _OF_PEERS else ECHO
        else:
            strength = OWN if one.failure == "bug" else SAID
        yield Candidate(
            strength,
            "exception" if one.failure == "bug" else _IDS.get(one.failure, one.failure),
            one.node,
            one.rank,
            heard.true(one.node, one.at),
            one.order,
            _who(one.node, one.rank, one.text),
            cause=one.text,
            fix=_remedies(one),
            quotes=(one.quote,),
            gang=one.gang,
        )


def _remedies(one: Told) -> tuple[str, ...]:
    if one.remedy:
        return (one.remedy,)
    if one.failure in ("node-lost", "head-lost", "container", "interrupted") and one.node:
        return (
            f"on {one.node}: uptime; sudo dmesg -T | tail   did it reboot, lose power, or kill the supervisor?",
        )
    if one.failure in ("host-oom", "killed") and one.node:
        return (f"on {one.node}: sudo dmesg -T | grep -i -E 'killed process|out of memory'", _MEMORY)
    return ()


# -- what kernels said ---------------------------------------------------------------------------


def _kernel(heard: Heard, ends: list[End]) -> Iterator[Candidate]:
    times = [at for voice in heard.voices for at in (voice.first_at, voice.last_at) if at is not None]
    for one in heard.kernel:
        if one.match.signature.weight != "kernel" or one.match.words.get("xid") in _HARMLESS_XIDS:
            continue
        if one.at is not None and times and not min(times) - _PAST <= one.at <= max(times) + _PAST:
            continue
        rank, at = None, heard.true(one.node, one.at)
        if one.match.signature.id == "os.oom":
            end = _killed_by(one, ends)
            ours = end is not None or _TRAINS.match(one.match.words.get("name", ""))
            if not ours:
                continue
            rank = end.rank if end else None
        yield _seen(one, SPECIFIC, rank, at, (one.quote,))


def _killed_by(one: Sighting, ends: list[End]) -> End | None:
    """The end that an OOM kill explains: that of its pid, else a SIGKILL on its node at that time."""
    pid = one.match.words.get("pid", "")
    mine = [end for end in ends if end.node == one.node and end.code in (-9, 137)]
    by_pid = [end for end in mine if end.pid is not None and str(end.pid) == pid]
    near = [end for end in mine if end.at is None or one.at is None or abs(end.at - one.at) < _AROUND]
    return next(iter(by_pid or near), None)


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
    rank = voice.rank if voice.rank is not None else end.rank if end else _placed(heard, voice.node, voice.local)
    at = block.at if block.at is not None else end.at if end else None
    quotes = (*_frame(block), *dict.fromkeys((first, last)), *((end.quote,) if end else ()))
    base = Candidate(
        OWN, "exception", voice.node, rank, heard.true(voice.node, at), block.order,
        _who(voice.node, rank, _short(last.text)), quotes=quotes, ends=(end,) if end else (),
    )  # fmt: skip
    specific = _match(block, ("specific", "kernel"))
    if specific:
        return _as(base, SPECIFIC, specific, voice.node)
    contact, secondary = _match(block, ("contact",)), _match(block, ("secondary",), first_only=True)
    if contact:
        return _as(base, CONTACT, contact, voice.node)
    if secondary or _within_a_collective(block):
        found = secondary
        return _as(base, ECHO, found, voice.node) if found else replace(base, strength=ECHO, id="peer-lost")
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
    return bool(_COLLECTIVE.search(inner))


def _own(base: Candidate, block: Block, text: str) -> Candidate:
    if text.startswith("KeyboardInterrupt"):
        return replace(base, id="interrupted", cause="somebody pressed Ctrl-C, or sent SIGINT")
    if _NAN.search(text):
        fix = ("lower the learning rate, or raise warm-up; look at the last steps' loss and grad_norm",)
        return replace(base, id="nan", cause="the loss or its gradients are not numbers any more", fix=fix)
    if re.match(r"Fatal Python error: |terminate called|.*(Segmentation fault|Bus error|Aborted)", text):
        return replace(base, id="crash", cause="native code crashed", fix=("look at the innermost frame above",))
    frame = _frame(block)
    where = re.match(r'File "([^"]+)", line (\d+)', frame[0].text) if frame else None
    steps = (f"look at {where[1]}, line {where[2]}",) if where else ()
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
    end = next((one for one in ends if one.rank == voice.rank is not None), None)
    at = heard.true(voice.node, seen.at)
    rank = voice.rank if voice.rank is not None else end.rank if end else None
    yield _seen(seen, strength, rank, at, (seen.quote,))


# -- how processes ended -------------------------------------------------------------------------


def _merged(heard: Heard) -> list[End]:
    """One for each process: a launcher tells of it several times, each time with other figures."""
    merged: dict[tuple[str, str, int | None], End] = {}
    for one in heard.ends:
        keys = [("pid", f"{one.source.name} {one.node}", one.pid)] if one.pid is not None else []
        if not keys and one.local is not None:
            keys = [("local", f"{one.source.name} {one.node}", one.local)]
        key = keys[0] if keys else ("order", f"{one.source.name} {one.node}", len(merged))
        before = merged.get(key)
        merged[key] = one if before is None else _joined(before, one)
    return [
        replace(one, rank=one.rank if one.rank is not None else _placed(heard, one.node, one.local))
        for one in merged.values()
    ]


def _joined(before: End, later: End) -> End:
    return replace(
        before,
        rank=before.rank if before.rank is not None else later.rank,
        local=before.local if before.local is not None else later.local,
        at=before.at if before.at is not None else later.at,
        first=before.first or later.first,
        quote=later.quote if "Signal" in later.quote.text else before.quote,
    )


def _placed(heard: Heard, node: str, local: int | None) -> int | None:
    ranks = heard.places.get(node, [])
    return ranks[local] if local is not None and local < len(ranks) else None


def _of_end(heard: Heard, end: End) -> Iterator[Candidate]:
    code = -(end.code - 128) if end.container and end.code > 128 else end.code
    base = Candidate(
        OWN, "", end.node, end.rank, heard.true(end.node, end.at), end.order,
        f"{_process(end)} was ended by {named(code)}", quotes=(end.quote,), ends=(end,),
    )  # fmt: skip
    if end.short_of_memory:
        cause = "the container reached its memory limit, and the kernel ended it (OOMKilled)"
        yield replace(base, strength=SPECIFIC, id="os.oom", cause=cause, fix=(_MEMORY,))
    elif code == -signal.SIGKILL:
        yield _killed(heard, base, end)
    elif code == -signal.SIGHUP:
        yield replace(
            base, strength=SPECIFIC, id="ctl.sighup",
            cause="the terminal or SSH session that started the ranks was closed, and took them along",
            fix=("start them detached: clusterft train does; by hand: nohup, tmux, or docker run -d",),
        )  # fmt: skip
    elif code in (-signal.SIGINT, -signal.SIGTERM):
        if end.local is None and end.rank is None:  # the launcher's own; it ends its ranks with SIGTERM itself
            yield replace(base, id="interrupted", cause=f"somebody, or the machine, sent {named(code)}")
    elif code < 0:
        echoes = code == -signal.SIGABRT and _echoes(heard, end)
        fix = (f"on {end.node or 'that node'}: sudo dmesg -T | tail   and look at what that rank wrote last",)
        yield replace(base, strength=ECHO if echoes else OWN, id="crash", cause="native code crashed", fix=fix)
    elif code > 0:
        words = f"{_process(end)} ended with exit code {code} and no line says why"
        yield replace(base, strength=CODE, id="exception", summary=words)


def _killed(heard: Heard, base: Candidate, end: End) -> Candidate:
    """By the kernel, where its log has it."""
    fix = (
        f"on {end.node or 'that node'}: sudo dmesg -T | grep -i -E 'killed process|out of memory'",
        f"if it was memory: {_MEMORY}",
    )
    for one in heard.kernel:
        if one.match.signature.id == "os.oom" and _killed_by(one, [end]) is end:
            words = told(one.match.signature.cause, one.match.words)
            return replace(
                base, strength=SPECIFIC, id="os.oom", cause=words, fix=(_MEMORY,), quotes=(one.quote, end.quote)
            )
    limit = [one for one in heard.ends if one.short_of_memory and one.node == end.node]
    if limit:
        words = "the container reached its memory limit, and the kernel ended it (OOMKilled)"
        return replace(
            base, strength=SPECIFIC, id="os.oom", cause=words, fix=(_MEMORY,), quotes=(limit[0].quote, end.quote)
        )
    cause = _FROM_OUTSIDE
    if any(one.node == end.node for one in heard.kernel):
        cause += "; the kernel log that was read has no such kill"
    return replace(base, id="killed", cause=cause, fix=fix)


def _echoes(heard: Heard, end: End) -> bool:
    """Whether that rank, or any in the same log, had lost a peer: NCCL's watchdog aborts the process then."""
    return any(
        seen.match.signature.weight == "secondary"
        for voice in heard.voices
        if voice.source.name == end.source.name and voice.rank in (None, end.rank)
        for seen in voice.sightings.values()
    )


# -- words ---------------------------------------------------------------------------------------


def _as(base: Candidate, strength: int, match: Match, node: str) -> Candidate:
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
        cause=told(match.signature.cause, words),
        fix=tuple(told(step, words) for step in match.signature.fix),
    )


def _seen(
    one: Sighting, strength: int, rank: int | None, at: float | None, quotes: tuple[Quote, ...]
) -> Candidate:
    base = Candidate(
        strength, "", one.node, rank, at, one.order, _who(one.node, rank, _short(one.quote.text)), quotes=quotes
    )
    return _as(base, strength, one.match, one.node)


def _who(node: str, rank: int | None, text: str) -> str:
    where = f"rank {rank} on {node}" if rank is not None and node else f"rank {rank}" if rank is not None else node
    return f"{where}: {text}" if where else text


def _process(end: End) -> str:
    where = f" on {end.node}" if end.node else ""
    if end.container:
        return f"the container{where}"
    if end.rank is not None:
        return f"rank {end.rank}{where}"
    return f"local rank {end.local}{where}" if end.local is not None else f"the launcher{where}"


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."


def is_pattern(signature: Signature) -> bool:
    """Whether it can be a cause at all."""
    return signature.weight != "benign"
