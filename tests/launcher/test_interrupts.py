"""What a signal means while a run is watched without a terminal: once a checkpoint, twice now."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from clusterft.cli import tending
from clusterft.cli.tending import Interrupts

WATCHER = cast(Any, SimpleNamespace(ask=lambda words: None))


class Clock:
    """Time that passes only when told to."""

    now = 100.0

    def monotonic(self) -> float:
        """The present."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """That of whoever takes the signals; nobody sits at a terminal."""
    made = Clock()
    monkeypatch.setattr(tending, "time", made)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    return made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_lets_ranks_save_and_the_second_does_not(clock: Clock, number: int) -> None:
    with Interrupts() as interrupts:
        assert interrupts.heed(WATCHER) == ""
        os.kill(os.getpid(), number)
        assert interrupts.heed(WATCHER) == "stop"
        clock.now += 5.0
        os.kill(os.getpid(), number)
        assert interrupts.heed(WATCHER) == "now"
        os.kill(os.getpid(), number)
        assert interrupts.heed(WATCHER) == ""


def test_a_process_and_then_its_group_are_told_once(clock: Clock) -> None:
    """As `timeout` does it, and some service managers: two signals within a moment, from one wish."""
    with Interrupts() as interrupts:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            clock.now += 0.1
        assert interrupts.heed(WATCHER) == "stop"
        assert interrupts.heed(WATCHER) == ""


def test_the_line_says_what_the_stop_will_do() -> None:
    def run(job: dict[str, object], *, prep: bool) -> Any:
        return SimpleNamespace(board=SimpleNamespace(prep=prep), entry=SimpleNamespace(job=job))

    trains, script = run({"train": {}}, prep=False), run({"train": None}, prep=False)
    assert tending._asked(trains, "stop") == "asked, after a checkpoint (asked again: at once)"
    assert tending._asked(trains, "now") == "asked, at once"
    assert tending._asked(script, "stop") == "asked (asked again: at once)"
    assert tending._asked(run({"train": {}}, prep=True), "stop") == "asked (asked again: at once)"
