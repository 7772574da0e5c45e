"""The thread by which a worker shows that it lives, and learns that a task was taken from it.

Owns the rhythm of beats. Refuses to beat for work that has stopped moving: a GPU that hangs must not keep its
tasks from the other workers for ever. Refuses as well to hide that beats cannot be written.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from clusterft_trainer.errors import RunError
from clusterft_trainer.latents.leases import PATIENCE, Lease, Leases

EVERY = PATIENCE / 12  # seconds
_REST = 1.0  # seconds; far below the patience of others
STALLED = 600.0  # seconds without any progress, after which a worker counts as hung


class Pulse:
    """Beats from `with` to its end; tasks that are held are watched."""

    def __init__(
        self,
        leases: Leases,
        every: float = EVERY,
        progress: Callable[[], Mapping[str, Any]] = dict,
        stalled: float = STALLED,
    ) -> None:
        self._leases = leases
        self._every = every
        self._progress = progress
        self._stalled = stalled
        self._held: set[Lease] = set()
        self._moving: set[Lease] = set()
        self._gone: set[Lease] = set()
        self._moved = time.monotonic()
        self._failing: tuple[float, OSError] | None = None
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Pulse:
        self._leases.beat(self._progress())
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._halt()
        try:
            self._leases.leave()
        except OSError:
            if error is None:  # else the first failure is the one to tell; others find out by the silence
                raise

    @contextmanager
    def resting(self) -> Iterator[None]:
        """No thread for the first second, so that what is begun may fork: threads do not survive that.

        A signal brings it back, since what is begun may take hours. Only the main thread can have one.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._halt()
        before = signal.signal(signal.SIGALRM, lambda *_: self._start())
        signal.setitimer(signal.ITIMER_REAL, _REST)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._end.clear()
            self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
            self._thread.start()

    def _halt(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._end.set()
            thread.join()

    def hold(self, lease: Lease, *, moves: bool = True) -> None:
        """Watch a task from now on; one that does not call `moved` may take as long as it will."""
        with self._lock:
            self._held.add(lease)
            if moves:
                self._moving.add(lease)
            self._moved = time.monotonic()

    def drop(self, lease: Lease) -> None:
        """A task is done, or was lost."""
        with self._lock:
            self._held.discard(lease)
            self._moving.discard(lease)
            self._moved = time.monotonic()
        self._leases.done(lease)

    def moved(self) -> None:
        """Something was done; without this, beats end after a while."""
        self._moved = time.monotonic()

    def lost(self, lease: Lease, *, ask: bool = True) -> bool:
        """Whether it belongs to another worker by now; without `ask`, as it was at the last beat."""
        if lease not in self._gone and ask and self._leases.lost(lease):
            with self._lock:
                self._gone.add(lease)
        if self._failing is not None and time.monotonic() - self._failing[0] > PATIENCE / 2:
            raise RunError(
                "storage",
                f"This worker cannot show that it lives ({self._failing[1]}), so others will take over its tasks.",
                "Check the shared directory on this node, then start again: what is finished stays.",
            )
        return lease in self._gone

    def _run(self) -> None:
        while not self._end.wait(self._every):
            if self._moving and time.monotonic() - self._moved > self._stalled:
                continue
            try:
                self._leases.beat(self._progress())
                with self._lock:
                    held = self._held - self._gone
                gone = {lease for lease in held if self._leases.lost(lease)}
            except OSError as error:
                self._failing = self._failing or (time.monotonic(), error)
                continue
            self._failing = None
            with self._lock:
                self._gone |= gone
