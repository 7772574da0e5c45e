"""What ranks' last lines are worth, and which of several nodes' reasons was the first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterft_trainer import progress
from clusterft_trainer.supervisor.cause import Cause, first, known
from clusterft_trainer.supervisor.messages import Report, Sign
from clusterft_trainer.supervisor.signs import ECHO, Signs


def after(*lines: str, code: int = 1, short: bool = False) -> Sign:
    """The sign of rank 3's death after these lines."""
    signs = Signs()
    for text in lines:
        signs.line(3, text)
    signs.died(3, code, short_of_memory=short)
    (sign,) = signs.seen
    return sign


@pytest.mark.parametrize(
    ("line", "failure"),
    [
        ("ValueError: no such column", "exception"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "oom"),
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", "oom"),
        ("OSError: [Errno 28] No space left on device", "disk-full"),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "ecc"),
        ("torch.distributed.DistNetworkError: The server socket has failed to listen", "rendezvous"),
        ("RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:41000", ECHO),
        ("torch.distributed.DistBackendError: NCCL error: remote process exited or a network error", ECHO),
    ],
)
def test_a_scripts_last_error_has_a_class(line: str, failure: str) -> None:
    sign = after("Traceback (most recent call last):", line)
    assert (sign.failure, sign.rank, sign.text) == (failure, 3, f"rank 3: {line}")


def test_torch_puts_the_rank_before_each_line_of_a_traceback() -> None:
    sign = after("[rank3]: Traceback (most recent call last):", "[rank3]:   go()", "[rank3]: KeyError: 'caption'")
    assert (sign.failure, sign.text) == ("exception", "rank 3: KeyError: 'caption'")
    peer = "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:41000"
    assert after(f"[rank3]: {peer}", "one", "two", "three").failure == ECHO


def test_a_warning_about_connections_at_the_start_is_no_echo() -> None:
    sign = after("[W] Connection refused, will retry", "step 1", "step 2", "step 3", "ValueError: mine")
    assert sign.failure == "exception"


def test_signals_come_from_outside_and_crashes_may_be_echoes() -> None:
    assert after("Connection closed by peer", code=-9).failure == "killed"
    assert after("all is well", code=-9, short=True).failure == "host-oom"
    assert after("all is well", code=-11).failure == "crash"
    assert after("Watchdog caught collective operation timeout", code=-6).failure == ECHO


def test_what_a_rank_said_of_itself_is_not_said_again_by_its_exit_code() -> None:
    signs = Signs()
    signs.record(3, progress.Failed("nan", "The loss is not a number.", "r", 1.0))
    signs.died(3, 5, short_of_memory=False)
    assert [(sign.source, sign.failure) for sign in signs.seen] == [("said", "nan")]


def test_a_bug_that_echoes_another_end_is_an_echo() -> None:
    signs = Signs()
    signs.record(3, progress.Failed("bug", "RuntimeError: Connection reset by peer", "r", 1.0))
    assert signs.seen[0].failure == ECHO


def test_a_launcher_speaks_only_where_no_rank_has() -> None:
    signs = Signs()
    signs.line(-1, "error: unrecognized arguments: --nope")
    signs.ended(2, started=True)
    assert signs.seen[0].text == "the launcher ended with exit code 2: error: unrecognized arguments: --nope"
    signs.ended(2, started=True)
    assert len(signs.seen) == 1


def report(*signs: Sign, code: int = 1) -> Report:
    """A node's report."""
    return Report(0, "failed", code, signs=signs)


SAID = Sign("said", "nan", 0, "The loss is not a number.")
KILLED = Sign("signal", "killed", 3, "rank 3 was ended by SIGKILL")
CRASH = Sign("signal", "crash", 5, "rank 5 was ended by SIGSEGV")
BUG = Sign("said", "bug", 1, "KeyError: 'x'")
LOG = Sign("log", "exception", 2, "rank 2: ValueError: x")
LAUNCHER = Sign("launcher", "launcher", None, "the launcher ended with exit code 2")
LOST = Sign("said", ECHO, 7, "Another rank is gone")
RANKED = (SAID, KILLED, CRASH, BUG, LOG, LAUNCHER, LOST)


@given(st.permutations(range(len(RANKED))), st.integers(0, len(RANKED) - 1))
def test_a_specific_cause_outranks_echoes_in_whatever_order_they_arrive(order: list[int], best: int) -> None:
    reports = {f"n{number}": report(RANKED[number]) for number in order if number >= best}
    found = first(reports, ())
    assert (found.failure, found.node) == (RANKED[best].failure, f"n{best}")


def test_what_happened_to_a_node_outranks_all_but_a_ranks_own_words() -> None:
    lost = Cause("container", "the supervisor on n1 was killed", "n1")
    assert first({"n0": report(KILLED), "n2": report(BUG)}, (lost,)) == lost
    assert first({"n0": report(SAID)}, (lost,)).failure == "nan"


def test_among_equals_the_first_to_arrive_counts() -> None:
    assert first({"b": report(KILLED), "a": report(KILLED)}, ()).node == "b"


def test_the_words_name_the_node() -> None:
    assert first({"gpu1": report(KILLED)}, ()).text == "rank 3 on gpu1 was ended by SIGKILL"
    assert first({"gpu1": report(LOG)}, ()).text == "rank 2 on gpu1: ValueError: x"
    assert first({"gpu1": report(LAUNCHER)}, ()).text == "the launcher on gpu1 ended with exit code 2"
    assert first({"gpu1": report(SAID)}, ()).text == "The loss is not a number."


def test_nobody_failed_and_nobody_finished_is_an_interruption() -> None:
    assert first({"a": report(code=0), "b": report(code=0)}, ()).failure == "interrupted"
    assert first({"a": report(), "b": report(code=0)}, ()).failure == "launcher"


def test_only_an_own_and_plain_cause_spares_the_others_their_words() -> None:
    assert known(report(KILLED)) and known(report(SAID))
    assert not known(report(LOST)) and not known(report(BUG)) and not known(report(LAUNCHER))
