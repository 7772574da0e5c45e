"""Following a gang: a quiet node is healthy, a broken line is not a death, a bug is not silence.

The nodes are scripted: each connection yields prepared lines; nothing runs.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import pytest

from clusterft.apply import gang
from clusterft.events import Event, Gone, HeardAgain, Said, Silent
from clusterft_trainer import stream

HELLO = stream.encode(stream.Log(0, "hello", 1.0))
END = stream.encode(stream.Ended("ok", 0, 2.0))


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """The present."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class Fleet:
    """Counts the attempts to connect anew."""

    def __init__(self) -> None:
        self.remotes: dict[str, Any] = {"n1": object()}
        self.reconnects = 0

    def reconnect(self, name: str) -> None:
        """Note it."""
        self.reconnects += 1


class Node:
    """As much of a NodePlan as a follower looks at."""

    class node:
        """The hostfile's part of it."""

        name = "n1"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock of the gang."""
    made = Clock()
    monkeypatch.setattr(gang, "time", made)
    return made


def heard(monkeypatch: pytest.MonkeyPatch, *connections: Any) -> list[Event]:
    """What a follower reports when its connections yield these lines, one connection after another."""
    waiting = list(connections)

    def follow(node: object, remote: object) -> Iterator[str]:
        lines = waiting.pop(0)
        if isinstance(lines, Exception):
            raise lines
        return iter(lines()) if callable(lines) else iter(lines)

    monkeypatch.setattr(gang.process, "follow", follow)
    events: queue.Queue[Event] = queue.Queue()
    gang._Follower(Node(), Fleet(), events).run()  # type: ignore[arg-type]
    return list(events.queue)


def test_each_line_is_passed_on_once_across_broken_connections(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = heard(monkeypatch, [HELLO], [HELLO], OSError("reset"), [HELLO, END])
    assert [type(event) for event in events] == [Said, Silent, HeardAgain, Silent, HeardAgain, Said]


def test_a_node_that_was_quiet_for_long_is_not_lost_at_the_first_blip(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quiet() -> Iterator[str]:
        yield HELLO
        for _ in range(100):
            clock.sleep(10.0)
            yield ""  # a heartbeat: no record, and a sign of life all the same

    events = heard(monkeypatch, quiet, [HELLO, END])
    assert not [event for event in events if isinstance(event, Gone)]


def test_a_node_out_of_reach_is_said_once_and_lost_after_five_minutes(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = heard(monkeypatch, [HELLO], *[OSError("no route")] * 1000)
    assert [type(event) for event in events] == [Said, Silent, Gone]
    assert 300 <= clock.now < 320


def test_a_supervisor_that_vanished_is_told_at_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    events = heard(monkeypatch, [HELLO, stream.encode(stream.Vanished(3.0))])
    assert events[-1] == Gone("n1", "its supervisor ended without a last word")


def test_a_bug_in_a_listener_is_an_end_and_not_a_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(node: object, remote: object) -> Iterator[str]:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(gang.process, "follow", broken)
    listener = gang.Gang.__new__(gang.Gang)
    listener._fleet = Fleet()  # type: ignore[assignment]
    listener._heard = queue.Queue()
    listener._listen(Node())  # type: ignore[arg-type]
    (event,) = listener._heard.queue
    assert isinstance(event, Gone) and "ZeroDivisionError: oops" in event.words
