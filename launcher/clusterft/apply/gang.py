"""The gang: all nodes' parts of one run, started together, followed and stopped as one thing.

A start is a barrier: all up, or all removed. After it the supervisors decide by themselves what becomes of the
run; here is who listens to them, and who gives a node up for this controller alone. A node that cannot be reached
is not dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from clusterft.apply.following import Follower, Heard
from clusterft.errors import ClusterftError
from clusterft.events import Event, Gone, HeardAgain, Said, Silent, StageDone
from clusterft.fleet import Fleet
from clusterft.plan import LaunchPlan, NodePlan, Part
from clusterft.remote import Remote, Unreachable
from clusterft.runtime import carrier
from clusterft.runtime.process import CannotStart
from clusterft_trainer import stream

_FINAL = 20.0  # seconds after the head's last word in which the others say theirs
_TICK = 0.2
_WAIT_FOR = 'for i in 1 2 3 4 5 6 7 8 9 10; do [ -s "$1" ] && exit 0; sleep 1; done; exit 1'

T = TypeVar("T")


class Gang:
    """One run on its nodes. `events` must be read to its end, also after `stop`."""

    def __init__(
        self, run: str, cluster: str, parts: tuple[Part, ...], fleet: Fleet, patience: float = 300.0
    ) -> None:
        self.run = run
        self.cluster = cluster
        self.parts = {part.node: part for part in parts}
        self._fleet = fleet
        self._patience = patience
        self._carrier = carrier(parts[0].runtime, cluster, run)
        self._heard = Heard()
        self._followers: dict[str, Follower] = {}
        self._over: set[str] = set()
        self._silent: dict[str, float] = {}  # node -> since when
        self._head_ended: float | None = None
        self._begun: set[str] | None = set()
        self._began = time.monotonic()

    @property
    def head(self) -> Part:
        """The part of rank 0, or the first that is left."""
        return min(self.parts.values(), key=lambda part: part.machine_rank)

    # -- start ---------------------------------------------------------------------------

    def start(self, planned: LaunchPlan, secrets: dict[str, str]) -> Iterator[Event]:
        """Put everything there, then start all supervisors; on any failure nothing is left running."""
        nodes = {node.node.name: node for node in planned.nodes}
        contained = planned.runtime == "docker"
        try:
            what = "containers created on all nodes" if contained else "files on all nodes"
            yield self._stage(what, lambda part, remote: self._carrier.put(nodes[part.node], remote, secrets))
            if not contained:  # containers find out by themselves, inside
                yield self._stage(
                    "shared directory seen by all", lambda part, remote: _sees_share(planned, part, remote)
                )
            yield self._stage("supervisors started", self._carrier.start)
        except BaseException:
            self.each(lambda part, remote: _kept(lambda: self._carrier.discard(part, remote)))
            raise
        self._began = time.monotonic()

    def join(self, node: NodePlan, remote: Remote, secrets: dict[str, str]) -> None:
        """One more part, in the place of another that is lost; nothing of it is left if it cannot start."""
        try:
            self._carrier.put(node, remote, secrets)
            self._carrier.start(node.part, remote)
        except BaseException:
            _kept(lambda: self._carrier.discard(node.part, remote))
            raise

    def _stage(self, name: str, work: Callable[[Part, Remote], None]) -> StageDone:
        began = time.monotonic()
        outcomes = self.each(lambda part, remote: _kept(lambda: work(part, remote)))
        missing = [node for node in self.parts if node not in outcomes]
        wrong = [error for error in outcomes.values() if isinstance(error, ClusterftError)]
        if missing:
            wrong.append(CannotStart(f"{', '.join(missing)} cannot be reached"))
        if wrong:
            raise _together(wrong)
        return StageDone(name, time.monotonic() - began)

    # -- what happens --------------------------------------------------------------------

    def events(self) -> Iterator[Event | None]:
        """Everything that happens until every part is over; None now and then, so that a caller can act."""
        self.follow(self.parts.values())
        try:
            while not self.over:
                event = self._heard.take(_TICK)
                if event is None or self._of_another(event):
                    yield None
                else:
                    yield from self._note(event)
                yield from self._give_up()
        finally:
            self._heard.closed.set()
            for follower in self._followers.values():
                follower.leave()

    @property
    def over(self) -> bool:
        """Whether nothing more is to be heard."""
        return self._over >= self.parts.keys()

    @property
    def silent(self) -> dict[str, float]:
        """Nodes that are not heard, and for how many seconds."""
        now = time.monotonic()
        return {node: now - since for node, since in self._silent.items() if node not in self._over}

    @property
    def down(self) -> dict[str, float]:
        """Those of them that are reached well, but whose container does not run."""
        return {node: seconds for node, seconds in self.silent.items() if self._followers[node].down}

    def follow(self, parts: Iterable[Part]) -> None:
        """Listen to these parts from now on, from their first line."""
        for part in list(parts):
            self.parts[part.node] = part
            follower = Follower(part, self._carrier, self._fleet, self._heard, self._patience)
            self._followers[part.node] = follower
            self._over.discard(part.node)
            self._silent.pop(part.node, None)
            follower.start()

    def ignore(self, nodes: Iterable[str]) -> None:
        """Nothing is to be heard from these."""
        for node in nodes:
            self.parts.pop(node, None)

    def replace(self, lost: str, part: Part) -> None:
        """Another node has the place of one that is lost."""
        self._followers.pop(lost).leave()
        del self.parts[lost]
        self._over.discard(lost)
        self._silent.pop(lost, None)
        self.follow([part])

    def _of_another(self, event: Event) -> bool:
        """The late word of a node that has been replaced."""
        return getattr(event, "node", None) not in self.parts

    def _note(self, event: Event) -> Iterator[Event]:
        """Count the parts that are over; the first attempt's beginning on all nodes ends the start."""
        if isinstance(event, Silent):
            self._silent.setdefault(event.node, time.monotonic())
        elif isinstance(event, (Said, HeardAgain)):
            self._silent.pop(event.node, None)
        elif isinstance(event, Gone):
            self._over.add(event.node)
        if isinstance(event, Said) and isinstance(event.line, stream.Ended):
            self._over.add(event.node)
            if event.node == self.head.node:
                self._head_ended = time.monotonic()
        yield event
        if self._begun is not None and isinstance(event, Said) and isinstance(event.line, stream.Attempt):
            self._begun.add(event.node)
            if self._begun >= self.parts.keys():
                self._begun = None
                if event.line.attempt == 0:
                    yield StageDone("all nodes have met", time.monotonic() - self._began)

    def _give_up(self) -> Iterator[Event]:
        """The head has spoken for the whole run: who is not heard by then is not waited for."""
        if self._head_ended is None or time.monotonic() - self._head_ended < _FINAL:
            return
        for node in self.parts.keys() - self._over:
            self._over.add(node)
            words = "no last word; what is left there is cleared away now, or by"
            yield Gone(node, f"{words}: clusterft status {self.run}")

    # -- end -----------------------------------------------------------------------------

    def stop(self, *, now: bool) -> dict[str, bool | ClusterftError]:
        """Ask every part to stop, or with `now` end it: whether there was something to end, on each node.

        A node that cannot do it does not keep the others from it.
        """
        return self.each(lambda part, remote: _kept(lambda: self._carrier.stop(part, remote, now=now)))

    def alive(self) -> dict[str, bool | ClusterftError]:
        """Whose supervisor is there, or will be again; or why that is not known."""
        return self.each(lambda part, remote: _kept(lambda: self._carrier.alive(part, remote)))

    def revive(self, node: str) -> bool:
        """Bring back a part that its engine has given up; whether that was called for."""
        return self._carrier.revive(self.parts[node], self._fleet.remotes[node])

    def read(self, node: str, name: str) -> str:
        """A small file that lies where a part does; empty where there is none."""
        return self._carrier.read(self.parts[node], self._fleet.remotes[node], name)

    def each(self, work: Callable[[Part, Remote], T]) -> dict[str, T | Unreachable]:
        """The same for all parts at once; nodes without a connection are not in the answer."""

        def one(node: str, remote: Remote) -> T | None:
            part = self.parts.get(node)
            return None if part is None else work(part, remote)

        found = self._fleet.each(one)
        return {node: found[node] for node in self.parts if node in found}  # type: ignore[misc]


def _sees_share(planned: LaunchPlan, part: Part, remote: Remote) -> None:
    """fs.not-shared: what the head has written must be there on every node, if need be after NFS's caches."""
    path = str(planned.places.dir / "run.json")
    done = remote.run(("sh", "-c", _WAIT_FOR, "sh", path), seconds=60.0)
    if done.code != 0:
        head = planned.head.node.name
        raise CannotStart(
            f"fs.not-shared: {part.node} does not see {path}, which {head} has written",
            remedy=f"mount the same directory on every node; on each: findmnt -T {planned.places.shared}",
        )


def _together(wrong: list[ClusterftError]) -> ClusterftError:
    """One error that tells of all nodes: whoever mends the first should not meet the second an hour later."""
    first, *more = dict.fromkeys((error.what, error.where, error.remedy) for error in wrong)
    if not more:
        return wrong[0]
    lines = [f"{where}: {what}" if where else what for what, where, _ in (first, *more)]
    return CannotStart("; ".join(lines), remedy=first[2])


def _kept(work: Callable[[], T]) -> T | ClusterftError:
    """Errors are outcomes here, so that one node's failure does not hide how the others fared."""
    try:
        return work()
    except ClusterftError as error:
        return error
