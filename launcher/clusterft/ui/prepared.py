"""What is prepared of a job's data, from the trainer's own count: a line, and a small table. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from clusterft.ui import figures
from clusterft.ui.status import columns

_STAGES = {"latents": "latents", "text": "text states"}


def lines(body: Mapping[str, Any], shared: str) -> Iterator[str]:
    """`clusterft prep --status`."""
    yield f"{shared}/.clusterft · {_standing(body)}"
    index = body.get("index")
    rows: list[tuple[str, ...]] = []
    if index:
        rows.append(("index", figures.count(index["pictures"]), "", "", "", ""))
    rows += [_row(name, words, body) for name, words in _STAGES.items() if name in body]
    if rows:
        yield ""
        yield from columns([("", "entries", "there", "missing", "cannot be made", "under way"), *rows])
    silent = [str(one["name"]) for one in body.get("workers", ()) if not one["alive"]]
    if silent:
        yield ""
        yield f"  ! not heard any more: {', '.join(silent)}; their work is taken over"


def _standing(body: Mapping[str, Any]) -> str:
    missing = body["missing"]
    if missing is None:
        return "the sources have not been read yet"
    if not missing:
        return "nothing is missing"
    return f"{figures.count(missing)} {'entry is' if missing == 1 else 'entries are'} missing"


def _row(name: str, words: str, body: Mapping[str, Any]) -> tuple[str, ...]:
    one = body[name]
    there = one["entries"] - one["missing"] - one["broken"]
    numbers = (one["entries"], there, one["missing"])
    broken = figures.count(one["broken"]) if one["broken"] else ""
    return (words, *(figures.count(number) for number in numbers), broken, _under_way(name, body))


def _under_way(kind: str, body: Mapping[str, Any]) -> str:
    """The work of a kind that has workers: of several plans, that of most."""
    at_it = [one for one in body.get("work", ()) if one["kind"] == kind and not one["over"] and one["workers"]]
    if not at_it:
        return ""
    one = max(at_it, key=lambda work: work["workers"])
    crowd = f"{one['workers']} worker{'s' * (one['workers'] != 1)}"
    left = f", {figures.span(one['seconds_left'])} left" if one["seconds_left"] is not None else ""
    done = f"{figures.count(one['done'])} of {figures.count(one['entries'])}"
    return f"{done}, {one['rate']:.1f}/s by {crowd}{left}"
