"""How far the work is, read from the files by which workers agree: over the whole cluster, from any node.

Owns the count of what is planned and done, and who is at work. A worker is alive if its beat moves; no clocks are
compared. Refuses to touch anything.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clusterft_trainer.latents import pulse
from clusterft_trainer.latents.leases import DONE, OVER, WORKERS, Directory, state
from clusterft_trainer.latents.plan import Plan
from clusterft_trainer.latents.session import numbers
from clusterft_trainer.prep.telling import duration

_LOOKS = 0.25  # seconds between looks at the beats
_BEATS = 1.5  # in whose time one must have come
KINDS = ("latents", "text")


@dataclass(frozen=True, slots=True)
class Worker:
    """One that is at work, or was and has not said that it ended."""

    name: str
    alive: bool
    plan: str  # what it works at, "" for none
    entries: int
    open: int  # of those, in tasks that are not over
    rate: float  # entries a second in its last minute


@dataclass(frozen=True, slots=True)
class Work:
    """One plan and what has become of it."""

    plan: str
    kind: str
    entries: int
    done: int
    over: bool
    workers: int  # alive
    rate: float

    @property
    def left(self) -> float | None:
        """Seconds, if it goes on like this."""
        return (self.entries - self.done) / self.rate if self.rate > 0 else None


class Standing:
    """What one observer has seen; each look compares with the one before."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files = Directory(root)
        self._seen: dict[str, bytes] = {}
        self._plans: dict[str, Plan] = {}

    def workers(self) -> list[Worker]:
        """All that have not said goodbye. At the first look, who claims to be at work is believed."""
        found = []
        for name in self._files.names(WORKERS):
            content = self._files.read(f"{WORKERS}/{name}") or b""
            told = state(content)
            if told.get("state") != "works":
                continue
            moved = self._seen.get(name) != content
            self._seen[name] = content
            alive = moved and not self._files.orphaned(f"{WORKERS}/{name}")
            found.append(_worker(name, told, alive=alive))
        return found

    def watched(self) -> list[Worker]:
        """Look until each has had time for a beat."""
        alive: set[str] = set()
        found = self.workers()
        silent = {one.name for one in found}
        end = time.monotonic() + _BEATS * pulse.EVERY
        while silent and time.monotonic() < end:
            time.sleep(_LOOKS)
            found = self.workers()
            alive |= {one.name for one in found if one.alive}
            silent = {one.name for one in found} - alive
        return [replace(one, alive=one.name in alive) for one in found]

    def plans(self, workers: Sequence[Worker]) -> list[Work]:
        """The newest plan of each kind and corpus."""
        found = []
        for group in self._files.names("."):
            kind = group.rpartition("-")[0]
            number = max(numbers(self._files, group), default=0) if kind in KINDS else 0
            table = self._root / group / f"{number}.table"
            if number and table.is_file():
                found.append(self._work(kind, group, number, workers))
        return found

    def _work(self, kind: str, group: str, number: int, workers: Sequence[Worker]) -> Work:
        name = f"{group}/{number}"
        plan = self._plans.get(name)
        if plan is None:
            plan = self._plans[name] = Plan(self._root / group / f"{number}.table")
        there = set(self._files.names(name))
        done = sum(len(task) for task in plan.tasks.values() if task.name + DONE in there)
        at_it = [one for one in workers if one.alive and one.plan == name]
        over = number in numbers(self._files, group, OVER)
        done = len(plan) if over else min(len(plan), done + sum(one.open for one in at_it))
        return Work(name, kind, len(plan), done, over, len(at_it), sum(one.rate for one in at_it))

    def sentence(self, kind: str) -> str:
        """The work of a kind that is under way, for people; empty if there is none."""
        under_way = [one for one in self.plans(self.workers()) if one.kind == kind and not one.over]
        if not under_way:
            return ""
        one = max(under_way, key=lambda work: work.workers)
        rest = "" if one.left is None else f", {duration(one.left)} to go"
        crowd = "1 worker" if one.workers == 1 else f"{one.workers} workers"
        return f"{kind}: {one.done} of {one.entries} entries, {one.rate:.1f} a second by {crowd}{rest}."


def body(work: Sequence[Work], workers: Sequence[Worker]) -> dict[str, Any]:
    """Who is at work, over the whole cluster."""
    return {
        "work": [work_body(one) for one in work],  # the newest plan of each kind and set of pictures
        "workers": [worker_body(one) for one in workers],  # those that have not said that they ended
    }


def work_body(one: Work) -> dict[str, Any]:
    """A plan and what has become of it."""
    return {
        "plan": one.plan,
        "kind": one.kind,  # latents or text
        "entries": one.entries,
        "done": one.done,
        "over": one.over,
        "workers": one.workers,  # alive
        "rate": round(one.rate, 3),  # entries a second, of all of them
        "seconds_left": None if one.left is None else round(one.left, 1),  # null where nobody is at it
    }


def worker_body(one: Worker) -> dict[str, Any]:
    """A worker."""
    return {
        "name": one.name,  # machine, rank, process and a token
        "alive": one.alive,  # its beat moves
        "plan": one.plan,  # what it works at; empty for none
        "entries": one.entries,  # that it has made
        "rate": round(one.rate, 3),  # entries a second in its last minute
    }


def _worker(name: str, told: dict[str, Any], *, alive: bool) -> Worker:
    numbers_told = [told.get(field) for field in ("entries", "open", "rate")]
    entries, open_, rate = (
        value if isinstance(value, int | float) and not isinstance(value, bool) else 0 for value in numbers_told
    )
    return Worker(name, alive, str(told.get("plan", "")), int(entries), int(open_), float(rate))
