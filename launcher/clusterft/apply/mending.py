"""What a run needs a controller for: a spare in the place of a node that stays dead, another head, a nudge.

Owns when that is called for (pure: `due`, `successors`) and how it is done. Its supervisors survive all else by
themselves. Of several controllers that watch one run, the first to claim a repair makes it; the others follow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from clusterft.apply import harvest, planning, record
from clusterft.apply.gang import Gang
from clusterft.apply.planning import Wanted
from clusterft.apply.record import Entry
from clusterft.board import Board, Verdict, judge
from clusterft.errors import ClusterftError
from clusterft.events import Event, Replaced, Replanned
from clusterft.fleet import Fleet
from clusterft.hosts import Node
from clusterft.plan import NodePlan, Part
from clusterft.plan.standin import stand_in
from clusterft.remote import Unreachable
from clusterft.runtime import Harvest
from clusterft.spec import JobSpec
from clusterft_trainer import assignment
from clusterft_trainer.assignment import Member

_GRACE = 60.0  # seconds that the head has waited for a node before another one takes its place
_SHARE = 0.25  # of the gang's patience, where that is shorter
_DOWN = 10.0  # seconds that a container may be down before it is brought back; the share of patience too
_SWEEP = 10.0  # seconds between two looks at nodes that were replaced
_AGAIN = 5.0  # seconds between two looks at a node that the head misses
_PROBE_SECONDS = 5.0
_TRIES, _PAUSE = 3, 2.0  # to claim a repair; seconds between
_SETTLED = 2.0  # seconds that the head's word must stand: what it said long ago is heard again by who attaches
_LOST = ("node-lost", "head-lost")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Means:
    """What a repair is made with."""

    job: JobSpec
    secrets: Callable[[], dict[str, str]]


@dataclass(frozen=True, slots=True)
class _Made:
    """A part that has started in the place of a lost one."""

    lost: str
    part: Part


def due(board: Board, now: float, patience: float) -> str | None:
    """The node that the head has missed for too long; the head itself is another matter."""
    waiting = board.waiting
    if waiting is None or now - waiting.at < min(_GRACE, _SHARE * patience):
        return None
    return next((node for node in waiting.nodes if node in board.nodes and node != board.head), None)


def successors(
    gang: Iterable[Node], alive: frozenset[str], spares: Iterable[Node], least: int
) -> tuple[Node, ...]:
    """Who goes on: those that are left in their order, filled up with spares; nobody if that are too few."""
    wanted = tuple(gang)
    left = tuple(node for node in wanted if node.name in alive)
    more = tuple(node for node in spares if node.name in alive)[: len(wanted) - len(left)]
    chosen = left + more
    return chosen if len(chosen) >= min(least, len(wanted)) else ()


class Mender:
    """Looks after one run while its controller is attached."""

    def __init__(self, entry: Entry, gang: Gang, fleet: Fleet, means: Means | None) -> None:
        self.entry = entry
        self.gang = gang
        self._fleet = fleet
        self._means = means
        self._patience = float(entry.plan["survival"]["patience"])
        self._work: _Background[_Made | None] | None = None
        self._missed: tuple[str | None, float] = (None, 0.0)  # whom the head misses too long, and since when here
        self._looked = 0.0
        self._ousted: set[str] = set()  # nodes that had a part, and may come back with it
        self._swept = time.monotonic()
        self._tried: set[str] = set()  # nodes and containers for which this was done or found impossible
        self._unwritten: tuple[Part, ...] = ()  # the gang as it is now, while run.json could not be told
        self.problems: list[str] = []
        self.elsewhere = False  # another controller makes the repair that this run needs
        self.failed = False  # a new start was due and failed: nothing of the run is left running

    # -- while it runs -------------------------------------------------------------------

    def look(self, board: Board) -> Iterator[Event]:
        """Called often: does nothing, starts a repair beside, or tells that one is made."""
        if self._work is None:
            self._work = self._begun(board)
        elif self._work.done:
            made, self._work = self._work.result(), None
            if made is not None:
                self.gang.replace(made.lost, made.part)
                self._ousted.add(made.lost)
                yield Replaced(made.lost, made.part.node)

    def _begun(self, board: Board) -> _Background[_Made | None] | None:
        """The repair that is called for now."""
        for node, seconds in self.gang.down.items():
            long_enough = seconds > min(_DOWN, _SHARE * self._patience)
            if long_enough and self._first(f"revive {node} {board.attempt.number}"):
                return _Background(partial(self._revive, node))
        if (self._ousted or self._unwritten) and time.monotonic() - self._swept > _SWEEP:
            self._swept = time.monotonic()
            return _Background(self._sweep)
        lost = self._missing(board) if self._means else None
        if lost and lost in self.gang.parts and self._first(f"replace {lost}"):
            return _Background(lambda: self._replace(lost, board.attempt.number))
        return None

    def _sweep(self) -> None:
        """A node that was lost comes back with its part of another gang: it must not meddle with this one."""
        self._write_down()
        for node in self._ousted:
            self._fleet.reconnect(node)
        back = self._alive(self._ousted) - self.gang.parts.keys()
        found = harvest.gather(self._fleet, self.entry.run, self.gang.parts.values(), back, kill=True)
        self.problems += harvest.told({node: one for node, one in found.items() if isinstance(one, Harvest)})
        self._ousted -= {node for node in back if not isinstance(found.get(node), ClusterftError)}

    def _missing(self, board: Board) -> str | None:
        """The node that is due, once that has stood for a moment."""
        node, now = due(board, time.time(), self._patience), time.monotonic()
        if node != self._missed[0]:
            self._missed = (node, now)
        if now - self._missed[1] < _SETTLED or now - self._looked < _AGAIN:
            return None
        self._looked = now
        return node

    def _revive(self, node: str) -> None:
        try:
            self.gang.revive(node)
        except ClusterftError as error:
            self.problems.append(f"the container of {node} cannot be brought back: {error.what}")

    def _replace(self, lost: str, attempt: int) -> _Made | None:
        """A spare takes the lost node's place, if it is lost here too and there is one."""
        if self._alive([lost]):
            self._tried.discard(f"replace {lost}")  # cut off from the head alone: links heal
            return None
        rank, slots = self.gang.parts[lost].machine_rank, self._node(lost).slots
        spare = next((node for node in self._spares() if node.slots == slots and self._alive([node.name])), None)
        if spare is None:
            return None
        try:
            if not record.claim(self._fleet, self.entry.run_dir, f"replace-{lost}-{attempt}"):
                return None
        except ClusterftError as error:
            self._tried.discard(f"replace {lost}")
            self._problem(f"{lost} is not replaced yet: {error.what}")
            return None
        try:
            seat = self._seat(lost, spare, rank)
            self.gang.join(seat, self._fleet.remotes[spare.name], self._secrets())
        except ClusterftError as error:
            self.problems.append(f"{spare.name} cannot take the place of {lost}: {error.what}")
            return None
        parts = (seat.part, *(part for node, part in self.gang.parts.items() if node != lost))
        self._unwritten = tuple(sorted(parts, key=lambda part: part.machine_rank))
        self._write_down()
        return _Made(lost, seat.part)

    def _write_down(self) -> None:
        """The gang has other nodes; a share that fails now is told again later."""
        if not self._unwritten:
            return
        try:
            self.entry = record.regrouped(self.entry, self._unwritten, self._fleet)
        except ClusterftError as error:
            self._problem(f"run.json did not take at once that the gang has other nodes: {error.what}")
        else:
            self._unwritten = ()

    def _problem(self, words: str) -> None:
        if words not in self.problems:
            self.problems.append(words)

    def _seat(self, lost: str, spare: Node, rank: int) -> NodePlan:
        """The spare's part, as a member of the gang that is there: its token, its ports, the lost one's rank."""
        assert self._means is not None
        # The head and the spare: how these two reach each other is all that has to be found out.
        order = (self._node(self.gang.head.node), spare)
        run = self.entry
        wanted = Wanted(run.run, run.code, preflight=False, tag=run.image, prep=run.prep)
        alone = self._means.job.model_copy(update={"min_nodes": None})
        planned = planning.prepare(alone, self._fleet, wanted, order).plan
        mine = next(node for node in planned.nodes if node.node.name == spare.name)
        told = assignment.parse(self.gang.read(self.gang.head.node, "assignment.json"))
        member = Member(spare.name, rank, spare.slots, mine.address)
        return stand_in(mine, told, member)

    # -- once it is over -----------------------------------------------------------------

    def go_on(self, board: Board) -> Iterator[Event]:
        """Where the gang was lost with a node that only a controller can replace: plan anew and start again.

        Afterwards `gang` is another one, or the same if there was nothing to do.
        """
        if self._work is not None:
            self._work.wait()
            self._work = None
        if self._means is None or board.asked or not self._worth(board):
            return
        alive = self._alive([node.name for node in self._fleet.cluster.nodes])
        job = self._means.job
        # Work that is claimed needs nobody in particular.
        least = 1 if self.entry.prep else job.min_nodes or len(self._members())
        chosen = successors(self._members(), alive, self._spares(), least)
        attempt = max(board.attempts, default=-1) + 1
        if not chosen:
            return
        if not self._claimed(f"start-{attempt}"):
            self.elsewhere = True
            return
        try:
            if self._claimed(f"replan-{attempt}"):
                for node in self._fleet.remotes.keys() - alive:
                    self._fleet.leave(node)  # every further question would wait for it
                yield from self._start_or_end(board, chosen, attempt)
            else:
                self.elsewhere = True
        finally:
            self._release(f"start-{attempt}")

    def _start_or_end(self, board: Board, chosen: tuple[Node, ...], attempt: int) -> Iterator[Event]:
        """A start that fails leaves nothing running: that is the run's end, and whoever comes next may try."""
        try:
            yield from self._start_anew(board, chosen, attempt)
        except Exception as error:
            self.failed = True
            remedy = error.remedy if isinstance(error, ClusterftError) else ""
            record.end(self.entry, self._fleet, Verdict("failed", str(error), failure="start", remedy=remedy))
            self._release(f"replan-{attempt}")
            raise

    def _release(self, what: str) -> None:
        if problem := record.release(self._fleet, self.entry.run_dir, what):
            self._problem(problem)

    def _claimed(self, what: str) -> bool:
        """A share that fails for a moment is asked again; one that goes on failing takes no new start either."""
        for _ in range(_TRIES - 1):
            try:
                return record.claim(self._fleet, self.entry.run_dir, what)
            except ClusterftError as error:
                self._problem(f"the run could not be claimed at once: {error.what}")
                time.sleep(_PAUSE)
        self.failed = True  # unless this last time it can be: the run is over, and this controller cannot mend it
        mine = record.claim(self._fleet, self.entry.run_dir, what)
        self.failed = False
        return mine

    def _start_anew(self, board: Board, chosen: tuple[Node, ...], attempt: int) -> Iterator[Event]:
        """Planned with these nodes, all started."""
        assert self._means is not None
        job, secrets = self._means.job, self._secrets()
        harvest.gather(self._fleet, self.entry.run, self.gang.parts.values(), kill=True)
        left = max(0, job.restarts - board.used - 1)
        again = job.model_copy(update={"restarts": left})
        run = self.entry
        wanted = Wanted(run.run, run.code, attempt, run.preflight, tag=run.image, prep=run.prep)
        planned = planning.prepare(again, self._fleet, wanted, chosen).plan
        self.entry = record.again(self.entry, planned, self._fleet, job, self.entry.code)
        self._ousted |= self.gang.parts.keys() - {node.name for node in chosen}
        self.gang = Gang(self.entry.run, self.entry.cluster, planned.parts, self._fleet, self._patience)
        yield Replanned(tuple(self.gang.parts), attempt)
        yield from self.gang.start(planned, secrets)

    def _worth(self, board: Board) -> bool:
        """Whether it ended for want of a node, and may begin again."""
        verdict = judge(board)
        allowed = board.allowed
        return (
            verdict.end == "failed"
            and verdict.failure in _LOST
            and bool(board.attempts)
            and (allowed is None or board.used < allowed)
        )

    # -- who is there --------------------------------------------------------------------

    def _members(self) -> tuple[Node, ...]:
        """The nodes of the gang, by machine rank."""
        parts = sorted(self.gang.parts.values(), key=lambda part: part.machine_rank)
        return tuple(self._node(part.node) for part in parts)

    def _node(self, name: str) -> Node:
        return next(node for node in self._fleet.cluster.nodes if node.name == name)

    def _spares(self) -> tuple[Node, ...]:
        """Nodes without a part of the run; in the hostfile's order."""
        free = self._fleet.remotes.keys() - self.gang.parts.keys()
        return tuple(node for node in self._fleet.cluster.nodes if node.name in free)

    def _alive(self, names: Iterable[str]) -> frozenset[str]:
        """Those of them that answer now."""
        asked = frozenset(names) & self._fleet.remotes.keys()

        def one(name: str, remote: object) -> bool:
            return name in asked and self._fleet.remotes[name].run(("true",), seconds=_PROBE_SECONDS).code == 0

        found = self._fleet.each(one)
        return frozenset(name for name, answer in found.items() if not isinstance(answer, Unreachable) and answer)

    def _secrets(self) -> dict[str, str]:
        assert self._means is not None
        return self._means.secrets()

    def _first(self, what: str) -> bool:
        new = what not in self._tried
        self._tried.add(what)
        return new


class _Background(Generic[T]):
    """One piece of work beside the watching."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._result: T | None = None
        self._error: Exception | None = None
        self._done = threading.Event()
        self._call = work
        threading.Thread(target=self._run, name="mend", daemon=True).start()

    def _run(self) -> None:
        try:
            self._result = self._call()
        except Exception as error:  # noqa: BLE001 - raised again where the result is taken
            self._error = error
        self._done.set()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def wait(self) -> None:
        self._done.wait()

    def result(self) -> T | None:
        if self._error is not None:
            raise self._error
        return self._result
