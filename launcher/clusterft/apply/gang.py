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
from clusterft.events import Event, Gone, HeardAgain, Said, Silent, StageDone, Stopping
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

_WAIT_FOR = 'for i in 1 2 3 4 5 6 7 8 9 10; do [ -s "$1" ] && exit 0; sleep 1; done; exit 1'

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
        self._silent: set[str] = set()

    def start(self, secrets: dict[str, str]) -> Iterator[Event]:
        """Put the files, then start all supervisors; on any failure nothing is left running."""
        nodes = {node.node.name: node for node in self._plan.nodes}
        try:
            yield self._stage("files on all nodes", lambda node, remote: process.put(node, remote, secrets))
            yield self._stage("shared directory seen by all", self._sees_share)
            yield self._stage("supervisors started", process.start)
        except BaseException:
            self._fleet.each(lambda name, remote: _kept(process.discard, nodes[name], remote))
            raise

    def _sees_share(self, node: NodePlan, remote: Remote) -> None:
        """fs.not-shared: what the head has written must be there on every node, if need be after NFS's caches."""
        path = str(self._plan.places.dir / "run.json")
        done = remote.run(("sh", "-c", _WAIT_FOR, "sh", path), seconds=60.0)
        if done.code != 0:
            head = self._plan.head.node.name
            raise process.CannotStart(
                f"fs.not-shared: {node.node.name} does not see {path}, which {head} has written",
                remedy=f"mount the same directory on every node; on each: findmnt -T {self._plan.places.shared}",
            )

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
        if isinstance(event, Silent):
            self._silent.add(event.node)
        elif isinstance(event, (Said, HeardAgain)):
            self._silent.discard(event.node)
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
        if self._told < 2:
            return
        for node in self._plan.nodes:
            # One that was silent before has had its time already.
            patience = _RETRY if node.node.name in self._silent else _FINAL
            if node.node.name not in self._over and time.monotonic() - self._told_at > patience:
                self._over.add(node.node.name)
                words = "no answer after being told to end; what runs there may still run"
                yield Gone(node.node.name, f"{words}: clusterft stop {self._plan.run} --now")

    def _listen(self, node: NodePlan) -> None:
        """In a thread: pass on one node's lines until its part is over; a bug here must not look like silence."""
        try:
            _Follower(node, self._fleet, self._heard).run()
        except Exception as error:  # noqa: BLE001 - the thread's outermost place: `events` would wait for ever
            self._heard.put(Gone(node.node.name, f"it could not be followed: {type(error).__name__}: {error}"))


class _Follower:
    """Reads one node's lines, each once, across broken connections."""

    def __init__(self, node: NodePlan, fleet: Fleet, heard: queue.Queue[Event]) -> None:
        self._node = node
        self._name = node.node.name
        self._fleet = fleet
        self._heard = heard
        self._seen = 0  # lines passed on
        self._heard_at = time.monotonic()  # when anything came, a heartbeat too: a quiet node is a healthy one
        self._silent = False

    def run(self) -> None:
        """Until the part is over, or the node has been out of reach for too long."""
        while True:
            words = self._follow()
            if words is None:
                return
            if not self._silent:
                self._silent = True
                self._heard.put(Silent(self._name, f"{words}; it is given up after {_PATIENCE:.0f} s of silence"))
            if time.monotonic() - self._heard_at > _PATIENCE:
                self._heard.put(Gone(self._name, f"unreachable for {_PATIENCE:.0f} s"))
                return
            time.sleep(_RETRY)
            self._fleet.reconnect(self._name)

    def _follow(self) -> str | None:
        """Read from the first line on; why it broke off, or None when the part is over."""
        count = 0
        try:
            for text in process.follow(self._node, self._fleet.remotes[self._name]):
                self._alive()
                line = stream.decode(text)
                if line is None:
                    continue
                count += 1
                if isinstance(line, stream.Vanished):
                    self._heard.put(Gone(self._name, "its supervisor ended without a last word"))
                    return None
                if count > self._seen:
                    self._seen = count
                    self._heard.put(Said(self._name, line))
                if isinstance(line, stream.Ended):
                    return None
        except (Unreachable, OSError) as error:
            return str(error) or "nothing was heard from it for a while"
        return "the connection broke"

    def _alive(self) -> None:
        self._heard_at = time.monotonic()
        if self._silent:
            self._silent = False
            self._heard.put(HeardAgain(self._name))


def _kept(work: _Work, node: NodePlan, remote: Remote) -> ClusterftError | None:
    """Errors are outcomes here, so that one node's failure does not hide how the others fared."""
    try:
        work(node, remote)
    except ClusterftError as error:
        return error
    return None
