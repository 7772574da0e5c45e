"""The same for many at once, in threads that hold up no exit, and until a deadline that all have together.

Owns neither connections nor what an error means; for a cluster's nodes, in their turns, there is `Fleet.each`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")


def begun(
    keys: Iterable[K], work: Callable[[K], T], *, width: int | None = None
) -> Callable[[float | None], dict[K, T]]:
    """Begin, at most `width` at a time; what is called with a deadline gives what has come of it by then.

    That raises what one has raised, after which none is begun.
    """
    order = list(keys)
    todo = deque(order)
    found: dict[K, T] = {}
    broken: list[Exception] = []

    def worker() -> None:
        while todo:
            try:
                key = todo.popleft()
            except IndexError:  # another worker was faster
                return
            try:
                found[key] = work(key)
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                broken.append(error)
                todo.clear()

    threads = [threading.Thread(target=worker, name="probing", daemon=True) for _ in order[:width]]
    for thread in threads:
        thread.start()

    def wait(until: float | None) -> dict[K, T]:
        for thread in threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
        if broken:
            raise broken[0]
        known = dict(found)
        return {key: known[key] for key in order if key in known}

    return wait
