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
from spoken import (
    RUN,
    bare,
    begun,
    board,
    cards,
    decided,
    died,
    ended,
    killed_once,
    log,
    over,
    saved,
    step,
    told,
)

from clusterft import plan
from clusterft.board import Board, Verdict, judge
from clusterft.errors import Blocked, ClusterftError, InvalidFile, RunFailed, UsageError
from clusterft.events import Event, Gone, HeardAgain, Replaced, Replanned, Said, Silent, StageDone, Stopping
from clusterft.findings import Finding
from clusterft.plan import LaunchPlan
from clusterft.ui import figures, live, nodes, outcome, sparkline, watch
from clusterft.ui import text as views
from clusterft_trainer import progress, stream


def planned(directory: Path) -> LaunchPlan:
    """A plan for two nodes."""
    cluster = scenes.cluster("left slots=1 transport=local\nright slots=1 transport=local\n")
    same: dict[str, Any] = {"boot_id": "one", "cores": 6}
    survey = scenes.survey(cluster, scenes.facts("left", **same), scenes.facts("right", **same))
    roots = dict.fromkeys(("left", "right"), PurePosixPath("/home/me/.clusterft"))
    request = plan.Request(RUN, roots, "/opt/clusterft/bin/python", token="0" * 32)
    return plan.build(scenes.job(scenes.JOB + "secrets: [HF_TOKEN]\n", directory), survey, request)


def drawn(made: Board, width: int = 100, height: int = 40) -> str:
    """The live screen as plain text."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=False, highlight=False)
    console.print(live.Screen(made))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


started = begun(0)
training = [*started, *(told(step(n, loss=1 / n)) for n in range(100, 319))]
# All that a run on cards tells: 123.4 images a second, three steps left out, a checkpoint 61 seconds old.
rich = dataclasses.replace(step(318, loss=12.1043), images_per_second=123.4, peer_wait=0.34, mfu=0.312, skipped=3)
telling: list[Event] = [
    *training,
    told(progress.HeldOut(200, 0.1001, 3.2, 100.0)),
    told(progress.HeldOut(300, 0.1101, 3.2, 150.0)),
    told(progress.Saved("checkpoint", "/out/step-00000196", 196, 1.25, 98.0)),
    told(dataclasses.replace(rich, memory=23.1e9, communication=0.119)),
]
on_cards: list[Event] = [*telling, Said("left", cards(4)), Said("right", cards(4, heat=78.0))]
troubled: list[Event] = [
    *killed_once(),
    told(progress.Notice("the held-out pictures are only 8", 1.0)),
    log("right", 1, "WARNING: the disk is nearly full"),
    log("left", 0, "WARNING: the disk is nearly full"),
    log("left", -1, "torch.OutOfMemoryError: CUDA out of memory"),
    Said("left", stream.Found("net.mtu", "warn", ("right",), "1500 and 9000 on one path")),
]
MANY = tuple(f"gpu{number}" for number in range(40))
crowd: list[Event] = [
    *begun(0, nodes=MANY),
    told(rich, "gpu0"),
    *(Said(node, cards(8)) for node in MANY),
    Silent("gpu33", "timed out"),
    Said("gpu0", stream.Waiting(("gpu35",), 400.0, 200.0)),
]
SCREENS: dict[str, list[Event]] = {
    "starting": [],
    "loading": [*started, told(progress.Phase("model", 12.0)), log("left", 0, "Loading weights", 12.5)],
    "training": training,
    "telling": telling,
    "cards": on_cards,
    "bare": [*training, Said("left", bare()), Said("right", bare(0.1))],
    "silent": [*on_cards, Silent("right", "timed out")],
    "waiting": [*on_cards, Said("left", stream.Waiting(("right",), 460.0, 160.0))],
    "restarting": killed_once()[:-5],
    "restarted": troubled,
    "again": killed_once()[:-3],
    "hanging": [*training, Said("left", stream.Hang(0, 600.0, "/out/stacks/attempt-0", 800.0))],
    "script": [*started, log("right", 1, "epoch 3  loss 0.41  lr 1e-4", 733.0)],
    "stopping": [*training, Stopping("asked"), Said("left", stream.Ended("stopped", 0, 1.0)), Gone("right", "x")],
    "diverged": [*started, told(step(1, loss=math.nan))],
}


@pytest.mark.parametrize("name", SCREENS)
def test_the_live_screen_looks_as_it_did(name: str) -> None:
    text = drawn(board(*SCREENS[name]))
    scenes.same_as_golden(text, scenes.GOLDEN / "ui" / f"screen_{name}.txt")


@pytest.mark.parametrize("width", [80, 200])
def test_the_whole_screen_fits_a_small_terminal_and_a_wide_one(width: int) -> None:
    text = drawn(board(*on_cards, *troubled[-5:]), width)
    scenes.same_as_golden(text, scenes.GOLDEN / "ui" / f"screen_wide_{width}.txt")


@pytest.mark.parametrize("width", [40, 80, 100, 200])
@pytest.mark.parametrize("name", SCREENS)
def test_no_line_of_a_screen_is_longer_than_the_terminal(name: str, width: int) -> None:
    for line in live.lines(board(*SCREENS[name]), width):
        assert len(line) <= width, line.plain


def test_of_many_nodes_those_that_worry_stay_on_a_low_screen() -> None:
    text = drawn(board(*crowd, nodes=MANY), 120, 30)
    assert len(text.splitlines()) <= 30
    assert "gpu0 " in text and "gpu33  silent" in text and "gpu35  out of" in text and "26 more nodes" in text


def test_what_a_node_told_before_it_fell_silent_is_not_shown_as_if_it_were_so() -> None:
    found = nodes.table(board(*on_cards, Silent("right", "timed out")), 120)
    left, right = found.rows
    assert "98 98 98 98 %" in left.cells and not "".join(right.cells).strip()


def test_the_least_wanted_columns_go_first() -> None:
    made = board(*on_cards)
    headers = [nodes.table(made, width).header.split() for width in (83, 82, 72, 61, 45)]
    assert headers == [
        ["GPU", "use", "memory", "heat", "power", "net"],
        ["GPU", "use", "memory", "power", "net"],
        ["GPU", "use", "memory", "net"],
        ["GPU", "use", "memory"],
        ["GPU", "use"],
    ]


def test_the_time_left_counts_from_the_first_step_of_this_attempt() -> None:
    assert live.eta(board()) == "…" and live.eta(board(told(step(1)))) == "…"
    assert live.eta(board(told(step(900, at=1000.0)), told(step(901, at=1002.0)))) == "3 m 18 s"
    assert live.eta(board(told(step(1, at=10.0)), told(step(901, at=910.0)))) == "1 m 39 s"
    assert live.eta(board(told(step(1, at=10.0)), told(step(991, at=1000.0)))) == "9 s"
    assert live.eta(board(told(step(1, at=10.0)), told(step(2, at=47.0)))) == "10 h 15 m"
    assert live.eta(board(told(step(1, at=10.0)), told(step(1000, at=47.0)))) == "0 s"


def printed(seen: list[tuple[float, Event]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a plain watcher prints of events at these moments."""
    now = [100.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    out, made = io.StringIO(), board()
    plain = watch.PlainWatcher(out)
    for moment, event in seen:
        now[0] = moment
        made.see(event)
        plain.show(event, made)
    return out.getvalue().splitlines()


def test_plain_lines_come_at_most_every_few_seconds_and_the_last_step_always(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[float, Event]] = [
        (100.0, StageDone("2 nodes checked", 0.44)),
        *((100.0, event) for event in started),
        (100.0, told(progress.Phase("model", 1.0))),
        (100.0, told(progress.Phase("model", 1.0), "right", 1)),
        (100.0, told(progress.Phase("something new", 1.0))),
        (100.0, told(step(1))),
        (104.9, told(step(2))),
        (105.0, told(step(3))),
        (105.1, told(progress.Notice("the loss is [bold]high", 1.0))),
        (105.1, told(progress.Notice("the loss is [bold]high", 1.0))),
        (105.1, told(progress.Saved("checkpoint", "/out/step-00000003", 3, 1.25, 1.0))),
        (105.1, told(progress.HeldOut(3, 0.1101, 3.21, 1.0))),
        (105.2, Said("left", stream.Log(0, "an ordinary line", 1.0))),
        (105.2, Silent("right", "timed out")),
        (105.2, Gone("right", "unreachable for 300 s")),
        (105.3, told(dataclasses.replace(step(1000, at=10.0), mfu=0.312))),
        (105.3, Stopping("asked")),
    ]
    assert printed(seen, monkeypatch) == [
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


def test_plain_lines_tell_each_restart_with_its_cause_once(monkeypatch: pytest.MonkeyPatch) -> None:
    later: list[Event] = [
        Said("left", stream.Started(7, 50.0, 0)),
        Said("right", stream.Started(8, 50.0, 1)),
        Said("left", stream.Waiting(("right",), 360.0, 60.0)),
        HeardAgain("right"),
        Said("left", stream.Waiting((), 0.0, 61.0)),
        Said("left", stream.Waiting(("right",), 360.0, 60.0)),
        Said("left", stream.Waiting((), 0.0, 360.0, ("right",))),
        Said("left", stream.Waiting(("right",), 460.0, 400.0, ("other",))),
        Said("left", stream.Hang(1, 600.0, "/out/stacks/attempt-1", 800.0)),
        decided(
            1,
            again=True,
            failure="interrupted",
            cause="the engine of right was shut down",
            why="an interruption does not count as a restart",
        ),
        Replaced("right", "spare"),
        Replanned(("left",), 3),
        Said("left", stream.Found("net.port-range", "ok", ("left",), "fine")),
        Said("left", stream.Found("net.high-ports", "fail", ("left", "spare"), "time out")),
        *begun(3),
        decided(3, again=False, failure="oom", cause="Memory ran out", why="the same at the same step twice"),
    ]
    lines = printed([(100.0, event) for event in [*killed_once(), *later]], monkeypatch)
    assert [line for line in lines if not line.startswith(("step", "  checkpoint"))] == [
        "! attempt 0 ended at step 55 (killed): rank 1 on right was ended by SIGKILL; "
        "another attempt follows: restart 1 of 3",
        "attempt 1 starts: 2 nodes, 2 ranks",
        "! right is back: its supervisor was started again",
        "! right out of the head's reach: waited for, 5 m 00 s more",
        "✓ right is heard again",
        "✓ all nodes are within reach of each other again",
        "! right out of the head's reach: waited for, 5 m 00 s more",
        "! right given up: out of the head's reach for too long",
        "! other given up: out of the head's reach for too long; right out of the head's reach: "
        "waited for, 1 m 00 s more",
        "! no step for 10 m 00 s; what every rank was doing: /out/stacks/attempt-1",
        "! attempt 1 ended at step 43 (interrupted): the engine of right was shut down; "
        "another attempt follows: an interruption does not count as a restart",
        "! spare takes the place of right",
        "! planned anew for left: attempt 3",
        "✗ net.high-ports  left, spare  time out",
        "attempt 3 starts: 2 nodes, 2 ranks",
        "✗ attempt 3 ended (oom): Memory ran out; no other attempt: the same at the same step twice",
    ]


def test_a_script_gives_a_sign_of_life_once_a_minute_and_no_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    flood = [(100.0 + n / 10, log("left", 0, f"line {n}")) for n in range(1300)]
    lines = printed([*((100.0, event) for event in started), *flood], monkeypatch)
    assert lines == ["  left rank 0: line 600", "  left rank 0: line 1200"]


def test_remarks_never_mix_with_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    watch.notes(quiet=True)("to the side")
    watch.notes(quiet=False)("in line")
    assert tuple(capsys.readouterr()) == ("in line\n", "to the side\n")


def test_figures_read_as_a_person_says_them() -> None:
    spans = [figures.span(seconds) for seconds in (-3, 41.9, 243, 34_860, 273_600)]
    assert spans == ["0 s", "41 s", "4 m 03 s", "9 h 41 m", "3 d 04 h"]
    assert (figures.count(15_560), figures.size(271), figures.size(2.4e12)) == ("15 560", "271 B", "2.4 TB")
    assert (figures.between([269.4, 283], "W"), figures.between([3, 3.2], "W")) == ("269–283 W", "3 W")
    assert (figures.shortened("silence", 7), figures.shortened("silence", 4)) == ("silence", "sil…")


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
blocking = stream.Found(
    "net.high-ports",
    "fail",
    ("right",),
    "New connections from left to ports above 1024 time out",
    "left → right:41873 timed out after 3.0 s",
    "A firewall drops them",
    ("on right: sudo ufw allow from 10.0.0.0/24",),
)
# Each with what the run came to, or None for the Board's own verdict.
ENDS: dict[str, tuple[list[Event], Verdict | None]] = {
    "ok": ([*training, *map(told, SAVED), told(DONE), *ended("ok", 0, 9.0)], None),
    "telling": ([*telling, *map(told, SAVED), told(DONE), *ended("ok", 0, 9.0)], None),
    "stopped": (
        [*training, told(saved(318)), Stopping("asked"), *ended("stopped", 0, 9.0)],
        None,
    ),
    "survived": ([*killed_once(), told(DONE), *ended("ok", 0, 99.0)], None),
    "smaller": (
        [*killed_once(), Replanned(("left",), 2), *begun(2, 90.0, ("left",)), *ended("ok", 0, 99.0, ("left",))],
        None,
    ),
    "failed": (
        [
            *training,
            told(saved(300)),
            log("right", 1, "last"),
            log("right", 1, "words"),
            died("right", 1, -9, 9.0),
            *over(0, "failed", 1, 9.1),
            *ended("failed", 1, 9.2),
        ],
        None,
    ),
    "failed_again": (
        [
            *killed_once(),
            died("right", 1, -9, 60.0),
            *over(1, "failed", 1, 61.0),
            decided(
                1, again=False, failure="killed", cause="rank 1 on right", why="the same cause at the same step"
            ),
            *ended("failed", 1, 62.0),
        ],
        None,
    ),
    "failed_told": (
        [
            *training,
            told(progress.Failed("data", "The picture 7.png cannot be decoded.", "Replace it.", 9.0), "right", 1),
            *over(0, "failed", 1, 9.1),
            *ended("failed", 1, 9.2),
        ],
        None,
    ),
    "failed_early": ([], Verdict("failed", "the launcher ended with exit code 1", "launcher", "left")),
    "failed_nowhere": ([], Verdict("failed", "nobody knows", "bug")),
    "blocked": ([Said("left", blocking), *ended("failed", 3, 9.0)], None),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_last_lines_look_as_they_did(name: str) -> None:
    events, verdict = ENDS[name]
    made = board(*events)
    verdict = verdict or judge(made)
    text = "\n".join(outcome.lines(made, verdict)) + "\n"
    text += json.dumps(outcome.to_dict(made, verdict), indent=1) + "\n"
    scenes.same_as_golden(text, scenes.GOLDEN / "ui" / f"outcome_{name}.txt")


def test_logs_that_the_shared_dir_did_not_take_are_named_where_they_are() -> None:
    found = Verdict("failed", "x", "killed", "right", 1)
    full = Said("right", stream.Ended("failed", 1, 9.0, "/mnt/out is full"))
    made = board(*training, Said("left", stream.Ended("failed", 1, 9.0)), full)
    told_at = outcome.log_path(made, found, {"right": "/home/me/logs", "left": "/home/me/logs"})
    assert told_at == "right:/home/me/logs/attempt-0/rank1.log"
    assert outcome.log_path(made, Verdict("failed", "x", "y", "left")).endswith("attempt-0/left/launcher.log")


def test_a_loss_that_is_no_number_leaves_the_document_valid_json() -> None:
    made = board(told(progress.Done(10, 0.5, math.nan, 1.0)), told(progress.HeldOut(10, math.nan, 1.0, 1.0)))
    body = outcome.to_dict(made, Verdict("ok", "finished"))
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
