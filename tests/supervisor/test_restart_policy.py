"""Whether there is another attempt: a pure function of what happened so far."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterft_trainer.assignment import Survival
from clusterft_trainer.supervisor.policy import INTERRUPTED, INTERRUPTIONS, Decision, Past, decide, used


def past(failure: str, *, step: int | None = 10, cause: str = "c", node: str = "n", steps: bool = True) -> Past:
    """An attempt that is over."""
    return Past(0, failure, cause, node, 3, step, steps)


def after(*history: Past, restarts: int = 3) -> Decision:
    """What is decided after these."""
    return decide(history, Survival(restarts=restarts))


@pytest.mark.parametrize("failure", ["config", "data", "nan", "disk-full", "storage", "ecc", "resume"])
def test_what_a_restart_cannot_mend_is_not_tried_again(failure: str) -> None:
    decision = after(past(failure))
    assert not decision.again and decision.why and decision.used == 0


@pytest.mark.parametrize("failure", ["killed", "oom", "host-oom", "exception", "bug", "crash", "container"])
def test_what_may_have_been_chance_is_tried_again(failure: str) -> None:
    assert after(past(failure)) == Decision(True, "restart 1 of 3", 1)


@pytest.mark.parametrize("failure", ["oom", "host-oom", "exception", "bug"])
def test_the_same_end_at_the_same_step_twice_is_no_chance(failure: str) -> None:
    assert not after(past(failure, step=7), past(failure, step=7)).again
    assert after(past(failure, step=7), past(failure, step=8)).again
    assert after(past(failure, step=7), past("killed", step=7)).again


def test_a_kill_at_the_same_step_may_be_chance() -> None:
    assert after(past("killed", step=7), past("killed", step=7)).again


def test_two_that_never_reached_a_step_for_the_same_reason_are_the_last() -> None:
    assert not after(past("rendezvous", step=None), past("rendezvous", step=None)).again
    assert after(past("rendezvous", step=None), past("killed", step=None)).again
    assert after(past("killed", step=None, node="a"), past("killed", step=None, node="b")).again
    assert after(past("rendezvous", step=None), past("rendezvous", step=1)).again


@pytest.mark.parametrize("failure", ["container", "killed", "node-lost"])
def test_what_comes_from_outside_may_come_twice_before_the_first_step(failure: str) -> None:
    # Found by the soak: one node's container was killed, its engine restarted, its container killed again.
    again = past(failure, step=None)
    assert after(again, again).again and after(again, past(INTERRUPTED, step=None), again).again
    assert not after(*[again] * 4).again, "what counts is how often"


def test_a_script_tells_no_steps_so_only_the_very_same_words_count() -> None:
    first = past("exception", step=None, cause="rank 0: ValueError: x", steps=False)
    other = past("exception", step=None, cause="rank 0: ValueError: y", steps=False)
    assert not after(first, first).again
    assert after(first, other).again
    killed = past("killed", step=None, steps=False)
    assert after(killed, killed).again


def test_an_interruption_between_two_equal_ends_does_not_hide_them() -> None:
    assert not after(past("oom"), past(INTERRUPTED), past("oom")).again


def test_no_restarts_means_none() -> None:
    assert after(past("killed"), restarts=0) == Decision(False, "the job allows no restart (restarts: 0)", 0)


@given(
    st.lists(st.sampled_from([INTERRUPTED, "killed", "container", "oom"]), min_size=1, max_size=60),
    st.integers(0, 9),
)
def test_no_history_goes_on_for_ever(failures: list[str], restarts: int) -> None:
    history: list[Past] = []
    for number, failure in enumerate(failures):
        history.append(past(failure, step=number))
        decision = decide(history, Survival(restarts=restarts))
        assert 0 <= decision.used <= restarts
        assert decision.used == min(used(history, Survival(restarts=restarts)), restarts)
        if not decision.again:
            break
    assert sum(one.failure != INTERRUPTED for one in history) <= restarts + 1
    assert sum(one.failure == INTERRUPTED for one in history) <= INTERRUPTIONS + 1
