"""Proves each check: which facts make which finding, on which nodes, with which way out; unreached is never ok."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import scenes
from hypothesis import given
from hypothesis import strategies as st

from clusterft import checks
from clusterft.checks import Demand, Survey, Unreached
from clusterft.facts import Mount
from clusterft.findings import Finding, blockers

GIB = 2**30
CPU = Demand("cpu", "/mnt/out", shared_bytes=GIB, local_bytes=GIB // 2)
CUDA = dataclasses.replace(CPU, device="cuda")
TWO = scenes.cluster("a slots=2\nb slots=2\n")


def judge(survey: Survey, demand: Demand = CPU) -> list[Finding]:
    """All findings."""
    return list(checks.judge(survey, demand))


def one(found: list[Finding]) -> Finding:
    """The only finding."""
    assert len(found) == 1, found
    return found[0]


def test_healthy_nodes_give_no_finding() -> None:
    cards = (scenes.card(0), scenes.card(1))
    survey = scenes.survey(TWO, scenes.facts("a", gpus=cards), scenes.facts("b", gpus=cards))
    assert judge(survey) == [] and judge(survey, CUDA) == []


def test_nodes_that_did_not_answer_block_and_are_told_together() -> None:
    cluster = scenes.cluster("a slots=1\nb slots=1\nc slots=1\n")
    missed = tuple(Unreached(name, "ssh.auth", "no key fits", ("ssh-copy-id",)) for name in "ac")
    found = one(judge(Survey(cluster, {"b": scenes.facts("b")}, missed, {})))
    assert (found.id, found.status, found.nodes) == ("ssh.auth", "fail", ("a", "c"))
    assert found.evidence == "a: no key fits\nc: no key fits" and found.fix == ("ssh-copy-id",)
    assert blockers([found]) == (found,)


@given(st.sets(st.sampled_from("abcd"), min_size=1), st.sampled_from([CPU, CUDA]))
def test_a_node_that_did_not_answer_is_never_let_through(lost: set[str], demand: Demand) -> None:
    cluster = scenes.cluster("".join(f"{name} slots=1\n" for name in "abcd"))
    known = (scenes.facts(name, gpus=(scenes.card(0),)) for name in "abcd" if name not in lost)
    found = judge(scenes.survey(cluster, *known, lost=" ".join(sorted(lost))), demand)
    blocked = {node for finding in blockers(found) for node in finding.nodes}
    assert blocked == lost


@pytest.mark.parametrize(
    ("offset", "status", "words"),
    [
        (1.9, None, ""),
        (-1.9, None, ""),
        (2.0, "warn", "the clock is 2.0 s ahead of the controller's"),
        (-59.9, "warn", "the clock is 59.9 s behind the controller's"),
        (60.0, "fail", "the clock is 60.0 s ahead of the controller's"),
        (-4000.0, "fail", "the clock is 4000.0 s behind the controller's"),
        (None, "unknown", "the clock could not be read"),
    ],
)
def test_a_clock_that_is_off_is_told(offset: float | None, status: str | None, words: str) -> None:
    found = judge(scenes.survey(TWO, scenes.facts("a", clock_offset=offset), scenes.facts("b")))
    if status is None:
        assert found == []
        return
    finding = one(found)
    assert (finding.id, finding.status, finding.nodes) == ("os.clock", status, ("a",))
    assert finding.summary == words
    if status != "unknown":
        assert finding.fix == ("sudo timedatectl set-ntp true",) and finding.needs_root


@pytest.mark.parametrize(
    ("changes", "identity", "summary", "fix"),
    [
        ({"free_bytes": GIB - 1}, "os.disk-full", "1024 MiB free for /mnt/out, 1.0 GiB needed", "free room on /"),
        ({"free_bytes": -5}, "os.disk-full", "-0 MiB free for /mnt/out, 1.0 GiB needed", "free room on /"),
        ({"free_inodes": 999}, "os.inodes", "999 inodes free for /mnt/out", "delete small files on /"),
        ({"writable": False}, "fs.squash", "/mnt/out cannot be written by the SSH user", "make /mnt/out writable"),
    ],
)
def test_a_directory_without_room_blocks(changes: dict[str, Any], identity: str, summary: str, fix: str) -> None:
    full = scenes.facts("b", disks=(scenes.disk("/mnt/out", **changes), scenes.disk(".")))
    finding = one(judge(scenes.survey(TWO, scenes.facts("a"), full)))
    assert (finding.id, finding.status, finding.nodes) == (identity, "fail", ("b",))
    assert finding.summary == summary and finding.evidence == "/dev/nvme0n1p2 on /"
    assert finding.fix[0].startswith(fix)


def test_enough_room_is_enough() -> None:
    just = (scenes.disk("/mnt/out", free_bytes=GIB, free_inodes=1000), scenes.disk(".", free_bytes=GIB // 2))
    no_count = (scenes.disk("/mnt/out", free_inodes=None), scenes.disk("."))
    assert judge(scenes.survey(TWO, scenes.facts("a", disks=just), scenes.facts("b", disks=no_count))) == []


def test_the_nodes_own_room_is_asked_for_too() -> None:
    full = scenes.facts("a", disks=(scenes.disk("/mnt/out"), scenes.disk(".", free_bytes=GIB // 2 - 1)))
    finding = one(judge(scenes.survey(TWO, full, scenes.facts("b"))))
    assert finding.summary == "512 MiB free for ., 512 MiB needed"


def test_room_that_could_not_be_read_is_unknown_and_no_pass() -> None:
    finding = one(judge(scenes.survey(TWO, scenes.facts("a", disks=(scenes.disk("."),)), scenes.facts("b"))))
    assert (finding.id, finding.status, finding.nodes) == ("os.disk-full", "unknown", ("a",))
    assert finding.summary == "the room for /mnt/out could not be read"


RTX, GT = "NVIDIA GeForce RTX 3090", "NVIDIA GeForce GT 1030"


@pytest.mark.parametrize(
    ("line", "cards", "summary"),
    [
        ("a slots=2", (RTX,), "has 1 of 2 cards"),
        ("a slots=2", (), "has 0 of 2 cards"),
        ("a slots=2 gpus=0,7", (RTX, RTX), "has no card 7"),
        ("a slots=1 gpus=GPU-0000-4", (RTX,), "has no card GPU-0000-4"),
        ("a slots=1", (RTX, GT), "has unlike cards, and slots=1 does not say which to use"),
        ("a slots=1", (RTX, RTX), None),
        ("a slots=2", (RTX, GT), None),
        ("a slots=1 gpus=1", (GT, RTX), None),
        ("a slots=1 gpus=GPU-0000-1", (GT, RTX), None),
    ],
)
def test_cards_are_counted_against_slots(line: str, cards: tuple[str, ...], summary: str | None) -> None:
    cluster = scenes.cluster(line + "\n")
    gpus = tuple(scenes.card(index, name) for index, name in enumerate(cards))
    survey = scenes.survey(cluster, scenes.facts("a", gpus=gpus))
    assert judge(survey, CPU) == []
    found = judge(survey, CUDA)
    if summary is None:
        assert found == []
        return
    finding = one(found)
    assert (finding.id, finding.status, finding.nodes) == ("gpu.count", "fail", ("a",))
    assert finding.summary == summary and finding.fix[0] == "correct slots= or gpus= in rack"
    assert any("device: cpu" in step for step in finding.fix) == (not cards), "who has none may do without"
    assert finding.evidence == (
        "\n".join(f"card {i}: {name}, 24576 MiB" for i, name in enumerate(cards)) or "nvidia-smi lists no card"
    )


def test_a_spare_is_not_judged_with_the_run() -> None:
    cluster = scenes.cluster("a slots=1\ns slots=8 spare=true\n")
    spare = scenes.facts("s", boot_id="boot-of-a")
    assert judge(scenes.survey(cluster, scenes.facts("a", gpus=(scenes.card(0),)), spare), CUDA) == []


LOCAL = " transport=local"


@pytest.mark.parametrize(
    ("first", "second", "demand", "clash"),
    [
        ("", "", CPU, True),
        ("", LOCAL, CPU, True),
        (LOCAL, LOCAL, CPU, False),
        (LOCAL, LOCAL, CUDA, True),
        (f"{LOCAL} gpus=0", f"{LOCAL} gpus=1", CUDA, False),
        (f"{LOCAL} gpus=0", f"{LOCAL} gpus=0", CUDA, True),
        (f"{LOCAL} gpus=0", LOCAL, CUDA, True),
        (" gpus=0", " gpus=1", CUDA, True),
    ],
)
def test_one_machine_under_two_names_blocks_unless_that_is_meant(
    first: str, second: str, demand: Demand, clash: bool
) -> None:
    cluster = scenes.cluster(f"a slots=1{first}\nb slots=1{second}\nc slots=1\n")
    cards = (scenes.card(0), scenes.card(1))
    known = (scenes.facts(name, gpus=cards, boot_id="x1" if name != "c" else "x2") for name in "abc")
    found = judge(scenes.survey(cluster, *known), demand)
    if not clash:
        assert found == []
        return
    finding = one(found)
    assert (finding.id, finding.status, finding.nodes) == ("ctl.same-host-twice", "fail", ("a", "b"))
    assert finding.evidence == "boot id x1 on each" and finding.fix == ("delete all but one of a, b from rack",)


def test_machines_whose_boot_id_could_not_be_read_are_not_called_one() -> None:
    survey = scenes.survey(TWO, scenes.facts("a", boot_id=None), scenes.facts("b", boot_id=None))
    assert judge(survey) == []


LACKS = {"above": "/mnt", "beside": ("outt", "web", "xyz")}
NFS = Mount("nas:/all", "/mnt", "nfs4", "rw")


def sharing(*disks: dict[str, Any], boot: str | None = None) -> list[Finding]:
    """What is found of the shared dir, on nodes of which each has its disk."""
    names = [node.name for node in TWO.nodes][: len(disks)]
    nodes = [
        scenes.facts(name, disks=(scenes.disk("/mnt/out", **disk),), **({"boot_id": boot} if boot else {}))
        for name, disk in zip(names, disks, strict=True)
    ]
    found = judge(scenes.survey(TWO, *nodes), dataclasses.replace(CPU, shared_at="job.yaml:2:9"))
    return [one for one in found if one.id == "fs.not-shared"]


def test_a_shared_directory_that_no_node_has_is_refused_at_its_line() -> None:
    told = one(sharing(LACKS, LACKS))
    assert (told.status, told.nodes, told.summary) == ("fail", ("a", "b"), "/mnt/out does not exist")
    assert told.fix[0] == "correct shared: at job.yaml:2:9   did you mean /mnt/outt?"
    assert one(sharing({"above": "/"}, {"above": "/"})).fix[0] == "correct shared: at job.yaml:2:9"
    strange = {"above": "/mnt/a\nb", "beside": ("out",)}  # a name that the probe could not tell in a line
    assert one(sharing(strange, strange)).fix[0] == "correct shared: at job.yaml:2:9"


def test_a_shared_directory_that_one_node_lacks_is_refused_with_that_node_alone() -> None:
    told = one(sharing({}, LACKS))
    assert told.nodes == ("b",) and told.cause == "other nodes have it" and "correct" not in told.fix[0]


def test_what_the_first_run_may_make_is_not_refused() -> None:
    assert sharing({}, {}) == []
    below = {**LACKS, "mount": NFS}
    assert sharing(below, below) == []
    assert sharing(LACKS, LACKS, boot="one machine") == []
    assert one(sharing(below, LACKS)).nodes == ("a", "b")  # only one of them has the share above it
