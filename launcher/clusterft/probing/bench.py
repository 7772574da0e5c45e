"""Bench: processes of the trainer's proving program on nodes, as groups that must end in time.

Owns who said what, and that a group in which one process died is not waited for. Refuses to judge.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clusterft.facts.deep import Said
from clusterft.probing.crew import Silent, Talk

_EVER = 3600.0  # seconds; its end is told by the end of the stream
_ALONE = 4.0  # seconds that the others of a group get once one of them has failed
_LAST = 6.0  # seconds past its deadline in which a node tells that it has killed a process


@dataclass(frozen=True, slots=True)
class Seat:
    """One process of a task."""

    node: str
    slot: int
    given: Mapping[str, Any]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """Processes that belong together."""

    kind: str  # of the proving program's own
    seats: tuple[Seat, ...]
    seconds: float


class Bench:
    """The nodes that are ready to work."""

    def __init__(self, talks: Mapping[str, Talk]) -> None:
        self._talks = dict(talks)
        self._heard: dict[tuple[str, str, int], Said] = {}
        self._over: set[tuple[str, str, int]] = set()
        self._stopped: set[tuple[str, str, int]] = set()  # told to end before they did
        self._gone: dict[str, str] = {}
        self._news = threading.Condition()
        self._count = 0
        for node, talk in self._talks.items():
            threading.Thread(target=self._listen, args=(node, talk), name="bench", daemon=True).start()

    @property
    def gone(self) -> Mapping[str, str]:
        """Nodes that say nothing more, and why."""
        with self._news:
            return dict(self._gone)

    def run(self, tasks: Sequence[Task]) -> list[tuple[Said, ...]]:
        """All of them at once; each process's words, in the order of its task's seats."""
        names = [self._start(task) for task in tasks]
        began = time.monotonic()
        failed: dict[str, float] = {}
        with self._news:
            while open_ := [
                (name, task) for name, task in zip(names, tasks, strict=True) if self._waiting(name, task)
            ]:
                now = time.monotonic()
                for name, task in open_:
                    if name not in failed and self._failed(name, task):
                        failed[name] = now
                overdue = [name for name, task in open_ if now > began + task.seconds + _LAST]
                lonely = [name for name, _ in open_ if name in failed and now > failed[name] + _ALONE]
                if overdue:
                    self._give_up(overdue, tasks, names)
                for name in lonely:
                    failed[name] = now
                    self._stop(name, tasks[names.index(name)])
                self._news.wait(0.2)
            return [
                tuple(self._said(name, seat) for seat in task.seats)
                for name, task in zip(names, tasks, strict=True)
            ]

    def _start(self, task: Task) -> str:
        self._count += 1
        name = f"g{self._count}"
        for seat in task.seats:
            asked = {"do": "start", "group": name, "slot": seat.slot, "task": task.kind}
            body = {**asked, "given": dict(seat.given), "env": dict(seat.env), "seconds": task.seconds}
            try:
                self._talks[seat.node].tell(body)
            except Silent as error:
                self._lose(seat.node, str(error))
        return name

    def _stop(self, name: str, task: Task) -> None:
        self._stopped |= {(name, seat.node, seat.slot) for seat in task.seats} - self._over
        for node in {seat.node for seat in task.seats} - set(self._gone):
            try:
                self._talks[node].tell({"do": "stop", "group": name})
            except Silent as error:
                self._gone[node] = str(error)

    def _give_up(self, overdue: list[str], tasks: Sequence[Task], names: list[str]) -> None:
        """A node that does not even tell of a deadline is not asked again."""
        for name in overdue:
            for seat in tasks[names.index(name)].seats:
                if (name, seat.node, seat.slot) not in self._over and seat.node not in self._gone:
                    self._gone[seat.node] = "it no longer answers"

    def _waiting(self, name: str, task: Task) -> bool:
        return any(
            (name, seat.node, seat.slot) not in self._over and seat.node not in self._gone for seat in task.seats
        )

    def _failed(self, name: str, task: Task) -> bool:
        ended = [self._said(name, seat) for seat in task.seats if (name, seat.node, seat.slot) in self._over]
        return any(one.code != 0 for one in ended) or any(seat.node in self._gone for seat in task.seats)

    def _said(self, name: str, seat: Seat) -> Said:
        known = self._heard.get((name, seat.node, seat.slot), Said(seat.node, seat.slot))
        why = self._gone.get(seat.node, "")
        return replace(known, words=why) if why and (name, seat.node, seat.slot) not in self._over else known

    def _lose(self, node: str, why: str) -> None:
        with self._news:
            self._gone.setdefault(node, why)
            self._news.notify_all()

    def _listen(self, node: str, talk: Talk) -> None:
        while True:
            try:
                body = talk.hear(_EVER)
                where = (str(body["group"]), node, int(body["slot"]))
            except Silent as error:
                return self._lose(node, str(error))
            except (KeyError, TypeError, ValueError):
                return self._lose(node, "it said something else than it should")
            with self._news:
                self._note(where, body)
                self._news.notify_all()

    def _note(self, where: tuple[str, str, int], body: Mapping[str, Any]) -> None:
        known = self._heard.get(where, Said(where[1], where[2]))
        said = body.get("said")
        if isinstance(said, dict):
            known = replace(known, said=(*known.said, said))
        if "ended" in body:
            code = body["ended"]
            ended = code if isinstance(code, int) else None
            ours = where in self._stopped and ended is not None and ended < 0
            late, words = body.get("late") is True, str(body.get("words", ""))
            known = replace(known, code=ended, late=late, stopped=ours and not late, words=words)
            self._over.add(where)
        self._heard[where] = known
