"""Proves what `status` and `runs` say of a run: its state in a word, a line, a screen and a document."""

from __future__ import annotations

import json
import math

import pytest
import scenes
import spoken
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

from clusterft.cli import attach
from clusterft.events import Event, Gone, Said, Silent
from clusterft.ui import status
from clusterft_trainer import progress, stream

trained: list[Event] = [*spoken.begun(0), spoken.told(spoken.step(40)), spoken.told(spoken.saved(40, at=8.0))]
HANG = Said("left", stream.Hang(0, 600.0, "/out/stacks", 700.0))
STATES: dict[str, list[Event]] = {
    "starting": [],
    "running": spoken.begun(0),
    "loading the model": [*spoken.begun(0), spoken.told(progress.Phase("model", 1.0))],
    "training": trained,
    "waiting": [*trained, Said("left", stream.Waiting(("right",), 460.0, 160.0))],
    "hanging": [*trained, HANG],
    "restarting": spoken.killed_once()[:-5],
    "in trouble": [*trained, Gone("right", "unreachable")],
    "ending": [*trained, *spoken.ended("ok", 0, 9.0, ["right"])],
    "ok": [*trained, *spoken.ended("ok", 0, 9.0)],
    "stopped": [*trained, *spoken.ended("stopped", 0, 9.0)],
    "failed": [*trained, *spoken.ended("failed", 1, 9.0)],
}


@pytest.mark.parametrize("name", STATES)
def test_the_state_of_a_run_is_a_word(name: str) -> None:
    assert status.state(spoken.board(*STATES[name])) == name


def test_a_silent_node_is_not_counted_as_one_that_is_heard() -> None:
    one = status.glance(spoken.board(*trained, Silent("right", "timed out")))
    assert (one.nodes, one.of, one.step, one.steps, one.checkpoint_age) == (1, 2, 40, 1000, 12.0)


def test_all_runs_of_a_cluster_fit_a_line_each() -> None:
    alive = [
        status.glance(spoken.board(*spoken.killed_once(), Silent("right", "timed out"))),
        status.glance(spoken.board(nodes=("gpu0",)))._replace(run="mvtec-20261121-0102-1c2d"),
    ]
    left = [status.LeftBehind("gpu3", "old-20261101-0900-aaaa", "exited (0)", "its logs are kept; removed")]
    text = "\n".join(status.overview("rack", alive, left)) + "\n"
    text += json.dumps(status.overview_dict("rack", alive, left), indent=1) + "\n"
    scenes.same_as_golden(text, scenes.GOLDEN / "ui" / "status_overview.txt")
    assert max(len(line) for line in status.overview("rack", alive, left)) <= 100


def test_a_cluster_without_runs_says_so() -> None:
    assert list(status.overview("rack", [], [])) == ["cluster rack · nothing runs"]


def test_a_single_run_is_the_live_screen_without_its_keys() -> None:
    lines: list[Text] = list(status.one_run(spoken.board(*spoken.killed_once()), 80))
    text = "\n".join(line.plain.rstrip() for line in lines) + "\n"
    assert "Ctrl-C" not in text
    text += json.dumps(status.run_dict(spoken.board(*spoken.killed_once())), indent=1) + "\n"
    scenes.same_as_golden(text, scenes.GOLDEN / "ui" / "status_run.txt")


def test_the_document_of_a_run_that_is_over_has_its_verdict() -> None:
    died = spoken.died("right", 1, -9, 8.0)
    body = status.run_dict(spoken.board(*trained, died, *spoken.ended("failed", 1, 9.0)))
    assert body["state"] == "failed" and body["verdict"]["failure"] == "killed"
    assert body["attempts"][0]["cause"] == spoken.SIGKILLED
    assert status.run_dict(spoken.board(*trained))["verdict"] is None


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.sampled_from([event for seen in STATES.values() for event in seen]), max_size=30))
def test_whatever_happened_there_is_a_line_a_screen_and_valid_json(seen: list[Event]) -> None:
    board = spoken.board(*seen, spoken.told(spoken.step(3, loss=math.nan)))
    assert list(status.overview("rack", [status.glance(board)], []))
    assert all(len(line) <= 80 for line in status.one_run(board, 80))
    json.dumps(status.run_dict(board), allow_nan=False)


PAST = (
    status.Past("b-1", "running", 1_764_000_000.0, None, None, None, "", "", None),
    status.Past("a-20261120-1432-7f3a", "ok", 1_763_900_000.0, 1_763_934_860.0, 15_560, 0.1043, "", "", 2),
    status.Past("a-1", "failed", 1_763_800_000.0, 1_763_800_041.0, 12, 0.5, "oom", "Memory ran out " * 9, 0),
    status.Past("cut", "lost", None, None, None, None, "", "only containers are left of it", None),
)


def test_the_history_of_runs_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    status.time.tzset()
    text = "\n".join(status.past(PAST)) + "\n" + json.dumps(status.past_dict(PAST), indent=1) + "\n"
    scenes.same_as_golden(text, scenes.GOLDEN / "ui" / "runs.txt")
    assert list(status.past([])) == ["no run has left anything in the shared dir"]


@pytest.mark.parametrize(("end", "code"), [("ok", 0), ("stopped", 130), ("failed", 5)])
def test_a_run_that_is_over_and_cleared_away_is_attached_to_as_a_reader(
    end: stream.End, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nobody answers any more on its nodes: heard as a gang, that would be a run that has vanished.
    class Found:
        parts, outcome, containers = ("one",), {"end": end}, {}  # type: ignore[var-annotated]

        def __enter__(self) -> Found:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    board = spoken.board(*trained, *spoken.over(0, end, code, 9.0), *spoken.ended(end, code, 9.0))
    monkeypatch.setattr(attach.runs, "locate", lambda *_: Found())
    monkeypatch.setattr(attach.reading, "board", lambda _: board)
    assert attach.run(spoken.RUN, None, None, as_json=False) == code
    said = capsys.readouterr().out
    assert spoken.RUN in said and spoken.RUN_DIR in said
    assert attach.run(spoken.RUN, None, None, as_json=True) == code
    assert json.loads(capsys.readouterr().out)["outcome"] == end
