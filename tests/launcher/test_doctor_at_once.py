"""Proves that what doctor does at once is bounded, waits until one deadline, and breaks where it is read."""

from __future__ import annotations

import threading
import time

import pytest

from clusterft.probing.at_once import begun


def test_what_is_late_is_left_out_and_the_rest_is_in_order() -> None:
    never = threading.Event()
    waits = {"a": lambda: time.sleep(0.05), "b": never.wait, "c": lambda: None}
    wait = begun(waits, lambda name: (waits[name](), name)[1])
    began = time.monotonic()
    assert wait(began + 0.3) == {"a": "a", "c": "c"} and time.monotonic() - began < 1.0
    never.set()
    assert list(wait(None)) == ["a", "b", "c"]


def test_no_more_are_at_work_than_were_asked_for() -> None:
    turn, now, most = threading.Lock(), [0], [0]

    def work(number: int) -> int:
        with turn:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.01)
        with turn:
            now[0] -= 1
        return number

    assert list(begun(range(20), work, width=4)(None).values()) == list(range(20))
    assert 1 < most[0] <= 4


def test_what_breaks_is_raised_where_it_is_waited_for_and_ends_the_rest() -> None:
    done = []

    def work(number: int) -> None:
        done.append(number)
        if number == 1:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        begun(range(50), work, width=1)(None)
    assert done == [0, 1]
