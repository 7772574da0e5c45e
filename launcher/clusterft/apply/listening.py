"""What the parts of a run have said and go on saying: every line once, in bounded memory, merged by time.

A reader a part takes lines in across broken connections and stops taking when nobody takes them from it, so that
neither a flood nor a history of gigabytes fills this machine. Each part's own order is kept, whatever its clock.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from clusterft.errors import ClusterftError
from clusterft.events import Event, Gone, HeardAgain, Said, Silent
from clusterft.remote import Lines, Unreachable
from clusterft_trainer import stream

_DOWN = "run.container-down"  # the node answers, and its container is about to be brought back
VANISHED = "its supervisor ended without a last word"
_BUDGET = 24 * 2**20  # characters that may wait, of all parts together
_LEAST = 64 * 2**10  # of one part: more than its longest line
_MOMENT = 0.25  # seconds that a part which says nothing holds the others up
_BEGINNING = 10.0  # the same before it has told all that there was: an interpreter starts, a connection is slow
_RETRY = 2.0
_LAST_WORDS = 5.0  # seconds for the exit code of a command whose output has ended
_TRIES = 2  # of somebody who wants what is there now, not what is to come


@dataclass(frozen=True, slots=True)
class Source:
    """One part's lines: how to read them from a line on, and what to do when that broke off."""

    node: str
    open: Callable[[int], Lines]
    reconnect: Callable[[], object] = lambda: None  # not asked for where the connection is well
    lasting: bool = True  # it goes on until its last word; else it is a file that ends where it ends


def listen(
    sources: Sequence[Source], *, follow: bool, offsets: Mapping[str, float] | None = None
) -> Iterator[Event | None]:
    """All that the parts say; None when nothing came for a moment.

    With `follow`, until all are over; without, until each has told what there is now: a heartbeat (a blank line)
    says that a part has no more to tell.
    """
    news = threading.Event()
    budget = max(_LEAST, _BUDGET // max(1, len(sources)))
    ears = [_Ear(source, news, budget, follow=follow) for source in sources]
    try:
        for ear in ears:
            ear.start()
        yield from _merge(ears, news, offsets or {})
    finally:
        for ear in ears:
            ear.close()


def _merge(ears: list[_Ear], news: threading.Event, offsets: Mapping[str, float]) -> Iterator[Event | None]:
    """The earliest line of those that are there; who says nothing is waited for, but not for long."""
    heads: dict[int, tuple[float, Event]] = {}
    awaited: dict[int, float] = {}  # since when
    while True:
        news.clear()
        for place, ear in enumerate(ears):
            if place not in heads and (head := ear.take(offsets.get(ear.node, 0.0))):
                heads[place] = head
                awaited.pop(place, None)
        now = time.monotonic()
        missing = [
            place
            for place, ear in enumerate(ears)
            if place not in heads and not ear.dry and now < awaited.setdefault(place, now) + ear.patience
        ]
        if missing and not any(ear.full for ear in ears):
            news.wait(_MOMENT)
        elif heads:
            first = min(heads, key=lambda place: heads[place][0])
            yield heads.pop(first)[1]
        elif all(ear.dry for ear in ears):
            return
        else:
            yield None
            news.wait(_MOMENT)


class _Ear:
    """Takes one part's lines in, in a thread of its own."""

    def __init__(self, source: Source, news: threading.Event, budget: int, *, follow: bool) -> None:
        self.node = source.node
        self._source = source
        self._news = news
        self._budget = budget
        self._follow = follow
        self._waiting: deque[str | Event] = deque()
        self._held = 0  # characters in it
        self._room = threading.Condition()
        self._seen = 0  # lines of the part's stream that were taken in
        self._last = ""
        self._latest = 0.0  # time of the newest line that was given out
        self._told = False  # whether all that there was has been told, so that only news is to come
        self._silent = False
        self._unreached = True  # whether the last break may be the connection's fault
        self._over = False
        self._closed = False
        self._lines: Lines | None = None

    @property
    def dry(self) -> bool:
        """Whether nothing more will come."""
        return self._over and not self._waiting

    @property
    def patience(self) -> float:
        """Seconds that the others wait for its next line: its history must not come after what followed it."""
        return _MOMENT if self._told else _BEGINNING

    @property
    def full(self) -> bool:
        """Whether it has stopped taking lines in."""
        return self._held >= self._budget

    def start(self) -> None:
        """Begin to listen."""
        threading.Thread(target=self._run, name=f"listen-{self.node}", daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        with self._room:
            self._closed = True
            self._room.notify()
        if self._lines is not None:
            self._lines.close()

    def take(self, ahead: float) -> tuple[float, Event] | None:
        """The next line with its time on the controller's clock, never before the one that came before it."""
        while self._waiting:
            one = self._waiting.popleft()
            if not isinstance(one, str):
                return self._latest, one
            self._let_go(len(one))
            line = stream.decode(one)
            if line is not None:
                at = line.record.at if isinstance(line, stream.Progress) else line.at
                self._latest = max(self._latest, at - ahead)
                return self._latest, Said(self.node, line)
        return None

    def _let_go(self, count: int) -> None:
        with self._room:
            self._held -= count
            self._room.notify()

    def _run(self) -> None:
        """Until the part is over, or as long as somebody listens; a bug here must not look like silence."""
        try:
            self._listen()
        except Exception as error:  # noqa: BLE001 - the thread's outermost place: the merge would wait for ever
            self._waiting.append(Gone(self.node, f"it could not be followed: {type(error).__name__}: {error}"))
        self._over = True
        self._news.set()

    def _listen(self) -> None:
        tries = 0
        while not self._closed:
            words = self._read()
            if words is None or self._closed:
                return
            tries += 1
            if not self._source.lasting or (not self._follow and tries >= _TRIES):
                self._give(Gone(self.node, words))
                return
            self._told = True
            if not self._silent:
                self._silent = True
                self._give(Silent(self.node, words))
            self._pause()
            if self._unreached:
                self._source.reconnect()

    def _pause(self) -> None:
        with self._room:
            self._room.wait_for(lambda: self._closed, timeout=_RETRY)

    def _read(self) -> str | None:
        """Take lines in until there are no more; why it broke off, or None when that is all there is."""
        self._unreached = True
        try:
            self._lines = self._source.open(self._seen)
            for text in self._lines:
                if self._closed or self._hear(text):
                    return None
        except (ClusterftError, OSError) as error:
            self._unreached = not (isinstance(error, Unreachable) and error.id == _DOWN)
            words = str(error) or "nothing was heard from it for a while"
        else:
            words = "the connection broke"
            if not self._source.lasting:
                if self._lines.code(_LAST_WORDS) == 0:
                    return None
                words = self._lines.complaint() or "it cannot be read"
        finally:
            if self._lines is not None:
                self._lines.close()
        # A line that was cut short by the break counts as unread.
        if self._last and stream.decode(self._last) is None:
            self._seen -= 1
        self._last = ""
        return words

    def _hear(self, text: str) -> bool:
        """Take one line in; whether it was the last that is wanted."""
        if self._silent:
            self._silent = False
            self._give(HeardAgain(self.node))
        if not text:
            self._told = True
            return not self._follow
        if '"vanished"' in text and isinstance(stream.decode(text), stream.Vanished):
            self._give(Gone(self.node, VANISHED))
            return True
        self._seen += 1
        self._last = text
        with self._room:
            self._room.wait_for(lambda: self._held < self._budget or self._closed)
            self._held += len(text)
        self._give(text)
        # A file may hold the lives of a run that was resumed, each with an end of its own.
        return self._source.lasting and '"ended"' in text and isinstance(stream.decode(text), stream.Ended)

    def _give(self, one: str | Event) -> None:
        self._waiting.append(one)
        self._news.set()


def unreachable(node: str, words: str) -> Source:
    """A part that cannot be asked: it says so, once."""

    def open_(_skip: int) -> Lines:
        raise Unreachable("ssh.unreachable", words)

    return Source(node, open_)
