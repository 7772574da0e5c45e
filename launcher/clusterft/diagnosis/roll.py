"""The roll: as which machine rank each node's launcher was started, and who is twice there or not at all. Pure.

Read from command lines (a shell's `set -x`, or whoever echoes what it starts) and from the keys that torch's
agents wait for: an agent of group rank N waits for assigned_ranks/N, and that of rank 0 for role_info of all. Says
something only where ranks waited in vain: a command line alone ends no run.
"""

from __future__ import annotations

import re
from dataclasses import replace

from clusterft.diagnosis.candidate import CONTACT, ECHO, Candidate
from clusterft.diagnosis.heard import Heard, Quote, Seat

_RANK = re.compile(r"--(node|machine)([_-])rank[= ](\d{1,5})\b")
_MACHINES = re.compile(r"--(nnodes|num_machines)[= ](?:\d{1,5}:)?(\d{1,5})\b")
_MEETS_ITSELF = re.compile(r"--rdzv[_-]backend[= ](?!static)")  # it numbers the machines, whatever they were told
_MINE = re.compile(r"wait timeout after \d+ms, keys: \S*/assigned_ranks/(\d{1,5})\s*$")
_ALL = re.compile(r"wait timeout after \d+ms, keys: \S*/role_info/0\b(?:, \S*/role_info/\d+)*\s*$")
_JOINED = re.compile(r"\b\d{1,6}/\d{1,6} clients joined")
_MEETING = frozenset({"rdzv.partial", "run.watchdog", "net.master-port", "peer-lost"})


def note(seats: dict[str, Seat], node: str, source: str, quote: Quote) -> None:
    """What a line says of its launcher; of several starts in one log the last counts."""
    text = quote.text
    started = _RANK.search(text)
    if started and not _MEETS_ITSELF.search(text):
        machines = _MACHINES.search(text)
        option = f"--{started[1]}{started[2]}rank"
        seats[node or source] = Seat(int(started[3]), int(machines[2]) if machines else None, option, (quote,))
        return
    before = seats.get(node or source)
    if before and _JOINED.search(text):
        seats[node or source] = replace(before, quotes=(*before.quotes, quote), waited=True)
    if "wait timeout" not in text:
        return
    before = before or Seat(0)
    if hit := _MINE.search(text):
        seats[node or source] = replace(before, rank=int(hit[1]), quotes=(*before.quotes, quote), waited=True)
    elif _ALL.search(text):
        count = text.count("/role_info/")
        seats[node or source] = replace(
            before, rank=0, machines=count, quotes=(*before.quotes, quote), waited=True
        )


def called(heard: Heard, first: Candidate | None) -> Candidate | None:
    """Who is there twice or not at all, where the ranks did not come together; else what was found."""
    if first is None or first.strength not in (CONTACT, ECHO) or first.id not in _MEETING:
        return first
    told = {one.machines for one in heard.seats.values() if one.machines}
    taken: dict[int, list[str]] = {}
    for name, seat in sorted(heard.seats.items()):
        taken.setdefault(seat.rank, []).append(name)
    twice = {rank: names for rank, names in taken.items() if len(names) > 1}
    if len(told) > 1 and not twice:
        return _of_two_minds(heard, first)
    absent = [rank for rank in range(max(told, default=0)) if rank not in taken]
    if twice:
        return _twice(heard, first, twice, absent)
    # A log that nobody gave is no machine that nobody started: only those that met and waited tell of it.
    if absent and taken and any(seat.waited for seat in heard.seats.values()):
        return _nobody(heard, first, absent, max(told))
    return first


def _twice(heard: Heard, first: Candidate, twice: dict[int, list[str]], absent: list[int]) -> Candidate:
    parts = [
        f"{_listed(names)} were {_both(names)} started as machine rank {rank}" for rank, names in twice.items()
    ]
    nobody = f", and none as {_listed([str(rank) for rank in absent])}" if absent else ""
    nodes = [name for names in twice.values() for name in names]
    # Without a rank 0 the first of them is it, as all the others look for it.
    spare = [(name, rank) for rank, names in twice.items() for name in names[0 if 0 in absent else 1 :]]
    steps = [
        f"on {name}: {heard.seats[name].option}={better} in place of {heard.seats[name].option}={rank}"
        for (name, rank), better in zip(spare, absent, strict=False)
    ]
    return replace(
        first,
        id="rdzv.partial",
        node=", ".join(nodes),
        rank=None,
        summary="; ".join(parts) + nobody,
        cause="each machine needs a rank of its own, from 0 on: as it is, all wait for one that nobody is",
        fix=(*(steps or ["a machine rank of its own for each of them"]), "then start all of them again"),
        quotes=_quotes(heard, nodes) or first.quotes,
    )


def _nobody(heard: Heard, first: Candidate, absent: list[int], machines: int) -> Candidate:
    ranks = _listed([str(rank) for rank in absent])
    there = [node for node in heard.nodes if node not in heard.seats]
    seats = [seat for seat in heard.seats.values() if seat.option] or [Seat(0, option="--node_rank")]
    few = len(heard.seats)
    return replace(
        first,
        id="rdzv.partial",
        node=there[0] if len(there) == 1 == len(absent) else "",
        rank=None,
        summary=f"{machines} machines are expected, and none of these logs is of one with machine rank {ranks}",
        cause="that machine was not started, or not as this rank; or fewer were meant, and nnodes is too large",
        fix=(
            f"start the one that is missing with {seats[0].option}={absent[0]}, and look at its log",
            f"or, on all of them, as many machines as there are: --nnodes={few}",
        ),
        quotes=_quotes(heard, list(heard.seats)) or first.quotes,
    )


def _of_two_minds(heard: Heard, first: Candidate) -> Candidate:
    """Launchers that were told different numbers of machines."""
    words = ", ".join(f"{name} {seat.machines}" for name, seat in sorted(heard.seats.items()) if seat.machines)
    return replace(
        first,
        id="rdzv.partial",
        node="",
        rank=None,
        summary=f"the machines were told different numbers of machines: {words}",
        cause="each waits for as many as it was told of",
        fix=("the same --nnodes (--num_machines) on all of them",),
        quotes=_quotes(heard, list(heard.seats)) or first.quotes,
    )


def _quotes(heard: Heard, names: list[str]) -> tuple[Quote, ...]:
    return tuple(quote for name in sorted(names) for quote in heard.seats[name].quotes)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _both(names: list[str]) -> str:
    return "both" if len(names) == 2 else "all"
