"""The processes that look at pictures.

Owns how they start, how much waits for them, and that a result comes back in the order in which it was asked for.
A fork is there at once; where threads run or a storage client will be used, processes start anew instead, since
neither survives a fork.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, TypeVar

from clusterft_trainer.errors import RunError

_PR_SET_PDEATHSIG = 1
_WAITING = 4  # pieces of work for each process
Asked = TypeVar("Asked")
Given = TypeVar("Given")


def _end_with_parent(parent: int) -> None:
    """A worker whose parent is killed would wait for work for ever: its sisters hold the other end of the pipe."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


class Crew:
    """Some processes, or none where one is enough."""

    def __init__(self, processes: int, *, fresh: bool) -> None:
        self._processes = processes
        self._pool: ProcessPoolExecutor | None = None
        if processes > 1:
            kind = "spawn" if fresh or threading.active_count() > 1 else "fork"
            context = multiprocessing.get_context(kind)
            self._pool = ProcessPoolExecutor(processes, context, _end_with_parent, (os.getpid(),))
            self._pool.submit(int)  # they start now, while this process lists files

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    def each(
        self, work: Iterable[tuple[Asked, Callable[..., Given], tuple[Any, ...]]]
    ) -> Iterator[tuple[Asked, Given]]:
        """What the work gives, in order; a few pieces are under way ahead of it."""
        if self._pool is None:
            yield from ((asked, function(*arguments)) for asked, function, arguments in work)
            return
        waiting: deque[tuple[Asked, Future[Given]]] = deque()
        try:
            for asked, function, arguments in work:
                waiting.append((asked, self._pool.submit(function, *arguments)))
                if len(waiting) > _WAITING * self._processes:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise RunError(
                "prep",
                "A process that reads pictures was killed.",
                "Look for want of memory on this node, then start again: what was read is kept.",
            ) from error
        finally:
            for _, future in waiting:
                future.cancel()
