"""Proves what doctor makes of ranks that were tried before a run: whose fault an end is, and what mends it."""

from __future__ import annotations

import queue
from dataclasses import replace
from typing import Any

import pytest

from clusterft.checks import rehearsal as checks
from clusterft.facts import rehearsal as facts
from clusterft.facts.deep import Said
from clusterft.facts.imports import Imports
from clusterft.facts.rehearsal import Rehearsal, Try
from clusterft.findings import Finding
from clusterft.hosts import Node
from clusterft.probing import bench, rehearsing

NODES = ("a", "b", "c")
PYTHON = "/opt/venv/bin/python"
PYTHONS = {
    node: Imports(PYTHON, "3.11.7", versions=(("diffusers", "0.36.0"), ("torch", "2.13.0"))) for node in NODES
}
WELL = Rehearsal(
    tries={node: Try(node, "done", model="sign") for node in NODES},
    addresses={"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3"},
    pythons=dict.fromkeys(NODES, PYTHON),
)
WAITED = "DistStoreError: Timed out after 38 seconds waiting for clients. 2/3 clients joined."


def found(**odd: Try) -> list[Finding]:
    return list(checks.found(NODES, replace(WELL, tries={**WELL.tries, **odd}), PYTHONS))


def waiting(node: str) -> Try:
    return Try(node, "store", error=WAITED)


def test_ranks_that_came_through_are_well() -> None:
    assert found() == []


def test_a_library_that_breaks_is_named_with_its_version_and_those_that_waited_are_not() -> None:
    words = (
        '  File "/opt/venv/lib/python3.11/site-packages/diffusers/models/unet.py", line 3, in <module>\n'
        "ImportError: cannot import name 'UNet'"
    )
    broken = Try("b", "libraries", error="ImportError: cannot import name 'UNet'", words=words)
    (one,) = found(b=broken, a=waiting("a"), c=waiting("c"))
    assert (one.id, one.status, one.nodes) == ("run.rehearsal", "fail", ("b",))
    assert one.summary == "a rank fails when it imports its libraries: ImportError: cannot import name 'UNet'"
    assert one.fix[0] == f"on b: {PYTHON} -m pip install --force-reinstall --no-deps diffusers==0.36.0"
    assert one.evidence == words, "its last line is the error, which is not said twice"


def test_what_the_trainer_knows_comes_with_its_own_remedy_and_no_traceback() -> None:
    told = Try(
        "c", "model", error="/m is a Git LFS pointer.", remedy="Fetch it.", words="Traceback\nDataError: /m"
    )
    (one,) = found(c=told)
    assert one.summary.endswith(": /m is a Git LFS pointer") and one.fix == ("Fetch it.",)
    assert one.evidence == "/m is a Git LFS pointer."


def test_words_that_the_tables_know_bring_their_own_fix() -> None:
    line = (
        "RuntimeError: unable to open shared memory object </torch_1_2> in read-write mode: Permission denied (13)"
    )
    (one,) = found(b=Try("b", "processes", error=line))
    known = found(b=Try("b", "processes", error="OSError: [Errno 24] Too many open files"))
    assert known[0].fix != one.fix and any("ulimit" in step for step in known[0].fix)


def test_who_was_killed_was_out_of_memory_only_if_somebody_says_so() -> None:
    """The fourth blind round: "it was killed, as the kernel does when memory runs out", with memory enough."""
    said = Said("b", 0, ({"stage": "libraries"},), code=-9)
    (one,) = found(b=facts.tried(said))
    assert one.nodes == ("b",) and one.summary.endswith("it was killed by signal 9")
    assert "dmesg" in one.fix[0]
    (one,) = found(b=facts.tried(replace(said, words="Memory cgroup out of memory: Killed process 12 (python3)")))
    assert "memory runs out" in one.summary


@pytest.mark.parametrize("stage", ["libraries", "store"])
def test_a_rank_that_doctor_ended_has_not_failed(stage: str) -> None:
    """n1 was killed as n2 and n3 had ended, and was told of as the one that failed."""
    ended = facts.tried(Said("a", 0, ({"stage": stage},), code=-9, stopped=True))
    assert ended.signal == 0 and ended.error == facts.STOPPED
    broken = Try("b", "libraries", error="ImportError: no")
    assert [(one.status, one.nodes) for one in found(a=ended, b=broken, c=waiting("c"))] == [("fail", ("b",))]
    told = found(a=ended, b=waiting("b"), c=waiting("c"))
    if stage == "store":
        (one,) = told
        assert one.nodes == NODES and f"a: {facts.STOPPED}, when it meets the others" in one.evidence
    else:
        assert [(one.status, one.nodes) for one in told] == [("unknown", ("a",)), ("fail", ("b", "c"))]


def test_that_they_do_not_meet_is_not_said_where_the_network_layer_says_why() -> None:
    tries = {name: waiting(name) for name in NODES}
    assert "one by one" in found(**tries)[0].cause
    (blind,) = checks.found(NODES, replace(WELL, tries=tries), PYTHONS, dialled=False)
    assert "could be reached" not in blind.cause
    (one,) = checks.found(NODES, replace(WELL, tries=tries), PYTHONS, severed="net.route")
    assert (one.status, one.nodes, one.summary) == ("skipped", NODES, "(net.route)")
    broken = {**tries, "b": Try("b", "group", error="RuntimeError: Unable to find address for: eth7")}
    (one,) = checks.found(NODES, replace(WELL, tries=broken), PYTHONS, severed="net.route")
    assert (one.status, one.nodes) == ("fail", ("b",)), "its own words count even so"


class Deaf:
    """A node's proving program, by hand."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.says: queue.Queue[dict[str, Any]] = queue.Queue()

    def tell(self, body: dict[str, Any]) -> None:
        self.told.append(body)
        if body["do"] == "stop":
            self.says.put({"group": body["group"], "slot": 0, "ended": -9, "words": ""})

    def hear(self, _: float) -> dict[str, Any]:
        return self.says.get()


def test_the_bench_knows_whom_it_has_ended_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_ALONE", 0.1)
    a, b = Deaf(), Deaf()
    b.says.put({"group": "g1", "slot": 0, "ended": -9, "words": ""})
    talks: Any = {"a": a, "b": b}
    task = bench.Task("rehearse", tuple(bench.Seat(name, 0, {}) for name in talks), 20.0)
    ((first, second),) = bench.Bench(talks).run([task])
    assert (first.stopped, first.code, second.stopped, second.code) == (True, -9, False, -9)


def test_ranks_that_are_well_alone_and_do_not_meet_are_told_of_together() -> None:
    (one,) = found(a=replace(waiting("a"), late=True), b=waiting("b"), c=waiting("c"))
    assert one.nodes == NODES and one.summary.endswith("do not meet")
    assert one.evidence.count("\n") == 2 and "env:" in one.fix[0]


def test_one_that_breaks_as_they_meet_is_believed_and_those_that_lose_it_are_not() -> None:
    broken = Try("b", "group", error="RuntimeError: Unable to find address for: eth7")
    (one,) = found(a=Try("a", "first", error="RuntimeError: Connection reset by peer"), b=broken, c=waiting("c"))
    assert one.nodes == ("b",) and "eth7" in one.summary


def test_a_rank_that_is_only_slow_is_unknown_and_blames_nobody() -> None:
    slow = Try("b", "libraries", late=True)
    (one,) = found(b=slow, a=waiting("a"), c=waiting("c"))
    assert (one.status, one.nodes) == ("unknown", ("b",))


def test_torch_that_does_not_come_up_is_told_in_its_words() -> None:
    seen = replace(WELL, tries={"a": waiting("a")}, unopened={"b": "it ended: no such file: libc10.so"})
    (one,) = checks.found(NODES, seen, PYTHONS)
    assert one.nodes == ("b",) and "libc10.so" in one.summary and PYTHON in one.fix[0]


def test_a_model_that_is_another_one_is_told_of_the_node_that_has_it() -> None:
    (one,) = found(c=Try("c", "done", model="another"))
    assert one.nodes == ("c",) and "10.0.0.1" in one.fix[0]


def test_a_job_that_these_nodes_cannot_run_is_told_with_its_remedy() -> None:
    (one,) = checks.found(NODES, Rehearsal(unfit="unequal slots", remedy="launcher: torchrun"), {})
    assert one.status == "fail" and one.fix == ("launcher: torchrun",) and "unequal slots" in one.summary


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (Said("a", 0, ({"stage": "libraries"}, {"stage": "done"}), 0), Try("a", "done")),
        (Said("a", 0, (), None, words="gone"), Try("a", words="gone")),
        (Said("a", 0, ({"stage": "store"},), -9, late=True), Try("a", "store", "ended by signal 9", late=True)),
        (
            Said(
                "a", 0, ({"stage": "model"}, {"error": "no", "remedy": "do"}, {"error": "TrainerError: no do"}), 70
            ),
            Try("a", "model", "no", "do"),
        ),
    ],
)
def test_what_a_process_said_is_how_far_it_came(said: Said, expected: Try) -> None:
    assert facts.tried(said) == expected


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, []), (1, [1]), (16, [16]), (17, [8, 9]), (33, [11] * 3), (64, [16] * 4)]
)
def test_waves_are_few_and_leave_nobody_alone(count: int, sizes: list[int]) -> None:
    nodes = tuple(Node(name=f"n{number}", slots=1) for number in range(count))
    made = list(rehearsing.waves(nodes))
    assert [len(wave) for wave in made] == sizes
    assert [node for wave in made for node in wave] == list(nodes)
