"""How processes ended, as launchers, supervisors and engines told it: candidates of their own. Pure.

Owns what a signal means, and that the kernel's or the engine's word on memory explains a SIGKILL.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace

from clusterft.diagnosis.candidate import CODE, ECHO, OWN, SPECIFIC, Candidate
from clusterft.diagnosis.ends import named
from clusterft.diagnosis.heard import End, Heard, Sighting, Source
from clusterft.diagnosis.signatures import MEMORY, told

AROUND = 60.0  # seconds between a kernel's word and what a launcher makes of it
_FROM_OUTSIDE = "SIGKILL comes from outside: from the kernel when memory runs out, else from a person or an engine"


def merged(heard: Heard) -> list[End]:
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
        replace(one, rank=one.rank if one.rank is not None else placed(heard, one.node, one.local))
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


def placed(heard: Heard, node: str, local: int | None) -> int | None:
    ranks = heard.places.get(node, [])
    return ranks[local] if local is not None and local < len(ranks) else None


def of_end(heard: Heard, end: End) -> Iterator[Candidate]:
    code = -(end.code - 128) if end.container and end.code > 128 else end.code
    base = Candidate(
        OWN, "", end.node, end.rank, heard.true(end.node, end.at), end.order,
        f"{_process(end)} was ended by {named(code)}", quotes=(end.quote,), ends=(end,),
    )  # fmt: skip
    if end.short_of_memory:
        cause = "the container reached its memory limit, and the kernel ended it (OOMKilled)"
        yield replace(base, strength=SPECIFIC, id="os.oom", cause=cause, fix=(MEMORY,))
    elif code == -signal.SIGKILL:
        yield _killed(heard, base, end)
    elif code == -signal.SIGHUP:
        yield replace(
            base, strength=SPECIFIC, id="ctl.sighup",
            cause="the terminal or SSH session that started the ranks was closed, and took them along",
            fix=("start them detached: `clusterft train` does; by hand: nohup, tmux, or docker run -d",),
        )  # fmt: skip
    elif code in (-signal.SIGINT, -signal.SIGTERM):
        if end.local is None and end.rank is None:  # the launcher's own; it ends its ranks with SIGTERM itself
            yield replace(
                base, id="interrupted", cause=f"somebody, or the machine, sent {named(code)}", fix=_sender(end)
            )
    elif code < 0:
        echo = code == -signal.SIGABRT and echoes(heard, end.source, end.rank)
        fix = (f"on {end.node or 'that node'}: sudo dmesg -T | tail   and look at what that rank wrote last",)
        yield replace(base, strength=ECHO if echo else OWN, id="crash", cause="native code crashed", fix=fix)
    elif code > 0:
        words = f"{_process(end)} ended with exit code {code} and no line says why"
        yield replace(base, strength=CODE, id="exception", summary=words)


def _sender(end: End) -> tuple[str, ...]:
    where = f"on {end.node}: " if end.node else ""
    return (
        f"{where}last -x | head   did it shut down? else: docker stop, systemctl, or a person",
        "then start again",
    )


def _killed(heard: Heard, base: Candidate, end: End) -> Candidate:
    """By the kernel, where its log has it."""
    fix = (
        f"on {end.node or 'that node'}: sudo dmesg -T | grep -i -E 'killed process|out of memory'",
        f"if it was memory: {MEMORY}",
    )
    for one in heard.kernel:
        if one.match.signature.id == "os.oom" and killed_by(one, [end]) is end:
            words = told(one.match.signature.cause, one.match.words)
            return replace(
                base, strength=SPECIFIC, id="os.oom", cause=words, fix=(MEMORY,), quotes=(one.quote, end.quote)
            )
    limit = [one for one in heard.ends if one.short_of_memory and one.node == end.node]
    if limit:
        words = "the container reached its memory limit, and the kernel ended it (OOMKilled)"
        return replace(
            base, strength=SPECIFIC, id="os.oom", cause=words, fix=(MEMORY,), quotes=(limit[0].quote, end.quote)
        )
    cause = _FROM_OUTSIDE
    if any(one.node == end.node for one in heard.kernel):
        cause += "; the kernel log that was read has no such kill"
    return replace(base, id="killed", cause=cause, fix=fix)


def echoes(heard: Heard, source: Source, rank: int | None) -> bool:
    """Whether that rank, or any in the same log, had lost a peer: NCCL's watchdog aborts the process then."""
    return any(
        seen.match.signature.weight == "secondary"
        for voice in heard.voices
        if voice.source.name == source.name and (rank is None or voice.rank in (None, rank))
        for seen in voice.sightings.values()
    )


def killed_by(one: Sighting, ends: list[End]) -> End | None:
    """The end that an OOM kill explains: that of its pid, else a SIGKILL on its node at that time."""
    pid = one.match.words.get("pid", "")
    mine = [end for end in ends if end.node == one.node and end.code in (-9, 137)]
    by_pid = [end for end in mine if end.pid is not None and str(end.pid) == pid]
    near = [end for end in mine if end.at is None or one.at is None or abs(end.at - one.at) < AROUND]
    return next(iter(by_pid or near), None)


def _process(end: End) -> str:
    where = f" on {end.node}" if end.node else ""
    if end.container:
        return f"the container{where}"
    if end.rank is not None:
        return f"rank {end.rank}{where}"
    return f"local rank {end.local}{where}" if end.local is not None else f"the launcher{where}"
