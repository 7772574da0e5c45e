"""The gang: all nodes' parts of one run, started together and ended together.

A start is a barrier: all up, or all removed. A part that fails ends the others, after a moment in which they may
say their own last words. A node that cannot be reached is not dead.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

from clusterft.errors import ClusterftError
from clusterft.events import Event, Gone, Said, Silent, StageDone, Stopping
from clusterft.fleet import Fleet
from clusterft.plan import LaunchPlan, NodePlan
from clusterft.remote import Remote, Unreachable
from clusterft.runtime import process
from clusterft_trainer import stream

_OWN_WORDS = 5.0  # seconds that the other parts get to fail by themselves
_INSIST = 10.0  # seconds after which a part that was told to stop is killed
_FINAL = 20.0  # seconds after which a part that was told to die and says nothing counts as lost
_PATIENCE = 300.0  # seconds a node may be unreachable before it counts as lost
_RETRY = 2.0

_Work = Callable[[NodePlan, Remote], None]


class Gang:
    """One run on its nodes. `events` must be read to its end, also after `stop`."""

    def __init__(self, plan: LaunchPlan, fleet: Fleet) -> None:
        self._plan = plan
        self._fleet = fleet
        self._heard: queue.Queue[Event] = queue.Queue()
        self._over: set[str] = set()
        self._failed_at: float | None = None
        self._told = 0
        self._told_at = 0.0

    def start(self, secrets: dict[str, str]) -> Iterator[Event]:
        """Put the files, then start all supervisors; on any failure nothing is left running."""
        yield self._stage("files on all nodes", lambda node, remote: process.put(node, remote, secrets))
        try:
            yield self._stage("supervisors started", process.start)
        except BaseException:
            self.stop()
            self.stop()
            raise

    def events(self) -> Iterator[Event | None]:
        """Everything that happens until every part is over; None now and then, so that a caller can act."""
        for node in self._plan.nodes:
            threading.Thread(
                target=self._listen, args=(node,), name=f"follow-{node.node.name}", daemon=True
            ).start()
        while len(self._over) < len(self._plan.nodes):
            try:
                event = self._heard.get(timeout=0.2)
            except queue.Empty:
                yield None
            else:
                self._note(event)
                yield event
            yield from self._end_the_rest()
            yield from self._give_up()

    def stop(self) -> None:
        """Ask every part to stop; asked twice, they are killed."""
        self._told += 1
        self._told_at = time.monotonic()
        nodes = {node.node.name: node for node in self._plan.nodes}
        # A node that cannot be reached now is asked again by nobody: its `Gone` says so in the end.
        self._fleet.each(lambda name, remote: process.stop(nodes[name], remote))

    def _stage(self, name: str, work: _Work) -> StageDone:
        began = time.monotonic()
        nodes = {node.node.name: node for node in self._plan.nodes}
        outcomes = self._fleet.each(lambda node, remote: _kept(work, nodes[node], remote))
        wrong = [error for error in outcomes.values() if error is not None]
        if wrong:
            raise wrong[0]
        return StageDone(name, time.monotonic() - began)

    def _note(self, event: Event) -> None:
        """Count the parts that are over, and remember the first that failed."""
        failed = isinstance(event, Gone)
        if isinstance(event, Said) and isinstance(event.line, stream.Ended):
            self._over.add(event.node)
            failed = event.line.end == "failed"
        elif isinstance(event, Gone):
            self._over.add(event.node)
        if failed and self._failed_at is None:
            self._failed_at = time.monotonic()

    def _end_the_rest(self) -> Iterator[Event]:
        """One part has failed: the others follow, first by themselves, then asked, then killed."""
        if self._failed_at is None or len(self._over) == len(self._plan.nodes):
            return
        waited = time.monotonic() - self._failed_at
        due = (waited > _OWN_WORDS) + (waited > _OWN_WORDS + _INSIST)
        while self._told < due:
            yield Stopping("a part failed")
            self.stop()

    def _give_up(self) -> Iterator[Event]:
        """Parts that were told to die and cannot be heard: their node is gone, or cut off."""
        if self._told < 2 or time.monotonic() - self._told_at < _FINAL:
            return
        for node in self._plan.nodes:
            if node.node.name not in self._over:
                self._over.add(node.node.name)
                yield Gone(node.node.name, f"it did not answer for {_FINAL:.0f} s after being told to end")

    def _listen(self, node: NodePlan) -> None:
        """In a thread: pass on one node's lines, each once, across broken connections."""
        name, seen, heard_at, silent = node.node.name, 0, time.monotonic(), False
        while True:
            count, words = self._follow(node, skip=seen)
            if words is None:
                return
            if count > seen:
                seen, heard_at, silent = count, time.monotonic(), False
            if not silent:
                silent = True
                self._heard.put(Silent(name, words))
            if time.monotonic() - heard_at > _PATIENCE:
                self._heard.put(Gone(name, f"unreachable for {_PATIENCE:.0f} s"))
                return
            time.sleep(_RETRY)
            self._fleet.reconnect(name)

    def _follow(self, node: NodePlan, skip: int) -> tuple[int, str | None]:
        """Read one follower's lines; (how many there were, why they broke off or None when the part is over)."""
        name, count, words = node.node.name, 0, "the connection broke"
        try:
            for text in process.follow(node, self._fleet.remotes[name]):
                line = stream.decode(text)
                if line is None:
                    continue
                count += 1
                if isinstance(line, stream.Vanished):
                    self._heard.put(Gone(name, "its supervisor ended without a last word"))
                    return count, None
                if count > skip:
                    self._heard.put(Said(name, line))
                if isinstance(line, stream.Ended):
                    return count, None
        except (Unreachable, OSError) as error:
            words = str(error) or "nothing was heard from it for a while"
        return count, words


def _kept(work: _Work, node: NodePlan, remote: Remote) -> ClusterftError | None:
    """Errors are outcomes here, so that one node's failure does not hide how the others fared."""
    try:
        work(node, remote)
    except ClusterftError as error:
        return error
    return None
