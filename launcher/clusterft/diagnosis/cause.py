"""The first cause among the candidates, and what followed from it. Pure.

The rule: what is said knowingly or names a cause by itself, and own ends, come first in the order of their times;
of those within a few seconds the more specific one. Ranks that did not come together count only where nobody ended
of his own; whoever lost a peer is never the first cause, and if there is nothing else, who did not complain is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from clusterft.diagnosis import roll
from clusterft.diagnosis.candidate import CODE, CONTACT, ECHO, OWN, SAID, SPECIFIC, Candidate
from clusterft.diagnosis.candidates import gather
from clusterft.diagnosis.diagnosis import Diagnosis, Follower, Setback, Verdict
from clusterft.diagnosis.heard import Course, Heard, Quote
from clusterft.diagnosis.suspects import blame, odd_one
from clusterft.diagnosis.unlike import odd_models

_SLACK = 5.0  # seconds by which clocks and launchers' looks may differ
_AT_ONCE = 120.0  # seconds in which a fault that a kernel has told ends whoever meets it
_EVIDENCE = 8
_ORDER = (
    "os.oom",
    "rdzv.dns",
    "nccl.bridge",
    "net.high-ports",
    "nccl.ib-timeout",
    "net.master-port",
    "run.watchdog",
    "rdzv.partial",
)
_GANG = frozenset({"node-lost", "head-lost", "container", "interrupted", "hang", "os.oom"})
_STOPPED = "interrupted"


def diagnose(heard: Heard) -> Diagnosis:
    """The whole answer."""
    earlier = tuple(_setback(one) for one in heard.earlier)
    base = Diagnosis("nothing", earlier=earlier, notes=tuple(_notes(heard)), unread=heard.unread)
    base = replace(base, files=heard.files, lines=heard.lines)
    if heard.end == "ok" or (heard.ended and set(heard.ended.values()) == {"ok"}):
        return replace(base, verdict="ok", summary=f"the run ended well{_which(heard)}")
    found = gather(heard)
    first = roll.called(heard, first_of(heard, found))
    if first is None:
        return replace(base, summary=f"no sign of a failure in what was read{_which(heard, 'of ')}")
    stopped = first.id == _STOPPED and "SIGINT" in first.summary + first.cause
    verdict: Verdict = "stopped" if stopped or heard.end == "stopped" else "failed"
    return replace(
        base,
        verdict=verdict,
        id=first.id,
        summary=first.summary,
        node=first.node,
        rank=first.rank,
        at=first.at,
        evidence=_evidence(first, found),
        cause=first.cause,
        fix=first.fix,
        followed=tuple(_followed(first, found)),
    )


def _setback(heard: Heard) -> Setback:
    """Of one attempt, by the same rules as of the run's last one."""
    said, course = diagnose(heard), heard.courses.get(heard.attempt or 0, Course())
    after = "the run was resumed" if course.resumed else "the run went on"
    return Setback(
        attempt=heard.attempt or 0,
        id=said.id,
        summary=said.summary if said.id else "no line that was read tells why",
        node=said.node,
        rank=said.rank,
        at=said.at,
        evidence=said.evidence,
        cause=said.cause,
        fix=said.fix,
        after=f"{after}: {course.why}" if course.again and course.why else after,
    )


def _which(heard: Heard, word: str = "in ") -> str:
    """The attempt that is spoken of, where one before it failed."""
    return f", {word}attempt {heard.attempt}" if heard.earlier else ""


def first_of(heard: Heard, found: list[Candidate]) -> Candidate | None:
    """The first cause."""
    gang = [one for one in found if one.gang and one.id in _GANG and one.strength == SAID]
    strong = [one for one in found if one.strength in (SAID, SPECIFIC, OWN) and one not in gang]
    contacts = [one for one in found if one.strength == CONTACT]
    chosen = _earliest(_near(strong))
    if gang and (chosen is None or chosen.strength == OWN):
        return gang[0]
    contact = min(contacts, key=lambda one: (_ORDER.index(one.id), _time(one), one.order), default=None)
    if chosen is not None and contact is not None and _before(contact, chosen):
        return contact
    if chosen or contact:
        return _known(heard, chosen or contact, found)
    echoes = [one for one in found if one.strength == ECHO]
    if echoes:
        return blame(heard, echoes, found)
    return min((one for one in found if one.strength == CODE), key=_time, default=None)


def _near(strong: list[Candidate]) -> list[Candidate]:
    """What a kernel said long before somebody ended of his own is not why he did; who hangs, hangs for long."""
    ended = [one.at for one in strong if not one.kernel and one.at is not None]
    begin = min(ended, default=None)
    if begin is None:
        return strong
    return [one for one in strong if not one.kernel or one.at is None or one.at >= begin - _AT_ONCE]


def _earliest(strong: list[Candidate]) -> Candidate | None:
    """Within a few seconds of the earliest the most specific; who has no time may have been any time."""
    timed = [one.at for one in strong if one.at is not None]
    if not timed:
        return min(
            strong,
            key=lambda one: (not _first(one), min(one.strength, SPECIFIC + (one.strength == OWN)), one.order),
            default=None,
        )
    begin = min(timed)
    near = [one for one in strong if one.at is None or one.at <= begin + _SLACK]
    return min(near, key=lambda one: (max(one.strength, SPECIFIC), _time(one), one.order))


def _first(one: Candidate) -> bool:
    """Whether its launcher saw it fail before the others on its node."""
    return any(end.first for end in one.ends)


def _before(contact: Candidate, chosen: Candidate) -> bool:
    """Whether ranks failed to come together well before anybody ended of his own."""
    return (
        not contact.kernel and contact.at is not None and chosen.at is not None and contact.at < chosen.at - _SLACK
    )


def _time(one: Candidate) -> float:
    return one.at if one.at is not None else float("inf")


def _known(heard: Heard, chosen: Candidate | None, found: list[Candidate]) -> Candidate | None:
    """With the node of a rank that only others named."""
    if chosen is not None and chosen.called:
        chosen = odd_one(chosen, found)
    if chosen is not None and chosen.built:
        return odd_models(heard, chosen, found)
    if chosen is not None and chosen.id == "rdzv.partial":
        spoke = {voice.node for voice in heard.voices}
        absent = [node for node in heard.nodes if node not in spoke]
        return replace(chosen, node=absent[0] if len(absent) == 1 else "")
    if chosen is None or chosen.node or chosen.rank is None:
        return chosen
    node = next((voice.node for voice in heard.voices if voice.rank == chosen.rank and voice.node), "")
    node = node or next((end.node for end in heard.ends if end.rank == chosen.rank and end.node), "")
    return replace(chosen, node=node)


def _evidence(first: Candidate, found: list[Candidate]) -> tuple[Quote, ...]:
    """Its own lines, and those of other candidates that speak of the same rank's end."""
    quotes = list(first.quotes)
    for one in found:
        same = one.rank == first.rank is not None and one.node == first.node and one.strength in (SPECIFIC, OWN)
        if same and one is not first:
            quotes += one.quotes
    return tuple(dict.fromkeys(quotes))[:_EVIDENCE]


def _followed(first: Candidate, found: Iterable[Candidate]) -> Iterable[Follower]:
    """How the others ended, alike ones together."""
    groups: dict[str, dict[tuple[str, int | None, int], Candidate]] = {}
    mine = (first.node, first.rank)
    same = {(one.node, one.rank) for one in found if one.built and first.built}  # the same, told by other ranks
    for one in found:
        if one is first or (one.node, one.rank) in (mine, *same) or one.gang:
            continue
        if one.rank is None and one.strength in (SPECIFIC, OWN) and one.node == first.node:
            continue
        key = (one.node, one.rank, one.order if one.rank is None else 0)
        groups.setdefault(_what(one), {}).setdefault(key, one)
    seen: set[tuple[str, int]] = set()
    for what, ones in groups.items():
        others = [one for one in ones.values() if one.rank is None or (one.node, one.rank) not in seen]
        seen |= {(one.node, one.rank) for one in others if one.rank is not None}
        if not others:
            continue
        after = sorted(one.at - first.at for one in others if one.at is not None and first.at is not None)
        yield Follower(what, len(others), after[0] if after else None, after[-1] if after else None)


def _what(one: Candidate) -> str:
    words = {"peer-lost": "lost a peer", "run.watchdog": "waited in vain", "exception": "ended with an error"}
    return words.get(one.id, one.id)


def _notes(heard: Heard) -> Iterable[str]:
    nodes = {voice.node for voice in heard.voices if voice.node}
    timed = {voice.node for voice in heard.voices if voice.last_at is not None}
    if len(nodes) > 1:
        if not timed:
            yield "these logs have no times: what came first follows from what the lines say"
        elif not heard.compared:
            yield "clocks were not compared: times are each node's own"
    for one in heard.recovered:
        yield f"{one.node}: {one.what}; it has recovered" if one.node else f"{one.what}; it has recovered"
