"""Proves that a failed run is laid at the right door: the first cause, not its echoes, whatever their order."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import signal

import pytest
import scenes
import spoken
from hypothesis import given
from hypothesis import strategies as st

from clusterft import board as boards
from clusterft.board import Board, Verdict
from clusterft.events import Event, Gone, Replaced, Replanned, Said, Silent, StageDone, Stopping
from clusterft_trainer import progress, stream

NODES = ("gpu0", "gpu1")
CLOSED = "RuntimeError: [pair.cc:561] Connection closed by peer [10.0.0.11]:41873"


def said(node: str, rank: int, text: str, at: float = 0.0) -> Said:
    """A log line of a rank."""
    return Said(node, stream.Log(rank, text, at))


def told(node: str, rank: int, failure: str, message: str, at: float) -> Said:
    """The trainer's own last word."""
    return Said(node, stream.Progress(rank, progress.Failed(failure, message, "do this", at)))


def died(node: str, rank: int, code: int, at: float) -> Said:
    """The launcher reports a death."""
    return Said(node, stream.RankDied(rank, code, 4000 + rank, at))


def ended(node: str, end: stream.End, code: int, at: float) -> Said:
    """A supervisor's last word."""
    return Said(node, stream.Ended(end, code, at))


def step(number: int, loss: float = 0.5, at: float = 0.0) -> Said:
    """One step, told by rank 0."""
    record = progress.Step(number, 100, 0, loss, 1e-6, 0.1, 8.0, 0.01, at)
    return Said("gpu0", stream.Progress(0, record))


def filled(*events: Event) -> Board:
    """A board that has seen these events."""
    board = Board("run", NODES)
    for event in events:
        board.see(event)
    return board


def verdict(*events: Event) -> Verdict:
    """What the run came to."""
    return boards.judge(filled(*events))


FAILED = (ended("gpu0", "failed", 1, 90.0), ended("gpu1", "failed", 1, 91.0))
ECHO = (
    said("gpu0", 0, CLOSED),
    told("gpu0", 0, "peer-lost", "Another rank is gone", 10.1),
    died("gpu0", 0, 5, 10.2),
)


def in_any_order(*events: Event) -> list[Verdict]:
    """The verdicts of all orders in which the nodes' lines may arrive."""
    return [verdict(*order, *FAILED) for order in itertools.permutations(events)]


def test_a_run_that_ends_well_is_fine() -> None:
    assert verdict(ended("gpu0", "ok", 0, 1.0), ended("gpu1", "ok", 0, 1.0)) == Verdict("ok", "finished")


@pytest.mark.parametrize("here", [True, False], ids=["here", "from another controller"])
def test_a_stop_that_was_asked_for_is_no_failure(here: bool) -> None:
    asked = (Stopping("asked"),) if here else ()
    ends = (ended("gpu0", "stopped", 0, 1.0), ended("gpu1", "stopped", 0, 1.0))
    found = verdict(step(40), saved(40), *asked, *ends)
    assert (found.end, found.summary, found.failure) == ("stopped", "stopped at step 40, as asked", "")
    unsaved = verdict(saved(39), step(40), *asked, *ends)
    assert unsaved.summary == "stopped at step 40, as asked, without a checkpoint of it"


def saved(number: int) -> Said:
    """A complete checkpoint."""
    return Said("gpu0", stream.Progress(0, progress.Saved("checkpoint", "/c", number, 0.1, 1.0)))


def test_a_checkpoint_that_fails_during_a_stop_is_told() -> None:
    why = told("gpu0", 0, "disk-full", "no room", 9.0)
    ends = (ended("gpu0", "stopped", 5, 9.5), ended("gpu1", "stopped", -9, 10.0))
    assert verdict(step(40), Stopping("asked"), why, *ends).failure == "disk-full"


def test_clocks_that_differ_do_not_change_who_was_first() -> None:
    board = Board("run", NODES, {"gpu0": 20.0})
    for event in (told("gpu0", 0, "data", "first", 109.0), told("gpu1", 1, "data", "second", 90.0)):
        board.see(event)
    board.see(ended("gpu0", "failed", 2, 109.5))
    board.see(ended("gpu1", "failed", 2, 90.5))
    assert boards.judge(board).summary == "first", "gpu0 failed at 89 on the controller's clock"


def test_a_start_up_warning_that_sounds_like_an_echo_is_none() -> None:
    found = verdict(
        said("gpu1", 1, "[W] [c10d] The client socket has failed to connect: Connection refused, retrying"),
        *(said("gpu1", 1, f"line {number}") for number in range(3)),
        said("gpu1", 1, "KeyError: 'latents'"),
        died("gpu1", 1, 1, 9.0),
        said("gpu0", 0, CLOSED),
        died("gpu0", 0, -6, 9.1),
        ended("gpu1", "failed", 1, 9.2),
        ended("gpu0", "failed", 1, 9.3),
    )
    assert (found.node, found.rank) == ("gpu1", 1) and "KeyError" in found.summary


def test_torch_puts_the_rank_before_the_lines_of_a_traceback() -> None:
    found = verdict(
        said("gpu1", 1, "[rank1]: KeyError: 'latents'"),
        died("gpu1", 1, 1, 9.2),
        said("gpu0", 0, f"[rank0]: {CLOSED}"),
        *(said("gpu0", 0, f"frame {number}") for number in range(3)),
        died("gpu0", 0, 1, 9.1),
        ended("gpu1", "failed", 1, 9.2),
        ended("gpu0", "failed", 1, 9.3),
    )
    assert found.summary == "rank 1 on gpu1: KeyError: 'latents'"


def test_a_stop_does_not_hide_a_failure() -> None:
    why = told("gpu1", 1, "disk-full", "no room", 9.0)
    found = verdict(why, Stopping("asked"), ended("gpu1", "failed", 5, 9.5), ended("gpu0", "stopped", 0, 10.0))
    assert (found.end, found.failure) == ("failed", "disk-full")


def test_the_parts_that_are_stopped_after_a_failure_do_not_make_it_a_stop() -> None:
    found = verdict(
        died("gpu1", 1, 1, 9.0),
        ended("gpu1", "failed", 1, 9.5),
        Stopping("a part failed"),
        ended("gpu0", "stopped", 0, 20.0),
    )
    assert (found.end, found.node, found.rank) == ("failed", "gpu1", 1)


def test_what_the_trainer_says_knowingly_wins() -> None:
    for found in in_any_order(*ECHO, told("gpu1", 1, "oom", "Memory ran out", 10.0), died("gpu1", 1, 5, 10.1)):
        assert (found.failure, found.node, found.rank) == ("oom", "gpu1", 1)
        assert (found.summary, found.remedy, found.evidence) == ("Memory ran out", "do this", ())


def test_of_two_known_causes_the_earlier_wins() -> None:
    later, earlier = told("gpu0", 0, "data", "later", 11.0), told("gpu1", 1, "nan", "earlier", 10.0)
    assert {found.summary for found in in_any_order(later, earlier)} == {"earlier"}


def test_a_killed_rank_wins_over_the_echoes_that_come_before_its_report() -> None:
    killed = died("gpu1", 1, -signal.SIGKILL, 12.0)
    for found in in_any_order(*ECHO, killed):
        assert (found.failure, found.node, found.rank) == ("killed", "gpu1", 1)
        assert found.summary == "rank 1 on gpu1 was ended by SIGKILL" and "dmesg" in found.remedy


def test_a_killed_rank_is_no_echo_though_it_once_had_to_retry() -> None:
    retry = said("gpu1", 1, "[W socket.cpp] failed to connect, Connection refused, retrying")
    for found in in_any_order(*ECHO, retry, died("gpu1", 1, -signal.SIGKILL, 12.0)):
        assert (found.failure, found.node) == ("killed", "gpu1")


def test_an_exception_of_another_rank_does_not_hide_a_kill_reported_a_little_later() -> None:
    timeout = told("gpu0", 0, "bug", "RuntimeError: Timed out waiting 1800000ms for recv", 10.0)
    for found in in_any_order(timeout, died("gpu1", 1, -signal.SIGKILL, 12.0)):
        assert (found.failure, found.node) == ("killed", "gpu1")


def test_a_hung_rank_that_is_killed_after_an_exception_is_its_consequence() -> None:
    cause = told("gpu0", 0, "bug", "KeyError: 'x'", 10.0)
    for found in in_any_order(cause, died("gpu1", 1, -signal.SIGKILL, 26.0)):
        assert (found.failure, found.node, found.summary) == ("bug", "gpu0", "KeyError: 'x'")


def test_a_crash_with_an_echo_in_its_log_is_an_echo() -> None:
    aborted = (said("gpu0", 0, "Watchdog caught collective operation timeout"), died("gpu0", 0, -6, 9.0))
    for found in in_any_order(*aborted, died("gpu1", 1, -signal.SIGSEGV, 10.0)):
        assert (found.failure, found.node, found.rank) == ("crash", "gpu1", 1)
        assert found.summary == "rank 1 on gpu1 was ended by SIGSEGV" and found.remedy == ""


def test_ranks_that_were_told_to_end_are_no_cause() -> None:
    own = (said("gpu1", 1, "Traceback"), said("gpu1", 1, "ValueError: no such picture"), died("gpu1", 1, 1, 11.0))
    found = verdict(died("gpu0", 0, -signal.SIGTERM, 10.0), *own, *FAILED)
    assert (found.failure, found.node) == ("exception", "gpu0")  # nothing of its own: the earliest death
    found = verdict(*own, died("gpu0", 0, -signal.SIGTERM, 12.0), *FAILED)
    assert found.summary == "rank 1 on gpu1: ValueError: no such picture"
    assert found.evidence == ("Traceback", "ValueError: no such picture")


def test_an_exception_that_only_repeats_anothers_end_is_an_echo() -> None:
    own = (said("gpu1", 1, "ModuleNotFoundError: No module named 'x'"), died("gpu1", 1, 1, 11.0))
    repeated = told("gpu0", 0, "bug", CLOSED, 10.0)
    for found in in_any_order(repeated, *own):
        assert (found.failure, found.node) == ("exception", "gpu1")


def test_a_known_cause_may_mention_a_connection() -> None:
    refused = told("gpu1", 1, "rendezvous", "gpu0:29500 cannot be reached: Connection refused", 10.0)
    for found in in_any_order(refused, died("gpu0", 0, 1, 9.0)):
        assert (found.failure, found.node) == ("rendezvous", "gpu1")


def test_a_node_that_is_gone_is_the_cause_of_what_the_others_say() -> None:
    found = verdict(*ECHO, Gone("gpu1", "unreachable for 300 s"), FAILED[0])
    assert (found.failure, found.node, found.summary) == (
        "node-lost",
        "gpu1",
        "gpu1 is gone: unreachable for 300 s",
    )


CLASSES = "config data nan oom disk-full storage resume replaced rendezvous export rounding".split()
CLASSES += "prep unreadable worker-lost".split()


@pytest.mark.parametrize("failure", CLASSES)
def test_each_class_of_the_trainer_wins_over_what_follows_from_it(failure: str) -> None:
    why = told("gpu1", 1, failure, "the reason", 10.0)
    for found in in_any_order(*ECHO, why, died("gpu1", 1, 5, 10.1)):
        assert (found.failure, found.node, found.summary, found.remedy) == (
            failure,
            "gpu1",
            "the reason",
            "do this",
        )


def test_these_are_all_the_classes_that_the_trainer_has() -> None:
    sources = (scenes.ROOT / "trainer" / "clusterft_trainer").rglob("*.py")
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    raised = {found for one in RAISED for found in one.findall(text)}
    assert raised - {"peer-lost", "bug"} == set(CLASSES)


# RunError("nan", ...) and __main__'s names for what libraries raise; ConfigError and DataError name themselves.
RAISED = (
    re.compile(r'RunError\(\s*"([a-z-]+)"'),
    re.compile(r'"(disk-full)" if number in FULL else "storage"'),
    re.compile(r'"disk-full" if number in FULL else "(storage)"'),
    re.compile(r'return "([a-z-]+)", f"'),
    re.compile(r'super\(\).__init__\("([a-z-]+)", message'),
    re.compile(r'bug = \("([a-z-]+)"'),
)


def test_where_only_echoes_are_known_the_trainers_own_words_are_the_verdict() -> None:
    for found in in_any_order(*ECHO):
        assert (found.failure, found.node, found.rank) == ("launcher", "gpu1", None), (
            "no rank of gpu1 was heard of"
        )
    for found in in_any_order(*ECHO, said("gpu1", 1, CLOSED), died("gpu1", 1, 5, 10.4)):
        assert (found.failure, found.node, found.rank) == ("peer-lost", "gpu0", 0)
        assert (found.summary, found.remedy) == ("Another rank is gone", "do this")


def test_a_launcher_that_fails_before_any_rank_is_told_with_its_words() -> None:
    words = said("gpu1", stream.LAUNCHER, "the launcher cannot be started: no such file")
    found = verdict(words, ended("gpu0", "failed", 1, 20.0), ended("gpu1", "failed", 127, 10.0))
    assert (found.failure, found.node) == ("launcher", "gpu1")
    assert found.summary == "the launcher on gpu1 ended with exit code 127"
    assert found.evidence == ("the launcher cannot be started: no such file",)


events = st.one_of(
    st.builds(
        said, st.sampled_from(NODES), st.integers(-1, 3), st.sampled_from([CLOSED, "x", "ValueError: y", ""])
    ),
    st.builds(
        told,
        st.sampled_from(NODES),
        st.integers(0, 3),
        st.sampled_from(["bug", "oom", "peer-lost"]),
        st.text(min_size=1),
        st.floats(0, 99),
    ),
    st.builds(died, st.sampled_from(NODES), st.integers(0, 3), st.integers(-64, 255), st.floats(0, 99)),
    st.builds(Silent, st.sampled_from(NODES), st.text()),
    st.builds(Stopping, st.sampled_from(["asked", "a part failed"])),
    st.builds(step, st.integers(0, 100)),
)
ends = st.tuples(
    *(
        st.builds(
            ended,
            st.just(node),
            st.sampled_from(["ok", "stopped", "failed"]),
            st.integers(-9, 9),
            st.floats(0, 99),
        )
        | st.builds(Gone, st.just(node), st.text())
        for node in NODES
    )
)


@given(st.lists(events, max_size=12), ends)
def test_every_run_that_is_over_has_a_verdict(seen: list[Event], last: tuple[Event, ...]) -> None:
    board = filled(*seen, *last)
    found = boards.judge(board)
    head = board.ended.get("gpu0")
    others = {ended.end for ended in board.ended.values()}
    assert (found.end == "ok") == (head.end == "ok" if head else others == {"ok"})
    assert bool(found.failure) == (found.end == "failed") and found.summary


def test_a_silent_node_that_speaks_again_is_silent_no_more() -> None:
    board = filled(Silent("gpu1", "timed out"))
    assert board.silent == {"gpu1": "timed out"}
    board.see(said("gpu1", 1, "x"))
    assert board.silent == {}


def test_the_board_keeps_what_a_screen_needs() -> None:
    saved = progress.Saved("checkpoint", "/out/step-00000040", 40, 1.5, 9.0)
    phase = progress.Phase("train", 1.0)
    board = filled(
        StageDone("2 nodes checked", 0.5),
        Said("gpu0", stream.Progress(0, phase)),
        Said("gpu1", stream.Progress(1, progress.Phase("model", 1.0))),
        step(41, 0.9),
        step(42, 0.8),
        Said("gpu0", stream.Progress(0, saved)),
        Said("gpu0", stream.Progress(0, progress.Notice("careful", 1.0))),
        *(said("gpu1", 1, f"line {i}") for i in range(100)),
    )
    assert board.phase == "train" and board.losses == [0.9, 0.8] and board.notices == ["careful"]
    assert board.first_step is not None and board.first_step.step == 41 and board.saved == {"checkpoint": saved}
    assert list(board.attempt.tails["gpu1", 1]) == [f"line {i}" for i in range(70, 100)]


PAIRS = ((5, math.nan), (10, 0.4), (20, 0.3), (30, math.nan), (40, 0.5))


def test_the_board_knows_the_held_out_losses_and_how_old_the_checkpoint_is() -> None:
    measured = [progress.HeldOut(n, loss, 1.0, float(n)) for n, loss in PAIRS]
    board = filled(*(Said("gpu0", stream.Progress(0, one)) for one in measured))
    assert board.held_out == measured[-1] and board.least == measured[2] and board.checkpoint_age is None
    board.see(Said("gpu0", stream.Progress(0, progress.Saved("checkpoint", "/c", 40, 0.1, 100.0))))
    assert board.checkpoint_age is None, "no step is known"
    board.see(step(45, at=340.0))
    assert board.checkpoint_age == 240.0
    board.see(step(46, at=90.0))
    assert board.checkpoint_age == 0.0, "a clock that was set back"


def test_a_long_run_is_thinned_and_keeps_its_shape() -> None:
    board = filled(*(step(number, loss=float(number)) for number in range(1, 20_001)))
    assert 2000 < len(board.losses) <= 4096
    gaps = {b - a for a, b in itertools.pairwise(board.losses)}
    assert len(gaps) <= 2 and board.losses[-1] > 19_900 and not math.isnan(sum(board.losses))


# --- attempts ---------------------------------------------------------------------------

AGAIN = {"again": True, "failure": "killed", "cause": spoken.SIGKILLED}
LAST = {"again": False, "failure": "killed", "cause": spoken.SIGKILLED, "why": "no restarts are left"}


def test_a_step_that_is_trained_again_does_not_stand_twice() -> None:
    board = spoken.board(*spoken.killed_once(steps=55, kept=40))
    assert board.losses == [1 / n for n in range(1, 41)] + [2 / n for n in (41, 42, 43)]
    assert board.attempt.resumed_from == 40 and board.first_step is not None and board.first_step.step == 41
    assert board.reached == board.step


def test_a_new_attempt_starts_clean_and_the_old_one_stays_known() -> None:
    board = spoken.board(*spoken.killed_once()[:-3])
    assert (board.step, board.phase, board.attempt.deaths, board.attempt.failures) == (None, None, [], [])
    assert (board.used, board.allowed, sorted(board.attempts)) == (1, 3, [0, 1])
    first = board.attempts[0]
    assert first.step is not None and first.step.step == 55 and first.ended == 31.0 and first.decided is not None
    assert (first.decided.cause, first.resumed_from) == (spoken.SIGKILLED, None)
    assert board.reached == first.step, "no step of the new one is known yet"


def test_what_a_slow_node_says_late_is_evidence_of_its_own_attempt() -> None:
    """left is in attempt 1 already; right's lines of attempt 0 come only now."""
    early = [event for event in spoken.begun(0) if event.node == "right"]
    late = [died("right", 1, -9, 30.0), said("right", 1, "last words of attempt 0")]
    board = spoken.board(*early, *(e for e in spoken.killed_once() if e.node == "left"), *late)
    assert board.attempt.number == 1 and not board.attempt.deaths and not board.attempt.tails["right", 1]
    assert [death.rank for _, death in board.attempts[0].deaths] == [1]


def test_the_last_steps_of_a_head_that_is_read_late_still_count() -> None:
    right_first = [*spoken.begun(0), spoken.told(spoken.step(1)), spoken.begun(1)[1]]
    board = spoken.board(
        *right_first, spoken.told(spoken.step(2)), spoken.begun(1)[0], spoken.told(spoken.step(3))
    )
    assert len(board.losses) == 3
    # Yet what a head that was lost says after others have trained on is past.
    board.see(Said("old", stream.Attempt(0, 2, 0, 0, 2, "10.0.0.9", 29500, 0.0)))
    board.see(spoken.told(spoken.step(77), "old"))
    assert board.reached is not None and board.reached.step == 3


def test_a_checkpoint_that_an_attempt_could_not_go_on_from_is_not_the_newest() -> None:
    events = [*spoken.begun(0), spoken.told(spoken.step(60)), spoken.told(spoken.saved(60)), *spoken.begun(1)]
    assert spoken.board(*events, spoken.told(spoken.step(61))).saved["checkpoint"].step == 60
    assert "checkpoint" not in spoken.board(*events, spoken.told(spoken.step(41))).saved


def test_only_the_last_attempt_is_judged() -> None:
    oom = told("left", 0, "oom", "Memory ran out", 60.0)
    found = boards.judge(spoken.board(*spoken.killed_once(), oom, *spoken.ended("failed", 1, 61.0)))
    assert (found.failure, found.node) == ("oom", "left")
    found = boards.judge(spoken.board(*spoken.killed_once(), *spoken.ended("ok", 0, 61.0)))
    assert found == Verdict("ok", "finished")


def test_a_verdict_says_why_there_was_no_other_attempt() -> None:
    last = [spoken.died("right", 1, -9, 60.0), spoken.decided(1, **LAST), *spoken.ended("failed", 1, 61.0)]
    found = boards.judge(spoken.board(*spoken.killed_once(), *last))
    assert (found.failure, found.rank, found.why) == ("killed", 1, "no restarts are left")


def test_the_heads_finding_counts_where_nothing_more_specific_was_heard() -> None:
    """The node whose rank was killed cannot be heard by this controller, so its death was not told here."""
    begun = spoken.begun(0)
    ends = [spoken.decided(0, **LAST), *spoken.ended("failed", 1, 61.0, ["left"]), Gone("right", "unreachable")]
    echo = [spoken.log("left", 0, CLOSED), spoken.died("left", 0, 5, 10.2)]
    found = boards.judge(spoken.board(*begun, *echo, *ends))
    assert (found.failure, found.node, found.rank, found.summary) == ("killed", "right", 1, spoken.SIGKILLED)
    own = told("left", 0, "oom", "Memory ran out", 10.0)
    assert boards.judge(spoken.board(*begun, own, *ends)).failure == "oom"


def test_the_kernels_own_count_explains_a_kill() -> None:
    oom = {"again": False, "failure": "host-oom", "cause": "rank 1 on right was killed by the kernel"}
    board = spoken.board(*spoken.begun(0), spoken.died("right", 1, -9, 20.0), spoken.decided(0, **oom))
    found = boards.judge(board)
    assert (found.failure, found.rank) == ("host-oom", 1) and "dmesg" in found.remedy


@pytest.mark.parametrize("failure", ["peer-lost", "launcher"])
def test_what_the_head_could_not_explain_is_looked_for_here(failure: str) -> None:
    own = (spoken.log("right", 1, "KeyError: 'latents'"), spoken.died("right", 1, 1, 9.0))
    vague = {
        "again": False,
        "failure": failure,
        "cause": "lost somebody",
        "node": "left",
        "rank": None,
        "why": "w",
    }
    found = boards.judge(spoken.board(*spoken.begun(0), *own, spoken.decided(0, **vague)))
    assert (found.failure, found.node, found.why) == ("exception", "right", "w")
    found = boards.judge(spoken.board(*spoken.begun(0), spoken.decided(0, **vague)))
    assert (found.failure, found.summary) == (failure, "lost somebody")


@pytest.mark.parametrize("failure", ["node-lost", "container", "head-lost", "interrupted"])
def test_what_only_the_gang_knows_outranks_what_ranks_say_of_it(failure: str) -> None:
    cause = {
        "again": False,
        "failure": failure,
        "cause": "right was out of reach for 5 min",
        "why": "too few nodes",
    }
    timeout = told("left", 0, "bug", "RuntimeError: Timed out waiting 1800000ms for recv", 10.0)
    killed = spoken.died("left", 0, -9, 20.0)  # by its supervisor, which ends the attempt
    ends = spoken.ended("failed", 1, 61.0, ["left"])
    board = spoken.board(*spoken.begun(0), timeout, killed, spoken.decided(0, **cause), *ends, Gone("right", "x"))
    found = boards.judge(board)
    assert (found.failure, found.node, found.summary) == (failure, "right", "right was out of reach for 5 min")
    assert "uptime" in found.remedy and found.why == "too few nodes"


def test_a_hang_is_the_cause_of_the_kills_that_end_it() -> None:
    events = [
        *spoken.begun(0),
        spoken.told(spoken.step(40)),
        Said("left", stream.Hang(0, 600.0, "/out/stacks/attempt-0", 700.0)),
        told("left", 0, "storage", "a write was interrupted", 701.0),
        spoken.died("left", 0, -9, 702.0),
        spoken.died("right", 1, -9, 702.0),
        *spoken.ended("failed", -9, 703.0),
    ]
    found = boards.judge(spoken.board(*events))
    assert (found.failure, found.summary) == ("hang", "no step for 600 s") and "/out/stacks" in found.remedy
    before = told("right", 1, "data", "no such picture", 90.0)
    assert boards.judge(spoken.board(*events, before)).failure == "data"


def test_what_the_members_find_before_the_first_attempt_stops_it() -> None:
    wrong = stream.Found(
        "net.high-ports", "fail", ("right",), "ports time out", "a\nb", "a firewall", ("ufw", "x")
    )
    warned = stream.Found("net.mtu", "warn", ("left",), "1500 and 9000")
    mended = stream.Found("fs.not-shared", "fail", ("left",), "not seen")
    seen = [Said("left", each) for each in (warned, mended, dataclasses.replace(mended, status="ok"), wrong)]
    found = boards.judge(spoken.board(*seen, *spoken.ended("failed", 3, 9.0)))
    assert (found.blocked, found.failure, found.node) == (True, "net.high-ports", "right")
    assert (found.evidence, found.remedy) == (("a firewall", "a", "b"), "ufw; x")
    later = boards.judge(spoken.board(*seen, *spoken.begun(0), *spoken.ended("failed", 3, 9.0)))
    assert not later.blocked and later.failure == "launcher", "it went on, so that was not the cause"


def test_the_loss_of_the_head_has_its_own_name() -> None:
    told_again = Said("right", stream.Ended("failed", 5, 400.0, "", "the head was out of reach for 300 s"))
    board = spoken.board(*spoken.begun(0), Gone("left", "unreachable for 300 s"), told_again)
    found = boards.judge(board)
    assert (found.failure, found.node) == ("head-lost", "left")
    other = spoken.board(*spoken.begun(0), Gone("right", "unreachable"), *spoken.ended("failed", 5, 1.0, ["left"]))
    assert boards.judge(other).failure == "node-lost"


def test_a_run_that_ends_while_another_attempt_is_due_is_not_laid_to_the_past_one() -> None:
    due = spoken.killed_once()[:-5]
    lost = boards.judge(spoken.board(*due, Gone("left", "x"), *spoken.ended("failed", 5, 400.0, ["right"])))
    assert (lost.failure, lost.node, lost.why) == ("head-lost", "left", "")
    why = [Said(node, stream.Ended("failed", 5, 90.0, "", "right never came back")) for node in spoken.NODES]
    found = boards.judge(spoken.board(*due, *why))
    assert (found.failure, found.summary) == ("gang", "right never came back")


def test_a_member_that_cannot_be_heard_does_not_undo_what_the_head_says() -> None:
    gone = Gone("right", "unreachable for 300 s")
    assert boards.judge(spoken.board(*spoken.begun(0), *spoken.ended("ok", 0, 9.0, ["left"]), gone)).end == "ok"
    head = Gone("left", "unreachable for 300 s")
    assert boards.judge(spoken.board(*spoken.begun(0), *spoken.ended("ok", 0, 9.0, ["right"]), head)).end == "ok"


def test_nodes_that_replace_others_count_from_then_on() -> None:
    board = spoken.board(*spoken.begun(0), Gone("right", "x"), Silent("left", "y"))
    board.see(Replaced("right", "spare"))
    assert (board.nodes, board.gone, board.replaced) == (("left", "spare"), {}, {"right": "spare"})
    board.see(Gone("left", "z"))
    board.see(Replanned(("spare",), 2))
    assert (board.nodes, board.gone, board.silent, board.over) == (("spare",), {}, {}, False)
    board.see(Said("spare", stream.Ended("ok", 0, 9.0)))
    assert board.over


def test_a_flood_leaves_only_what_speaks_of_trouble_and_each_text_once() -> None:
    flood = [spoken.log("left", n % 4, f"line {n}: 0 errors") for n in range(500)]
    words = ["WARNING: low disk", "ValueError: no", "[rank1] ERROR NCCL", "UserWarning: x", "CUDA out of memory"]
    flood += [
        spoken.log("left", -1, text)
        for text in (
            "x.py:48: FutureWarning: old",
            "raise ChildFailedError(",
            "a.b.ChildFailedError: ",
            "raise KeyError",
        )
    ]
    board = spoken.board(*flood, *(spoken.log("right", rank, text) for text in words for rank in (1, 2)), *flood)
    assert [(one.text, one.times, one.rank) for one in board.worth] == [(text, 2, 1) for text in words]
    assert board.latest == ("left", -1, "raise KeyError")
    for event in (*spoken.begun(0), *spoken.begun(1)[:1], spoken.log("right", 1, "ValueError: of attempt 0")):
        board.see(event)
    assert not board.worth, "of an attempt that is over the cause is known"


def test_what_is_kept_of_a_long_run_is_bounded() -> None:
    board = spoken.board(*spoken.begun(0))
    for number in range(1000):
        board.see(Said("left", spoken.cards(2, at=float(number))))
        board.see(spoken.told(progress.Notice(f"notice {number}", 1.0)))
        board.see(spoken.log("left", 0, f"WARNING {number}"))
    assert (len(board.usages["left"]), len(board.notices), len(board.worth)) == (120, 50, 8)
    assert board.usage["left"].at == 999.0
    for number in range(1, 50):
        for event in (*spoken.begun(number), spoken.log("left", 0, "words")):
            board.see(event)
    assert len(board.attempts) == 50 and sum(len(one.tails) for one in board.attempts.values()) <= 3


def test_who_is_waited_for_is_known_until_all_are_back() -> None:
    board = Board("run", NODES, {"gpu0": 20.0})
    board.see(Said("gpu0", stream.Waiting(("gpu1",), 420.0, 120.0)))
    assert board.waiting is not None and (board.waiting.until, board.clock) == (400.0, 100.0)
    board.see(Said("gpu0", stream.Waiting((), 0.0, 130.0)))
    assert board.waiting is None
