"""Proves what a person reads: the live screen and the last lines as snapshots, plain lines, errors, sparklines."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import scenes
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from clusterft import plan
from clusterft.board import Board, Verdict
from clusterft.errors import Blocked, ClusterftError, InvalidFile, RunFailed, UsageError
from clusterft.events import Event, Gone, Said, Silent, StageDone, Stopping
from clusterft.findings import Finding
from clusterft.plan import LaunchPlan
from clusterft.ui import outcome, sparkline, watch
from clusterft.ui import text as views
from clusterft_trainer import progress, stream

RUN = "lighthouse-20261120-1432-7f3a"


def told(record: progress.Record) -> Said:
    """Rank 0 says something."""
    return Said("left", stream.Progress(0, record))


def step(number: int, *, loss: float = 0.1043, at: float = 0.0) -> progress.Step:
    """One of a thousand steps, half a second each."""
    return progress.Step(number, 1000, number // 100, loss, 4e-7, 0.5, 8.04, 0.013, at or number * 0.5)


def board(*events: Event) -> Board:
    """A board of two nodes that has seen these events."""
    made = Board(RUN, ("left", "right"))
    for event in events:
        made.see(event)
    return made


def planned(directory: Path) -> LaunchPlan:
    """A plan for the same two nodes."""
    cluster = scenes.cluster("left slots=1 transport=local\nright slots=1 transport=local\n")
    same: dict[str, Any] = {"boot_id": "one", "cores": 6}
    survey = scenes.survey(cluster, scenes.facts("left", **same), scenes.facts("right", **same))
    roots = dict.fromkeys(("left", "right"), PurePosixPath("/home/me/.clusterft"))
    request = plan.Request(RUN, roots, "/opt/clusterft/bin/python")
    return plan.build(scenes.job(scenes.JOB + "secrets: [HF_TOKEN]\n", directory), survey, request)


def drawn(made: Board) -> str:
    """The live screen as 100 columns of plain text."""
    out = io.StringIO()
    Console(file=out, width=100, force_terminal=False, highlight=False).print(watch.screen(made))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


training = [told(step(n, loss=1 / n)) for n in range(100, 319)]
# All that a run on cards tells: 8.04 images a second, three steps left out, a checkpoint 61 seconds old.
rich = dataclasses.replace(step(318, loss=12.1043), images_per_second=123.4, peer_wait=0.24, mfu=0.312, skipped=3)
telling: list[Event] = [
    *training,
    told(progress.HeldOut(200, 0.1001, 3.2, 100.0)),
    told(progress.HeldOut(300, 0.1101, 3.2, 150.0)),
    told(progress.Saved("checkpoint", "/out/step-00000196", 196, 1.25, 98.0)),
    told(dataclasses.replace(rich, memory=23.1e9, communication=0.119)),
]
SCREENS: dict[str, list[Event]] = {
    "starting": [],
    "loading": [told(progress.Phase("model", 1.0))],
    "training": training,
    "telling": telling,
    "silent": [*training, Silent("right", "timed out")],
    "stopping": [*training, Stopping("asked"), Said("left", stream.Ended("stopped", 0, 1.0)), Gone("right", "x")],
    "diverged": [told(step(1, loss=math.nan))],
}


@pytest.mark.parametrize("name", SCREENS)
def test_the_live_screen_looks_as_it_did(name: str) -> None:
    text = drawn(board(*SCREENS[name]))
    assert max(map(len, text.splitlines())) <= 100
    scenes.same_as_golden(text, scenes.GOLDEN / "ui" / f"screen_{name}.txt")


def test_the_time_left_counts_from_the_first_step_of_this_attempt() -> None:
    assert watch.eta(board()) == "…" and watch.eta(board(told(step(1)))) == "…"
    assert watch.eta(board(told(step(900, at=1000.0)), told(step(901, at=1002.0)))) == "3 m 18 s"
    assert watch.eta(board(told(step(1, at=10.0)), told(step(901, at=910.0)))) == "1 m 39 s"
    assert watch.eta(board(told(step(1, at=10.0)), told(step(991, at=1000.0)))) == "9 s"
    assert watch.eta(board(told(step(1, at=10.0)), told(step(2, at=47.0)))) == "10 h 15 m"
    assert watch.eta(board(told(step(1, at=10.0)), told(step(1000, at=47.0)))) == "0 s"


def test_plain_lines_come_at_most_every_few_seconds_and_the_last_step_always(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    out, made = io.StringIO(), board()
    plain = watch.PlainWatcher(out)
    seen: list[tuple[float, Event]] = [
        (100.0, StageDone("2 nodes checked", 0.44)),
        (100.0, told(progress.Phase("model", 1.0))),
        (100.0, told(progress.Phase("something new", 1.0))),
        (100.0, told(step(1))),
        (104.9, told(step(2))),
        (105.0, told(step(3))),
        (105.1, told(progress.Notice("the loss is [bold]high", 1.0))),
        (105.1, told(progress.Saved("checkpoint", "/out/step-00000003", 3, 1.25, 1.0))),
        (105.1, told(progress.HeldOut(3, 0.1101, 3.21, 1.0))),
        (105.2, Said("left", stream.Log(0, "an ordinary line", 1.0))),
        (105.2, Silent("right", "timed out")),
        (105.2, Gone("right", "unreachable for 300 s")),
        (105.3, told(dataclasses.replace(step(1000, at=10.0), mfu=0.312))),
        (105.3, Stopping("asked")),
    ]
    for moment, event in seen:
        now[0] = moment
        made.see(event)
        plain.show(event, made)
    assert out.getvalue().splitlines() == [
        "✓ 2 nodes checked  0.4 s",
        "loading the model",
        "something new",
        "step 1/1000  loss 0.1043  ▁  8.0 img/s  ETA …",
        "step 3/1000  loss 0.1043  ▁▁▁  8.0 img/s  ETA 8 m 18 s",
        "! the loss is [bold]high",
        "  checkpoint /out/step-00000003  (step 3, 1.2 s)",
        "  held-out loss 0.1101  (step 3, 3.2 s)",
        "! right is silent: timed out",
        "✗ right is gone: unreachable for 300 s",
        "step 1000/1000  loss 0.1043  ▁▁▁▁  8.0 img/s  MFU 31%  ETA 0 s",
        "stopping: asked",
    ]


def test_remarks_never_mix_with_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    watch.notes(quiet=True)("to the side")
    watch.notes(quiet=False)("in line")
    assert tuple(capsys.readouterr()) == ("in line\n", "to the side\n")


def test_a_series_becomes_blocks_from_lowest_to_highest() -> None:
    assert sparkline.draw([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline.draw([7, 7, 0, 0], 2) == "█▁"
    assert sparkline.draw([3, 3], 5) == "▁▁"
    assert sparkline.draw([math.nan, math.inf, 1, 2], 9) == "▁█"
    assert sparkline.draw([], 5) == sparkline.draw([math.nan], 5) == sparkline.draw([1.0], 0) == ""


@given(st.lists(st.floats(-1e38, 1e38) | st.just(math.nan) | st.just(math.inf)), st.integers(0, 40))
def test_no_series_breaks_the_line(values: list[float], width: int) -> None:
    line = sparkline.draw(values, width)
    assert len(line) == min(width, sum(map(math.isfinite, values))) and set(line) <= set("▁▂▃▄▅▆▇█")


DONE = progress.Done(1000, 0.9, 0.1, 9.0)
SAVED = [progress.Saved(what, f"/mnt/out/{what}", 1000, 1.0, 9.0) for what in ("checkpoint", "export", "curve")]
ENDS: dict[str, tuple[list[Event], Verdict]] = {
    "ok": ([*training, *map(told, SAVED), told(DONE)], Verdict("ok", "finished")),
    "telling": ([*telling, *map(told, SAVED), told(DONE)], Verdict("ok", "finished")),
    "stopped": ([*training, told(SAVED[0])], Verdict("stopped", "stopped at step 318, as asked")),
    "failed": (
        [*training, told(SAVED[0])],
        Verdict(
            "failed", "rank 1 on right was ended by SIGKILL", "killed", "right", 1, ("last", "words"), "dmesg"
        ),
    ),
    "failed_early": ([], Verdict("failed", "the launcher ended with exit code 1", "launcher", "left")),
    "failed_nowhere": ([], Verdict("failed", "nobody knows", "bug")),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_last_lines_look_as_they_did(name: str, tmp_path: Path) -> None:
    events, verdict = ENDS[name]
    made, start = board(*events), planned(tmp_path)
    text = "\n".join(outcome.lines(start, made, verdict)) + "\n"
    text += json.dumps(outcome.to_dict(start, made, verdict), indent=1) + "\n"
    scenes.same_as_golden(text, scenes.GOLDEN / "ui" / f"outcome_{name}.txt")


def test_a_loss_that_is_no_number_leaves_the_document_valid_json(tmp_path: Path) -> None:
    made = board(told(progress.Done(10, 0.5, math.nan, 1.0)), told(progress.HeldOut(10, math.nan, 1.0, 1.0)))
    body = outcome.to_dict(planned(tmp_path), made, Verdict("ok", "finished"))
    document = json.loads(json.dumps(body, allow_nan=False))
    assert document["loss"] == {"first": 0.5, "last": None}
    assert document["held_out"] == dict.fromkeys(("last", "least"), {"step": 10, "loss": None})


def test_a_plan_shows_all_that_will_be_done(tmp_path: Path) -> None:
    text = "\n".join(views.plan(planned(tmp_path))) + "\n"
    scenes.same_as_golden(text, scenes.GOLDEN / "ui" / "plan.txt")


FINDINGS = (
    Finding("os.clock", "warn", ("a",), "the clock is 3.0 s ahead", fix=("sudo timedatectl set-ntp true",)),
    Finding("os.disk-full", "unknown", ("a", "b"), "the room could not be read"),
    Finding(
        "gpu.count",
        "fail",
        ("b",),
        "has 1 of 2 cards",
        "card 0: x\ncard 1: y",
        "one fell off the bus",
        ("one", "two"),
    ),
)
ERRORS: dict[str, ClusterftError] = {
    "usage": UsageError("no hostfile is named", where="job.yaml", remedy="add hosts: to the job"),
    "usage_bare": UsageError("no hostfile is named"),
    "file": InvalidFile((UsageError("one", where="f:1:2", excerpt="    1 | x\n      |  ^"), UsageError("two"))),
    "blocked": Blocked("1 check blocks; nothing was started", FINDINGS, remedy="mend it"),
    "run_failed": RunFailed("not every node could be told", failure="unreachable", where="gpu1"),
    "bug": ClusterftError("clusterft broke: KeyError: 'x'", remedy="the traceback is in FILE"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_reads_as_it_did(name: str) -> None:
    text = "\n".join(views.error(ERRORS[name])) + "\n"
    scenes.same_as_golden(text, scenes.GOLDEN / "ui" / f"error_{name}.txt")


def test_what_blocks_comes_first_and_nothing_of_a_finding_is_lost() -> None:
    lines = list(views.findings(FINDINGS))
    assert [line[0] for line in lines if line[0] != " "] == ["✗", "!", "?"]
    told_all = "\n".join(lines)
    for finding in FINDINGS:
        for value in dataclasses.asdict(finding).values():
            for part in (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ():
                assert all(
                    line in told_all for line in str(part).splitlines() if part not in ("warn", "fail", "unknown")
                )
