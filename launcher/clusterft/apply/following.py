"""One node's part, followed: each line of its stream once, whatever breaks on the way and comes back.

A node that cannot be reached is not dead: it is silent, and asked again, until its time is up.
"""

from __future__ import annotations

import queue
import threading
import time

from clusterft.errors import ClusterftError
from clusterft.events import Event, Gone, HeardAgain, Said, Silent
from clusterft.fleet import Fleet
from clusterft.plan import Part
from clusterft.remote import Lines, Unreachable
from clusterft.runtime import DOWN, Carrier
from clusterft_trainer import stream

_RETRY = 2.0
_BLINK = 0.3
_WAITING = 20_000  # lines that may wait to be taken; a reader that lags makes the node wait, not this machine full


class Heard:
    """What the followers of a gang have heard, in the order in which it came."""

    def __init__(self) -> None:
        self._events: queue.Queue[Event] = queue.Queue(_WAITING)
        self.closed = threading.Event()

    def give(self, event: Event) -> None:
        """From a follower; waits while there is no room, but not for a reader that has gone."""
        while not self.closed.is_set():
            try:
                self._events.put(event, timeout=1.0)
            except queue.Full:
                continue
            return

    def take(self, seconds: float) -> Event | None:
        """The next event; None when none came."""
        try:
            return self._events.get(timeout=seconds)
        except queue.Empty:
            return None


class Follower:
    """Reads one part's lines in a thread of its own."""

    def __init__(self, part: Part, carrier: Carrier, fleet: Fleet, heard: Heard, patience: float) -> None:
        self.part = part
        self._node = part.node
        self._carrier = carrier
        self._fleet = fleet
        self._heard = heard
        self._patience = patience
        self._seen = 0  # lines passed on
        self._last = ""
        self._heard_at = time.monotonic()  # when anything came, a heartbeat too: a quiet node is a healthy one
        self._silent = False
        self._blinked = False  # broken off once, and tried again before anybody is told
        self._left = False
        self.down = False  # it is reached, and its container does not run
        self._lines: Lines | None = None

    def start(self) -> None:
        """Begin to follow."""
        threading.Thread(target=self.run, name=f"follow-{self._node}", daemon=True).start()

    def leave(self) -> None:
        """Nobody wants to hear more of it."""
        self._left = True
        if self._lines is not None:
            self._lines.close()

    def run(self) -> None:
        """Until the part is over or given up; a bug here must not look like silence."""
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - the thread's outermost place: `events` would wait for ever
            self._give(Gone(self._node, f"it could not be followed: {type(error).__name__}: {error}"))

    def _run(self) -> None:
        while not (self._left or self._heard.closed.is_set()):
            words = self._follow()
            if words is None:
                return
            if not self._silent and not self._blinked:
                self._blinked = True  # a container that ends takes its follower with it: its last words are kept
                time.sleep(_BLINK)
                continue
            if not self._silent:
                self._silent = True
                self._give(Silent(self._node, f"{words}; it is given up after {self._patience:.0f} s of silence"))
            if time.monotonic() - self._heard_at > self._patience:
                self._give(Gone(self._node, f"not heard for {self._patience:.0f} s: {words}"))
                return
            time.sleep(_RETRY)
            if not self.down:
                self._fleet.reconnect(self._node)

    def _follow(self) -> str | None:
        """Pass on the lines that are new; why it broke off, or None when the part is over."""
        remote = self._fleet.remotes.get(self._node)
        if remote is None:
            return "it cannot be reached"
        try:
            self._lines = self._carrier.follow(self.part, remote, self._seen)
            for text in self._lines:
                self._alive()
                if text and self._hear(text):
                    return None
        except (ClusterftError, OSError) as error:
            self.down = isinstance(error, Unreachable) and error.id == DOWN
            words = str(error) or "nothing was heard from it for a while"
        else:
            self.down, words = False, "the connection broke"
        finally:
            if self._lines is not None:
                self._lines.close()
        if self._last and stream.decode(self._last) is None:
            self._seen -= 1  # cut short by the break: it is asked for again
        self._last = ""
        return words

    def _hear(self, text: str) -> bool:
        """Take one line in; whether it was the last."""
        line = stream.decode(text)
        if isinstance(line, stream.Vanished):
            self._give(Gone(self._node, "its supervisor ended without a last word"))
            return True
        self._seen += 1
        self._last = text
        if line is not None:
            self._give(Said(self._node, line))
        return isinstance(line, stream.Ended)

    def _alive(self) -> None:
        self._heard_at = time.monotonic()
        self._blinked = False
        if self._silent:
            self._silent = False
            self._give(HeardAgain(self._node))

    def _give(self, event: Event) -> None:
        if not self._left:
            self._heard.give(event)
