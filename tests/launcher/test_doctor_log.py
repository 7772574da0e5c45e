"""Proves that `doctor --log` names the first cause: of recorded bundles, of hostile bytes, of single lines."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scenes
import spoken

from clusterft.apply import collecting
from clusterft.apply.collecting import Collected
from clusterft.board.verdict import Verdict
from clusterft.cli.diagnose import settled
from clusterft.diagnosis import cause
from clusterft.diagnosis.diagnosis import Diagnosis
from clusterft.diagnosis.heard import Source
from clusterft.diagnosis.hearing import Hearing
from clusterft.errors import UsageError
from clusterft.events import Event, Said
from clusterft.ui import diagnosis as view
from clusterft_trainer import progress, stream

BUNDLES = scenes.ROOT / "tests" / "bundles"
NAMES = sorted(path.parent.name for path in BUNDLES.glob("*/note.json"))


def note(name: str) -> dict[str, Any]:
    """How a bundle was made, and what must be said of it."""
    found: dict[str, Any] = json.loads((BUNDLES / name / "note.json").read_text())
    return found


def diagnosis(*paths: Path) -> Diagnosis:
    """As `clusterft doctor --log` makes it."""
    return cause.diagnose(collecting.files(paths).heard)


def test_there_are_enough_bundles_and_most_are_of_runs_that_really_failed() -> None:
    real = [name for name in NAMES if note(name)["made"] == "by a run that failed"]
    assert len(NAMES) >= 25 and len(real) >= 25


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cause_is_right(name: str) -> None:
    expected = note(name)["expect"]
    found = diagnosis(BUNDLES / name)
    said = {"verdict": found.verdict, "id": found.id, "node": found.node, "rank": found.rank}
    assert said == expected, (found.summary, found.evidence)
    assert found.evidence and found.cause and found.fix
    for quote in found.evidence:
        file, _, number = quote.where.rpartition(":")
        if name.startswith("our-run-") and file.startswith("logs/"):
            continue  # of a run's folder, the streams alone are kept here
        line = (BUNDLES / name / file).read_bytes().splitlines()[int(number) - 1].decode(errors="replace")
        assert quote.text[:40].strip() in line or file.endswith((".json", ".jsonl")), (quote, line)


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_is_small_and_has_nothing_of_the_machine_that_made_it(name: str) -> None:
    text = b"".join(path.read_bytes() for path in (BUNDLES / name).rglob("*") if path.is_file())
    assert len(text) < 30_000
    assert not any(word in text for word in (b"/work/", b"/root/", b"/tmp/clusterft-bundle"))


# -- how causes are ranked, by texts made for it ------------------------------------------------------


def written(folder: Path, **files: str | bytes) -> Diagnosis:
    """What is said of logs with these names (n1 is n1.log) and texts."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return diagnosis(folder)


def error(rank: int, clock: str, line: str, where: str = "train.py") -> str:
    """A traceback of a rank, with times as `docker logs -t` has them."""
    rows = ["Traceback (most recent call last):", f'  File "/data/{where}", line 7, in main', "    go()", line]
    return "".join(f"2026-11-26T{clock}.000000000Z [rank{rank}]: {row}\n" for row in rows)


LOST = "RuntimeError: [gloo/pair.cc:537] Read error [10.0.0.1]:32981: Connection reset by peer"


def test_a_peers_echo_never_wins_whatever_its_time(tmp_path: Path) -> None:
    found = written(tmp_path, n1=error(0, "10:00:00", LOST), n2=error(1, "10:00:04", "ValueError: bad"))
    assert (found.id, found.node, found.rank) == ("exception", "n2", 1)
    (after,) = found.followed
    assert (after.what, after.count, after.first) == ("lost a peer", 1, -4.0)


AGENT = "torch.distributed.DistStoreError: wait timeout after 60000ms, keys: /none/torchelastic/"
SECOND = AGENT + "assigned_ranks/1"
HEAD = AGENT + "role_info/0, /none/torchelastic/role_info/1, /none/torchelastic/role_info/2"


def started(rank: int, machines: int, words: str = "torchrun --nnodes={} --node_rank={}") -> str:
    """A launcher's command line, as `bash -x` echoes it."""
    return "+ " + words.format(machines, rank) + " train.py\n"


def test_a_machine_rank_that_is_there_twice_is_known_by_the_keys_alone(tmp_path: Path) -> None:
    found = written(
        tmp_path, n1=error(0, "10:00:00", HEAD), n2=error(1, "10:00:00", SECOND), n3=error(1, "10:00:01", SECOND)
    )
    assert (found.id, found.node, found.rank) == ("rdzv.partial", "n2, n3", None)
    assert found.summary == "n2 and n3 were both started as machine rank 1, and none as 2"
    assert found.fix[0] == "on n3: --node_rank=2 in place of --node_rank=1"


def test_the_option_is_named_as_it_was_given(tmp_path: Path) -> None:
    words = "accelerate launch --num_machines {} --machine_rank {}"
    logs = [started(rank, 3, words) + error(rank, "10:00:00", line) for rank, line in ((0, HEAD), (1, SECOND))]
    found = written(tmp_path, n1=logs[0], n2=logs[1], n3=logs[1])
    assert found.fix[0] == "on n3: --machine_rank=2 in place of --machine_rank=1"


def test_all_with_one_rank_and_none_with_rank_0(tmp_path: Path) -> None:
    wait = (
        "[E1126 10:00:00.0 socket.cpp:1028] [c10d] The client socket has timed out after 20000ms while trying to "
    )
    wait += "connect to (10.0.0.1, 29500).\n"
    log = started(1, 3) + wait
    found = written(tmp_path, n1=log, n2=log, n3=log)
    assert found.summary == "n1, n2 and n3 were all started as machine rank 1, and none as 0 and 2"
    assert found.fix[:2] == (
        "on n1: --node_rank=0 in place of --node_rank=1",
        "on n2: --node_rank=2 in place of --node_rank=1",
    )


def test_machines_that_were_told_different_numbers(tmp_path: Path) -> None:
    found = written(
        tmp_path,
        n1=started(0, 3) + error(0, "10:00:00", HEAD),
        n2=started(1, 2) + error(1, "10:00:00", SECOND),
    )
    assert found.id == "rdzv.partial" and found.summary.endswith("different numbers of machines: n1 3, n2 2")


def test_a_machine_rank_is_nothing_where_torchrun_numbers_the_machines_itself(tmp_path: Path) -> None:
    words = "torchrun --nnodes={} --node_rank={} --rdzv-backend=c10d"
    log = started(1, 3, words) + error(1, "10:00:00", LOST)
    found = written(tmp_path, n1=log, n2=log)
    assert found.id != "rdzv.partial"


def test_command_lines_are_no_cause_where_somebody_ended_of_his_own(tmp_path: Path) -> None:
    found = written(
        tmp_path,
        n1=started(0, 3) + error(0, "10:00:00", HEAD),
        n2=started(1, 3) + error(1, "10:00:00", SECOND),
        n3=started(1, 3) + error(1, "09:59:10", "KeyError: 'x'"),
    )
    assert (found.id, found.node) == ("exception", "n3")


def test_a_peer_that_was_lost_later_is_no_matter_of_machine_ranks(tmp_path: Path) -> None:
    """The log of the third machine was not given: that it is absent says nothing."""
    found = written(
        tmp_path,
        n1=started(0, 3) + error(0, "10:00:00", LOST),
        n2=started(1, 3) + error(1, "10:00:00", LOST),
    )
    assert found.id == "peer-lost"


def test_of_own_ends_the_first_wins(tmp_path: Path) -> None:
    late, early = error(0, "10:01:00", "KeyError: 'late'"), error(1, "10:00:00", "ValueError: early")
    assert written(tmp_path, n1=late, n2=early).rank == 1


def test_within_a_few_seconds_what_names_a_cause_wins_and_later_it_does_not(tmp_path: Path) -> None:
    vague = error(0, "10:00:00", "ValueError: no batch")
    near = error(1, "10:00:03", "OSError: [Errno 28] No space left on device: '/mnt/out/x'")
    assert written(tmp_path / "near", n1=vague, n2=near).id == "os.disk-full"
    far = near.replace("10:00:03", "10:00:30")
    assert written(tmp_path / "far", n1=vague, n2=far).id == "exception"


def test_a_clock_that_is_ahead_is_set_right_before_times_are_compared(tmp_path: Path) -> None:
    late, early = error(0, "10:01:00", "KeyError: 'first'"), error(1, "10:00:30", "ValueError: second")
    (tmp_path / "n1.log").write_text(late)
    (tmp_path / "n2.log").write_text(early)
    heard = collecting.files((tmp_path,)).heard
    assert cause.diagnose(heard).rank == 1 and any("not compared" in one for one in cause.diagnose(heard).notes)
    heard.offsets, heard.compared = {"n1": 60.0}, True
    found = cause.diagnose(heard)
    assert found.rank == 0 and not any("not compared" in one for one in found.notes)
    assert [one.first for one in found.followed] == [30.0]


def test_ranks_that_did_not_meet_are_explained_by_one_that_had_ended(tmp_path: Path) -> None:
    waiting = "torch.distributed.DistNetworkError: The client socket has timed out after 60000ms while trying to "
    late = error(1, "10:01:05", waiting + "connect to (n1, 29500).")
    ended = error(0, "10:00:00", "ModuleNotFoundError: No module named 'peft'")
    found = written(tmp_path / "both", n1=ended, n2=late)
    assert (found.id, found.node) == ("run.import", "n1")
    alone = written(tmp_path / "alone", n1="waiting\n", n2=late)
    assert (alone.id, alone.node, alone.rank) == ("net.master-port", "n2", 1)
    assert any("29500" in step for step in alone.fix)


def test_what_was_caught_long_before_the_end_is_no_cause(tmp_path: Path) -> None:
    steps = "".join(f"step {n}\n" for n in range(1000))
    early = (
        'Traceback (most recent call last):\n  File "/d/t.py", line 1, in f\nOSError: No space left on device\n'
    )
    last = "Traceback (most recent call last):\n  File \"/d/t.py\", line 9, in g\nKeyError: 'x'\n"
    found = written(tmp_path, n1=early + steps + last)
    assert found.id == "exception" and "KeyError" in found.summary


def test_a_kill_for_memory_of_somebody_elses_program_is_none_of_ours(tmp_path: Path) -> None:
    kernel = "[Thu Nov 26 10:00:01 2026] Out of memory: Killed process 77 (firefox) total-vm:1kB\n"
    (tmp_path / "dmesg-n2.txt").write_text(kernel)
    found = written(tmp_path, n2=error(1, "10:00:00", "KeyError: 'x'"))
    assert found.id == "exception"


def test_a_share_that_answers_again_is_a_note_and_no_cause(tmp_path: Path) -> None:
    name = BUNDLES / "share-that-recovered"
    assert any("it has recovered" in one for one in diagnosis(name).notes)


def test_logs_without_a_failure_are_said_to_have_none(tmp_path: Path) -> None:
    found = written(tmp_path, n1="step 1 loss 0.5\nstep 2 loss 0.4\n")
    assert (found.verdict, found.id, found.lines) == ("nothing", "", 2)


MESH = (
    "RuntimeError: Gloo connectFullMesh failed with [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:152] "
    "timed out connecting: SO_ERROR: Connection timed out, remote=[198.18.93.12]:61312$2"
)


def test_ranks_that_cannot_connect_to_each_other_are_a_matter_of_the_network(tmp_path: Path) -> None:
    """A firewall that counts connections; it was told as a bug of the trainer, to be reported."""
    late = error(1, "10:00:04", LOST)
    found = written(tmp_path, n1=error(0, "10:00:00", LOST), n2=late, n3=error(2, "10:00:00", MESH))
    assert (found.id, found.rank) == ("net.high-ports", 2) and "198.18.93.12" in found.cause
    assert any("iptables -S" in step for step in found.fix)
    failed = spoken.told(progress.Failed("bug", MESH, "please report it", 60.0), "right", 1)
    lines = ("Traceback (most recent call last):", '  File "/d/t.py", line 9, in g', MESH)
    logged = [spoken.log("right", 1, line, at=60.0) for line in lines]
    end = [*spoken.over(0, "failed", 1, 62.0), *spoken.ended("failed", 1, 63.0)]
    run = diagnosis(of_a_run(tmp_path / "run", *spoken.begun(0), failed, *logged, *end))
    assert (run.verdict, run.id, run.node, run.rank) == ("failed", "net.high-ports", "right", 1)


def test_a_run_that_failed_and_was_stopped_then_is_told_by_its_logs(tmp_path: Path) -> None:
    lines = ("Traceback (most recent call last):", '  File "/d/t.py", line 9, in g', "KeyError: 'x'")
    logged = [spoken.log("right", 1, line, at=60.0) for line in lines]
    found = diagnosis(of_a_run(tmp_path, *spoken.begun(0), *logged, spoken.died("right", 1, 1, 61.0)))
    verdict = Verdict("failed", "words", "bug", "left", 0)
    heard = collecting.files((tmp_path,)).heard
    said = settled(replace(found, verdict="stopped"), Collected(heard, "moon", "stopped", verdict))
    assert (said.verdict, said.id, said.node, said.rank) == ("failed", "exception", "right", 1)


# -- a run of several attempts ------------------------------------------------------------------------


def of_a_run(folder: Path, *said: Event) -> Path:
    """The streams of a run, as its folder has them."""
    (folder / "events").mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    for node in spoken.NODES:
        rows = [stream.encode(one.line) for one in said if isinstance(one, Said) and one.node == node]
        (folder / "events" / f"{node}.jsonl").write_text("".join(f"{row}\n" for row in rows))
    return folder


def test_a_run_that_ended_well_tells_of_the_attempt_that_was_killed(tmp_path: Path) -> None:
    again = [*spoken.killed_once(), *spoken.over(1, "ok", 0, 90.0), *spoken.ended("ok", 0, 91.0)]
    found = diagnosis(of_a_run(tmp_path, *again))
    assert (found.verdict, found.id, found.summary) == ("ok", "", "the run ended well, in attempt 1")
    (before,) = found.earlier
    assert (before.attempt, before.id, before.node, before.rank) == (0, "killed", "right", 1)
    assert before.evidence and before.fix and before.after == "the run went on: restart 1 of 3"
    shown = "\n".join(view.lines(found))
    assert "! attempt 0: killed" in shown and "right rank 1" in shown and "restart 1 of 3" in shown


def test_between_two_attempts_nothing_is_the_end_of_the_run(tmp_path: Path) -> None:
    """The gang has decided to go on, and the next attempt has not begun."""
    upto = [one for one in spoken.killed_once() if not (isinstance(one, Said) and one.line in AFTER)]
    found = diagnosis(of_a_run(tmp_path, *upto))
    assert found.id == "" and [one.id for one in found.earlier] == ["killed"]


AFTER = [one.line for one in spoken.begun(1, at=33.0) if isinstance(one, Said)]


def test_the_last_attempts_cause_is_the_answer_and_the_first_ones_is_told_too(tmp_path: Path) -> None:
    lines = ("Traceback (most recent call last):", '  File "/d/t.py", line 9, in g', "KeyError: 'x'")
    raised = [spoken.log("left", 0, line, at=60.0) for line in lines]
    end = [spoken.died("left", 0, 1, 61.0), *spoken.over(1, "failed", 1, 62.0), *spoken.ended("failed", 1, 63.0)]
    found = diagnosis(of_a_run(tmp_path, *spoken.killed_once(), *raised, *end))
    assert (found.verdict, found.id, found.node, found.rank) == ("failed", "exception", "left", 0)
    assert [(one.id, one.node, one.rank) for one in found.earlier] == [("killed", "right", 1)]


def test_a_kernels_kill_counts_for_the_attempt_in_which_it_happened(tmp_path: Path) -> None:
    again = [*spoken.killed_once(), spoken.log("right", 1, "step", at=40.0)]
    hearing = Hearing()
    for node in spoken.NODES:
        for number, one in enumerate((one for one in again if isinstance(one, Said) and one.node == node), 1):
            hearing.events.hear(Source(f"events/{node}.jsonl", node=node), number, one.line)
    kernel = Source("dmesg of right", node="right", booted=0.0)
    hearing.kernel(kernel, 1, "[   29.500000] Out of memory: Killed process 4001 (python3) total-vm:1kB", 0.0)
    heard = hearing.done()
    assert [one.id for one in cause.diagnose(heard).earlier] == ["os.oom"] and not heard.kernel


def test_an_attempt_that_was_stopped_and_resumed_is_no_failure(tmp_path: Path) -> None:
    first = [*spoken.begun(0), *spoken.over(0, "stopped", 0, 20.0), *spoken.ended("stopped", 0, 21.0)]
    parts = [Said(node, stream.Started(7, 50.0)) for node in spoken.NODES]
    found = diagnosis(of_a_run(tmp_path, *first, *parts, *spoken.begun(1, at=51.0)))
    assert (found.id, found.earlier) == ("", ())


def test_a_run_that_failed_and_was_resumed_has_got_over_it(tmp_path: Path) -> None:
    first = [*spoken.begun(0), spoken.died("right", 1, -9, 19.0), *spoken.over(0, "failed", 1, 20.0)]
    end = [spoken.decided(0, again=False, failure="killed", cause=spoken.SIGKILLED, why="none is left")]
    parts = [Said(node, stream.Started(7, 50.0)) for node in spoken.NODES]
    found = diagnosis(of_a_run(tmp_path, *first, *end, *spoken.ended("failed", 1, 21.0), *parts))
    assert found.id == "" and [one.after for one in found.earlier] == ["the run was resumed"]


# -- what bad input gets ------------------------------------------------------------------------------


def test_hostile_bytes_cost_nothing_but_themselves(tmp_path: Path) -> None:
    rubbish = (
        bytes(range(256)) * 40 + b"\n\x1b[31m" + b"Traceback (most recent call last):\n" + b"[" * 5000 + b"\n"
    )
    own = error(1, "10:00:00", "\x1b[31mKeyError: 'x'\x1b[0m").encode()
    found = written(tmp_path, n1=rubbish * 20, n2=rubbish + own + b"\x00" * 5000)
    assert (found.id, found.node, found.rank) == ("exception", "n2", 1)
    shown = "\n".join(view.lines(found))
    assert "\x1b" not in shown and "\x00" not in shown
    json.dumps(found.to_dict())


def test_a_line_of_megabytes_and_a_file_without_an_end_of_line(tmp_path: Path) -> None:
    found = written(
        tmp_path, n1=b"x" * (5 << 20) + b"\n" + error(0, "10:00:00", "KeyError: 'x'").encode().rstrip()
    )
    assert (found.id, found.rank) == ("exception", 0)
    assert found.evidence[-1].where == "n1.log:5"


def test_a_long_log_is_read_in_bounded_memory_and_its_lines_are_counted(tmp_path: Path) -> None:
    row = b"2026-11-26 09:00:00,123 step 1200/90000 loss 0.1132 rate 4e-07 12.1 img/s and more of that kind\n"
    count = 400_000
    with (tmp_path / "n1.log").open("wb") as file:
        for _ in range(count // 1000):
            file.write(row * 1000)
        file.write(error(0, "10:00:00", "KeyError: 'x'").encode())
    tracemalloc.start()
    found = diagnosis(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.evidence[-1].where == f"n1.log:{count + 4}" and found.lines == count + 4
    assert peak < 16 << 20


def test_a_flood_of_errors_is_bounded_too(tmp_path: Path) -> None:
    flood = "".join(f"[rank{n % 50}]: ValueError: bad {n}\n" for n in range(40_000))
    tracemalloc.start()
    found = written(tmp_path, n1=flood)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.id == "exception" and peak < 64 << 20


def test_a_packed_log_is_unpacked_and_one_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "n2.log.gz").write_bytes(gzip.compress(error(1, "10:00:00", "KeyError: 'x'").encode()))
    (tmp_path / "n1.log.gz").write_bytes(b"no gzip")
    found = diagnosis(tmp_path)
    assert (found.id, found.node) == ("exception", "n2")
    assert any("n1.log.gz" in one for one in found.unread)


def test_an_empty_folder_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert diagnosis(tmp_path).verdict == "nothing" and diagnosis(tmp_path).unread
    with pytest.raises(UsageError, match="there is no file"):
        diagnosis(tmp_path / "gone.log")


def test_the_screen_names_who_when_why_and_what_to_do() -> None:
    shown = "\n".join(view.lines(diagnosis(BUNDLES / "killed-by-the-kernel")))
    assert "os.oom" in shown and "n2 rank 1" in shown and "dmesg-n2.txt:" in shown
    assert "fix:  lower train.data.workers" in shown and "then  1 other: lost a peer" in shown


KERNEL = "[Thu Nov 26 {} 2026] {}\n"
XID = "NVRM: Xid (PCI:0000:41:00): 31, pid=77, name=python3, MMU Fault"


def test_a_kernels_word_of_long_before_is_not_why_somebody_ended_of_his_own(tmp_path: Path) -> None:
    steps = "2026-11-26T09:00:00.000000000Z [rank1]: step 1\n"
    for clock, expected in (("08:30:00", "exception"), ("09:30:00", "exception"), ("09:59:30", "gpu.xid")):
        folder = tmp_path / clock
        folder.mkdir()
        (folder / "dmesg-n2.txt").write_text(KERNEL.format(clock, XID))
        assert written(folder, n2=steps + error(1, "10:00:00", "RuntimeError: CUDA error: x")).id == expected


def test_another_programs_kill_for_memory_is_no_cause_where_somebody_ended_of_his_own(tmp_path: Path) -> None:
    kill = "Memory cgroup out of memory: Killed process 77 (python) total-vm:1kB"
    (tmp_path / "dmesg-n1.txt").write_text(KERNEL.format("09:59:00", kill))
    steps = "2026-11-26T09:00:00.000000000Z [rank1]: step 1\n"
    assert written(tmp_path, n2=steps + error(1, "10:00:00", "KeyError: 'x'")).id == "exception"


def test_a_kill_for_memory_explains_ranks_that_only_lost_a_peer(tmp_path: Path) -> None:
    (tmp_path / "dmesg-n2.txt").write_text(KERNEL.format("10:00:00", "Killed process 77 (python3) total-vm:1kB"))
    found = written(tmp_path, n1=error(0, "10:00:01", LOST), n2="2026-11-26T09:59:59.000000000Z step 4\n")
    assert (found.id, found.node) == ("os.oom", "n2")


def unlike(rank: int, has: int, peer: int, theirs: int) -> str:
    """DDP's words on a rank, as in the fourth blind round."""
    words = f"Rank {rank} has {has} params, while rank {peer} has inconsistent {theirs} params."
    return error(rank, "21:14:08", f"RuntimeError: DDP expects same model across all ranks, but {words}")


def test_the_node_whose_model_is_another_one_is_named_and_not_who_first_said_so(tmp_path: Path) -> None:
    logs = {
        name: "".join(unlike(rank, *words) for rank in ranks)
        for name, ranks, words in (
            ("n1", (0, 1), (1120, 4, 1400)),
            ("n2", (2, 3), (1120, 4, 1400)),
            ("n3", (4, 5), (1400, 0, 1120)),
        )
    }
    found = written(tmp_path, **logs)
    assert (found.id, found.node, found.rank) == ("job.other-model", "n3", None)
    assert found.summary.endswith("(ranks 4 and 5: 1400 params; ranks 0 to 3: 1120 params)")
    assert found.evidence[0].where.startswith("n3.log") and found.fix[0].endswith("on n3 as on n1")
    assert not found.followed


def test_of_two_sides_as_large_as_each_other_neither_is_blamed(tmp_path: Path) -> None:
    found = written(tmp_path, n1=unlike(0, 4, 1, 6), n2=unlike(1, 6, 0, 4))
    assert (found.id, found.node, found.rank) == ("job.other-model", "", None)
    assert "rank 0: 4 params; rank 1: 6 params" in found.summary


def test_one_log_alone_blames_only_whom_its_words_prove(tmp_path: Path) -> None:
    found = written(tmp_path, n1="world_size=6\n" + unlike(0, 1120, 2, 1400))
    assert (found.id, found.node, found.rank) == ("job.other-model", "", None)  # 2, 1, and 3 that nobody knows of


def test_ranks_of_one_node_that_differ_are_a_matter_of_the_program(tmp_path: Path) -> None:
    found = written(tmp_path, n1=unlike(0, 382, 1, 0) + "".join(unlike(rank, 0, 0, 382) for rank in (1, 2)))
    assert (found.node, found.rank) == ("n1", 0) and "a branch on the rank" in found.cause
