"""Proves that logs are complete: each line once, in its order, across breaks and floods, in bounded memory."""

from __future__ import annotations

import itertools
import json
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import spoken
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterft.apply import listening
from clusterft.apply.listening import Source, listen
from clusterft.events import Event, Gone, HeardAgain, Said, Silent
from clusterft.remote import Lines, Unreachable
from clusterft.remote.local import LocalRemote
from clusterft.ui import logs
from clusterft_trainer import progress, stream


def log(number: int, at: float | None = None) -> str:
    """A numbered log line as a supervisor writes it."""
    return stream.encode(stream.Log(0, f"line {number}", float(number) if at is None else at))


ENDED = stream.encode(stream.Ended("ok", 0, 99.0))


class Heard:
    """A part's lines as somebody reads them; breaks off where it is told to."""

    def __init__(self, lines: list[str], breaks: str = "") -> None:
        self._lines = lines
        self._breaks = breaks

    def __iter__(self) -> Iterator[str]:
        yield from self._lines
        if self._breaks:
            raise Unreachable("ssh.lost", self._breaks)

    def code(self, seconds: float) -> int:
        """As of a command that ended well."""
        return 0

    def complaint(self) -> str:
        """Nothing."""
        return ""

    def close(self) -> None:
        """Nothing is held."""


class Part:
    """A stream of which each reading gets only so many lines before the connection breaks."""

    def __init__(self, lines: list[str], pieces: list[int], *, cut: bool = False) -> None:
        self._lines = lines
        self._pieces = pieces
        self._cut = cut
        self.asked: list[int] = []
        self.connected = 0

    def open(self, skip: int) -> Lines:
        """From this line on."""
        self.asked.append(skip)
        if not self._pieces:
            return Heard(self._lines[skip:])
        count = self._pieces.pop(0)
        piece = self._lines[skip : skip + count]
        if self._cut and count < len(self._lines[skip:]):
            return Heard([*piece, self._lines[skip + count][:25]])  # the connection ended amid a line
        return Heard(piece, "timed out")

    def reconnect(self) -> None:
        """Somebody wants to try again."""
        self.connected += 1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits seconds for what it makes itself."""
    monkeypatch.setattr(listening, "_RETRY", 0.01)


def texts(events: list[Event]) -> list[str]:
    """The log lines among events."""
    return [e.line.text for e in events if isinstance(e, Said) and isinstance(e.line, stream.Log)]


def heard(*sources: Source, follow: bool = True, offsets: dict[str, float] | None = None) -> list[Event]:
    """All that is said until the end."""
    return [event for event in listen(sources, follow=follow, offsets=offsets) if event is not None]


@pytest.mark.parametrize("cut", [False, True], ids=["an error", "an end amid a line"])
def test_each_line_comes_once_across_broken_connections(cut: bool) -> None:
    part = Part([*map(log, range(100)), ENDED], [30, 0, 1, 40], cut=cut)
    events = heard(Source("n1", part.open, part.reconnect))
    assert texts(events) == [f"line {n}" for n in range(100)]
    assert part.asked == [0, 30, 30, 31, 71] and part.connected == 4
    told = [type(event) for event in events if not isinstance(event, Said)]
    assert told[0] is Silent and told.count(Silent) == told.count(HeardAgain)


def test_a_line_that_nobody_can_read_is_counted_so_that_none_comes_twice() -> None:
    lines = [log(0), "{not json", stream.encode(stream.Started(1, 1.0)), log(1), log(2), ENDED]
    part = Part(lines, [2, 2])
    assert texts(heard(Source("n1", part.open, part.reconnect))) == ["line 0", "line 1", "line 2"]


def test_who_wants_what_is_there_now_does_not_wait_for_more() -> None:
    def endless() -> Iterator[str]:
        yield from map(log, range(5))
        yield ""  # a heartbeat: no more for now
        pytest.fail("somebody waits for lines that are not there yet")

    class Open(Heard):
        def __iter__(self) -> Iterator[str]:
            return endless()

    assert texts(heard(Source("n1", lambda _: Open([])), follow=False)) == [f"line {n}" for n in range(5)]


def test_a_part_that_cannot_be_read_now_is_told_and_does_not_hide_the_others() -> None:
    gone = listening.unreachable("n2", "timed out")
    part = Part([log(0), ENDED], [])
    events = heard(Source("n1", part.open), gone, follow=False)
    assert texts(events) == ["line 0"]
    assert [(e.node, e.words) for e in events if isinstance(e, Gone)] == [("n2", "timed out")]


def test_a_supervisor_that_vanished_is_told() -> None:
    part = Part([log(0), stream.encode(stream.Vanished(1.0))], [])
    events = heard(Source("n1", part.open))
    assert isinstance(events[-1], Gone) and "without a last word" in events[-1].words


def test_a_bug_in_a_reader_does_not_look_like_silence() -> None:
    def broken(_skip: int) -> Lines:
        raise KeyError("x")

    events = heard(Source("n1", broken))
    assert [event.words for event in events if isinstance(event, Gone)] == [
        "it could not be followed: KeyError: 'x'"
    ]


def test_lines_of_several_nodes_are_merged_by_time_on_one_clock() -> None:
    one = Part([*(log(n, at=float(n)) for n in range(0, 50, 2)), ENDED], [])
    two = Part([*(log(n, at=100.0 + n) for n in range(1, 50, 2)), ENDED], [])
    events = heard(Source("n1", one.open), Source("n2", two.open), offsets={"n2": 100.0})
    assert texts(events) == [f"line {n}" for n in range(50)]


def test_a_part_that_is_slow_to_begin_is_waited_for_and_one_that_is_quiet_is_not() -> None:
    class Slow(Heard):
        def __iter__(self) -> Iterator[str]:
            time.sleep(0.6)
            yield log(0)
            yield ""
            time.sleep(1.5)  # quiet from here on, while the other one talks
            yield log(99)
            yield ENDED

    class Talking(Heard):
        def __iter__(self) -> Iterator[str]:
            for number in range(1, 60):
                yield log(number)
                time.sleep(0.01)
            yield ENDED

    began, moments = time.monotonic(), {}
    sources = [Source("n1", lambda _: Slow([])), Source("n2", lambda _: Talking([]))]
    for event in listen(sources, follow=True):
        if isinstance(event, Said) and isinstance(event.line, stream.Log):
            moments[event.line.text] = time.monotonic() - began
    assert list(moments) == [*(f"line {n}" for n in range(60)), "line 99"]
    assert moments["line 59"] < 1.8, "the lines of one node wait for another that has nothing to say"


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.lists(st.floats(0, 9), max_size=8), min_size=1, max_size=4))
def test_each_nodes_own_order_is_kept_whatever_its_clock(times: list[list[float]]) -> None:
    sources = []
    for name, moments in enumerate(times):
        lines = [stream.encode(stream.Log(0, f"{name} {i}", at)) for i, at in enumerate(moments)]
        sources.append(Source(str(name), Part([*lines, ENDED], []).open))
    seen = texts(heard(*sources))
    for name, moments in enumerate(times):
        assert [text for text in seen if text.split()[0] == str(name)] == [
            f"{name} {i}" for i in range(len(moments))
        ]


def test_a_flood_that_nobody_takes_is_not_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_BUDGET", 0)
    monkeypatch.setattr(listening, "_LEAST", 2000)
    taken = [0]

    class Counting(Heard):
        def __iter__(self) -> Iterator[str]:
            for number in range(5000):
                taken[0] = number
                yield log(number)
            yield ENDED

    events = listen([Source("n1", lambda _: Counting([]))], follow=True)
    first = next(event for event in events if event is not None)
    time.sleep(0.2)
    assert taken[0] < 100, "the reader runs ahead of who reads"
    assert texts([first, *(event for event in events if event)]) == [f"line {n}" for n in range(5000)]


def test_who_stops_listening_leaves_no_reader_behind() -> None:
    closed = []

    class Endless(Heard):
        def __iter__(self) -> Iterator[str]:
            return map(log, itertools.count())

        def close(self) -> None:
            closed.append(True)

    events = listen([Source("n1", lambda _: Endless([]))], follow=True)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert closed


_FLOOD = """
import json, sys, time
node, count, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
began = time.time()
for first in range(0, count, 200):
    numbers = range(first, min(first + 200, count))
    said = [{"schema": 2, "kind": "log", "rank": n % 4, "text": f"{n} " + "x" * 80, "at": began + n / rate}
            for n in numbers]
    sys.stdout.write("".join(json.dumps(one) + chr(10) for one in said))
    sys.stdout.flush()
    time.sleep(max(0.0, began + numbers[-1] / rate - time.time()))
print(json.dumps({"schema": 2, "kind": "ended", "end": "ok", "code": 0, "at": time.time()}))
"""


@pytest.mark.parametrize("seconds", [1.5, pytest.param(10.0, marks=pytest.mark.long)])
def test_twenty_thousand_lines_a_second_from_three_nodes_lose_none(tmp_path: Path, seconds: float) -> None:
    """Through real processes and the formatting; this process stays small."""
    (tmp_path / "flood.py").write_text(_FLOOD, encoding="utf-8")
    remote, count, nodes = LocalRemote(), int(6667 * seconds), ("n1", "n2", "n3")

    def source(node: str) -> Source:
        argv = (sys.executable, str(tmp_path / "flood.py"), node, str(count), "6667")
        return Source(node, lambda _skip: remote.lines(argv))

    chosen, form = logs.Log(logs.Wanted()), logs.Form(nodes, colours=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen: dict[str, list[int]] = {node: [] for node in nodes}
    with (tmp_path / "out").open("w", encoding="utf-8") as out:
        for event in listen([source(node) for node in nodes], follow=True):
            entry = chosen.entry(event) if event else None
            if entry:
                out.write(form.line(entry) + "\n")
                seen[entry.node].append(int(entry.text.split()[0]))
    assert all(numbers == list(range(count)) for numbers in seen.values())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 100, f"{grown:.0f} MiB"


# --- which lines, and how they look -----------------------------------------------------

HISTORY: list[Event] = [
    *spoken.begun(0, at=1.0),
    spoken.log("left", 0, "loading", 2.0),
    spoken.log("right", -1, "launcher says", 2.5),
    spoken.told(progress.Phase("train", 3.0)),
    spoken.told(spoken.step(1, at=4.0)),
    spoken.told(spoken.saved(1, at=4.5)),
    spoken.log("right", 1, "Killed", 5.0),
    spoken.died("right", 1, -9, 5.1),
    *spoken.over(0, "failed", 1, 6.0, ["right"]),
    Said("left", stream.AttemptEnded(0, "stopped", -15, 6.0, "rank 1 on right was ended")),
    spoken.decided(0, again=True, failure="killed", cause=spoken.SIGKILLED),
    *spoken.begun(1, at=8.0),
    spoken.log("right", 1, "again [bold]", 9.0),
    Said("left", stream.Usage(9.0, 0.1, 1, 2, 0.0, 0.0)),
]


def lines(wanted: logs.Wanted, *, colours: bool = False) -> list[str]:
    """The history as it would be printed."""
    chosen, form = logs.Log(wanted), logs.Form(spoken.NODES, colours=colours)
    return [form.line(entry) for event in HISTORY if (entry := chosen.entry(event))]


def test_every_line_says_whose_it_is() -> None:
    assert lines(logs.Wanted()) == [
        "left           | attempt 0 starts: machine rank 0 of 2, ranks from 0 of 2",
        "right          | attempt 0 starts: machine rank 1 of 2, ranks from 1 of 2",
        "left  rank 0   | loading",
        "right launcher | launcher says",
        "left  rank 0   | phase: train",
        "left  rank 0   | step 1/1000  epoch 1  loss 0.1043  rate 4.0e-07  8.0 img/s",
        f"left  rank 0   | checkpoint {spoken.RUN_DIR}/checkpoints/step-00000001 (step 1)",
        "right rank 1   | Killed",
        "right          | rank 1 ended: SIGKILL (pid 4001)",
        "right          | attempt 0 ended: failed, exit code 1",
        "left           | attempt 0 ended: stopped, SIGTERM: rank 1 on right was ended",
        "left           | killed: rank 1 on right was ended by SIGKILL; another attempt follows",
        "left           | attempt 1 starts: machine rank 0 of 2, ranks from 0 of 2",
        "right          | attempt 1 starts: machine rank 1 of 2, ranks from 1 of 2",
        "right rank 1   | again [bold]",
    ]


def test_lines_are_chosen_by_node_rank_attempt_pattern_and_time() -> None:
    assert lines(logs.Wanted(rank=1)) == ["right rank 1   | Killed", "right rank 1   | again [bold]"]
    assert lines(logs.Wanted(rank=1, attempt=1)) == ["right rank 1   | again [bold]"]
    assert lines(logs.Wanted(rank=-1)) == ["right launcher | launcher says"]
    assert len(lines(logs.Wanted(node="left"))) == 8
    assert [line.split(" | ")[1] for line in lines(logs.Wanted(pattern=re.compile("(?i)kill")))] == [
        "Killed",
        "rank 1 ended: SIGKILL (pid 4001)",
        "killed: rank 1 on right was ended by SIGKILL; another attempt follows",
    ]
    assert lines(logs.Wanted(since=9.0, node="right")) == ["right rank 1   | again [bold]"]


def test_ranks_have_colours_of_their_own_and_text_is_never_taken_for_markup() -> None:
    coloured = lines(logs.Wanted(rank=1), colours=True) + lines(logs.Wanted(rank=0), colours=True)
    codes = [re.match(r"\x1b\[38;5;(\d+)m", line) for line in coloured]
    assert len({found[1] for found in codes if found}) == 2
    assert coloured[1].endswith("\x1b[0magain [bold]")


def test_a_json_line_holds_all_that_is_known() -> None:
    chosen = logs.Log(logs.Wanted(rank=1, attempt=1))
    body = [json.loads(logs.to_json(entry)) for event in HISTORY if (entry := chosen.entry(event))]
    assert body == [
        {"schema": 1, "at": 9.0, "node": "right", "rank": 1, "attempt": 1, "text": "again [bold]"},
    ]


def test_what_is_said_beside_the_log_names_the_node() -> None:
    said = [Silent("n1", "x"), HeardAgain("n1"), Gone("n1", "y"), HISTORY[0]]
    assert [logs.aside(one) for one in said] == ["! n1 is silent: x", "✓ n1 is heard again", "✗ n1: y", None]


def test_an_attempt_that_never_began_is_told_with_those_that_did() -> None:
    log_ = logs.Log(logs.Wanted(attempt=9))
    assert log_.lacks() == "none has begun"
    for number in (0, 1, 2):
        log_.entry(Said("n1", stream.Attempt(number, 1, 0, 0, 1, "10.0.0.1", 29500, 1.0)))
        assert log_.lacks() == ("it has attempt 0 alone" if number == 0 else f"it has attempts 0 to {number}")
    assert not logs.Log(logs.Wanted()).lacks()
