"""The same work on many tasks, in one process or several, in order and without holding all tasks at once.

Torch-free, and for callers without threads: processes are forked, so they are there at once. Refuses to go on
without a process that was killed.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from clusterft_trainer.errors import RunError

_AHEAD = 4  # tasks that wait for each process
_Task = TypeVar("_Task")
_Found = TypeVar("_Found")


def spread(
    work: Callable[[_Task], _Found], tasks: Iterable[_Task], processes: int
) -> Iterator[tuple[_Task, _Found]]:
    """Each task with what came of it, in order."""
    if processes == 1:
        yield from ((task, work(task)) for task in tasks)
        return
    waiting: deque[tuple[_Task, Future[_Found]]] = deque()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
        try:
            for task in tasks:
                waiting.append((task, pool.submit(work, task)))
                if len(waiting) > _AHEAD * processes:
                    first, outcome = waiting.popleft()
                    yield first, outcome.result()
            for first, outcome in waiting:
                yield first, outcome.result()
        except BrokenProcessPool as error:
            raise RunError(
                "worker-lost",
                "A process that did a part of the work was killed.",
                "See in the kernel's log whether memory ran out; start again with fewer --processes.",
            ) from error
        finally:
            for _, outcome in waiting:
                outcome.cancel()
