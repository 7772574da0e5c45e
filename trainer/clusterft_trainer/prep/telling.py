"""What a worker says while it prepares: progress lines of the first rank, plain lines of the others.

Owns when it speaks: often enough that whoever watches sees that it lives, seldom enough to be read.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from clusterft_trainer import metrics

if TYPE_CHECKING:
    from clusterft_trainer.corpus.ingest import Progress

EVERY = 15.0  # seconds


class Voice:
    """One worker's."""

    def __init__(self, *, leads: bool, every: float = EVERY) -> None:
        self.leads = leads
        self._every = every
        self._next = every
        self._again = time.monotonic() + every

    def phase(self, name: str) -> None:
        """A stage begins."""
        if self.leads:
            metrics.phase(name)

    def notice(self, text: str) -> None:
        """Something that whoever started this should know."""
        if self.leads:
            metrics.notice(text)
        else:
            self.line(text)

    def line(self, text: str) -> None:
        """Something for the log of this rank alone."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def looked(self, progress: Progress) -> None:
        """How far ingest is, once in a while."""
        if progress.seconds < self._next:
            return
        self._next = progress.seconds + self._every
        of = "" if progress.total is None else f" of {progress.total}"
        rate = progress.done / max(1e-9, progress.seconds)
        self.notice(f"Pictures looked at: {progress.done}{of}, {rate:.0f} a second.")

    def now_and_then(self, text: str) -> None:
        """Tell this, if nothing of the kind was told lately."""
        now = time.monotonic()
        if now >= self._again:
            self._again = now + self._every
            self.notice(text)

    @contextmanager
    def watching(self, words: Callable[[], str]) -> Iterator[None]:
        """Tell something again and again while it lasts."""
        over = threading.Event()

        def speak() -> None:
            while not over.wait(self._every):
                text = words()
                if text:
                    self.notice(text)

        thread = threading.Thread(target=speak, name="voice", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def duration(seconds: float) -> str:
    """As people say it."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
