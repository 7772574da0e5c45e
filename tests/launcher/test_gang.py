"""Following a gang: a quiet node is healthy, a broken line is not a death, a bug is not silence.

The nodes are scripted: each connection yields prepared lines; nothing runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from clusterft.apply import following, gang
from clusterft.apply.following import Follower, Heard
from clusterft.apply.gang import Gang
from clusterft.errors import ClusterftError
from clusterft.events import Event, Gone, HeardAgain, Said, Silent, StageDone
from clusterft.plan import Part
from clusterft.remote import Unreachable
from clusterft.runtime import DOWN
from clusterft_trainer import stream

HELLO = stream.encode(stream.Log(0, "hello", 1.0))
MORE = stream.encode(stream.Log(0, "more", 1.5))
END = stream.encode(stream.Ended("ok", 0, 2.0))
PART = Part("n1", 0, "process", "/runs/one", "python3")
DOWN_NOW = Unreachable(DOWN, "its container is down")


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


class Lines(list[str]):
    """What one connection yields."""

    def close(self) -> None:
        """Nothing is held."""


class Carrier:
    """Each connection yields the next of some prepared lines, from the one on that is asked for."""

    def __init__(self, *connections: Any) -> None:
        self._waiting = list(connections)
        self.skips: list[int] = []

    def follow(self, part: Part, remote: object, skip: int) -> Any:
        """The next connection."""
        self.skips.append(skip)
        lines = self._waiting.pop(0)
        if isinstance(lines, Exception):
            raise lines
        return Flowing(lines()) if callable(lines) else Lines(lines[skip:])


class Flowing:
    """A connection that takes its time."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock of the followers."""
    made = Clock()
    monkeypatch.setattr(following, "time", made)
    return made


def heard(carrier: Carrier, fleet: Fleet | None = None) -> list[Event]:
    """What a follower reports when its connections yield these lines, one connection after another."""
    ears = Heard()
    Follower(PART, carrier, fleet or Fleet(), ears, 300.0).run()  # type: ignore[arg-type]
    found = []
    while (event := ears.take(0.0)) is not None:
        found.append(event)
    return found


def test_each_line_is_passed_on_once_across_broken_connections(clock: Clock) -> None:
    broken = OSError("reset")
    carrier = Carrier([HELLO], broken, broken, [HELLO, MORE], broken, broken, [HELLO, MORE, END])
    events = heard(carrier)
    assert [type(event) for event in events] == [Said, Silent, HeardAgain, Said, Silent, HeardAgain, Said]
    assert carrier.skips == [0, 1, 1, 1, 2, 2, 2], "what was heard is not asked for again"


def test_a_container_that_ends_with_its_follower_is_no_silence(clock: Clock) -> None:
    """The last words come from what the container has kept, a moment later."""
    assert [type(event) for event in heard(Carrier([HELLO], [HELLO, END]))] == [Said, Said]


def test_a_line_that_was_cut_short_is_asked_for_again(clock: Clock) -> None:
    carrier = Carrier([HELLO, MORE[:20]], [HELLO, MORE, END])
    said = [event.line for event in heard(carrier) if isinstance(event, Said)]
    assert carrier.skips == [0, 1]
    assert [getattr(line, "text", "end") for line in said] == ["hello", "more", "end"]


def test_a_node_that_was_quiet_for_long_is_not_lost_at_the_first_blip(clock: Clock) -> None:
    def quiet() -> Iterator[str]:
        yield HELLO
        for _ in range(100):
            clock.sleep(10.0)
            yield ""  # a heartbeat: no record, and a sign of life all the same

    events = heard(Carrier(quiet, [HELLO, END]))
    assert not [event for event in events if isinstance(event, Gone)]


def test_a_node_out_of_reach_is_said_once_and_lost_after_five_minutes(clock: Clock) -> None:
    fleet = Fleet()
    events = heard(Carrier([HELLO], *[OSError("no route")] * 1000), fleet)
    assert [type(event) for event in events] == [Said, Silent, Gone]
    assert 300 <= clock.now < 320
    assert fleet.reconnects > 100


def test_a_container_that_is_down_is_no_reason_to_connect_anew(clock: Clock) -> None:
    fleet = Fleet()
    events = heard(Carrier([HELLO], *[DOWN_NOW] * 5, [HELLO, END]), fleet)
    assert [type(event) for event in events] == [Said, Silent, HeardAgain, Said]
    assert fleet.reconnects == 0


def test_a_supervisor_that_vanished_is_told_at_once(clock: Clock) -> None:
    events = heard(Carrier([HELLO, stream.encode(stream.Vanished(3.0))]))
    assert events[-1] == Gone("n1", "its supervisor ended without a last word")


def test_a_bug_in_a_follower_is_an_end_and_not_a_silence() -> None:
    (event,) = heard(Carrier(ZeroDivisionError("oops")))
    assert isinstance(event, Gone) and "ZeroDivisionError: oops" in event.words


def test_a_reader_that_lags_makes_the_node_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of lines does not fill this machine's memory."""
    monkeypatch.setattr(following, "_WAITING", 2)
    ears = Heard()
    giving = threading.Thread(target=lambda: [ears.give(Silent("n1", str(i))) for i in range(3)], daemon=True)
    giving.start()
    giving.join(0.1)
    assert giving.is_alive(), "the third has no room"
    assert ears.take(0.0) == Silent("n1", "0")
    giving.join(5.0)
    assert not giving.is_alive()


# -- the gang as a whole -----------------------------------------------------------------------

PARTS = tuple(Part(f"n{i + 1}", i, "process", "/runs/one", "python3") for i in range(3))


def begun(now: float = 0.0) -> Any:
    """A line that a node says when an attempt begins on it."""
    return stream.Attempt(0, 3, 0, 0, 3, "10.0.0.1", 29500, now)


def gathered(monkeypatch: pytest.MonkeyPatch, events: list[Event]) -> tuple[Gang, list[Event]]:
    """What a gang of three yields when this is heard."""
    made = Gang("one", "rack", PARTS, Fleet())  # type: ignore[arg-type]
    clock = Clock()
    monkeypatch.setattr(gang, "time", clock)
    monkeypatch.setattr(Follower, "start", lambda self: None)
    waiting = list(events)

    def take(seconds: float) -> Event | None:
        clock.sleep(1.0)
        return waiting.pop(0) if waiting else None

    monkeypatch.setattr(made._heard, "take", take)
    return made, [event for event in made.events() if event is not None]


def test_a_gang_is_over_when_every_part_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Event] = [Said(part.node, stream.Ended("ok", 0, 1.0)) for part in PARTS]
    made, events = gathered(monkeypatch, ended)
    assert events == ended and made.over


def test_the_start_is_over_when_all_have_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Event] = [Said(part.node, stream.Ended("ok", 0, 1.0)) for part in PARTS]
    _, events = gathered(monkeypatch, [*(Said(part.node, begun()) for part in PARTS), *ended])
    assert [type(event) for event in events][:5] == [Said, Said, Said, StageDone, Said]


def test_who_says_nothing_after_the_heads_last_word_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[Event] = [Said("n1", stream.Ended("ok", 0, 1.0)), Said("n2", stream.Ended("ok", 0, 1.0))]
    _, events = gathered(monkeypatch, heads)
    assert isinstance(events[-1], Gone) and events[-1].node == "n3"
    assert "clusterft status one" in events[-1].words


def test_a_part_that_fails_does_not_end_the_others_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisors decide: this controller only listens until the head has spoken."""
    said: list[Event] = [Said("n2", stream.Ended("failed", 1, 1.0)), Said("n3", stream.Ended("failed", 1, 1.0))]
    said += [Said("n1", stream.Log(0, "goes on", 2.0))] * 40 + [Said("n1", stream.Ended("failed", 1, 9.0))]
    _, events = gathered(monkeypatch, said)
    assert events == said


def test_errors_of_several_nodes_are_told_together() -> None:
    same = [ClusterftError("no such mount", where=node, remedy="mount it") for node in ("n1", "n2")]
    told = gang._together(list(same))
    assert "n1: no such mount" in told.what and "n2: no such mount" in told.what and told.remedy == "mount it"
