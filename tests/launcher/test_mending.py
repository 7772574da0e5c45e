"""When a run needs its controller, what may take whose place, and whether an image is the one that was brought."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import plans
import pytest

from clusterft.apply import record, sameness
from clusterft.apply.mending import due, successors
from clusterft.apply.record import Entry
from clusterft.board import Board
from clusterft.cli.resume import differences
from clusterft.errors import ClusterftError
from clusterft.events import Said
from clusterft.hosts import Node
from clusterft.image import Identity
from clusterft.plan import Part
from clusterft.plan.standin import stand_in
from clusterft.remote import Unreachable
from clusterft_trainer import assignment, stream
from clusterft_trainer.assignment import Member

NODES = tuple(Node(f"n{i}", slots=1) for i in (1, 2, 3))
SPARE = Node("n4", slots=1)


def board(*missed: str, at: float = 100.0) -> Board:
    """A run whose head misses these since then."""
    made = Board("one", ("n1", "n2", "n3"))
    made.see(Said("n1", stream.Waiting(missed, at + 300, at)))
    return made


@pytest.mark.parametrize(("now", "node"), [(100, None), (159, None), (160, "n3"), (900, "n3")])
def test_a_node_is_due_a_minute_after_the_head_missed_it(now: float, node: str | None) -> None:
    assert due(board("n3"), now, 300.0) == node


def test_a_gang_of_little_patience_gets_its_spare_sooner() -> None:
    assert due(board("n3"), 104, 20.0) is None
    assert due(board("n3"), 105, 20.0) == "n3"


def test_nobody_is_due_while_all_are_there() -> None:
    assert due(board(), 900, 300.0) is None
    assert due(Board("one", ("n1",)), 900, 300.0) is None


def test_the_head_is_not_replaced_but_planned_anew() -> None:
    assert due(board("n1"), 900, 300.0) is None


@pytest.mark.parametrize(
    ("alive", "least", "chosen"),
    [
        ("n1 n2 n3 n4", 3, "n1 n2 n3"),
        ("n2 n3 n4", 3, "n2 n3 n4"),
        ("n2 n3", 3, ""),
        ("n2 n3", 2, "n2 n3"),
        ("n3 n4", 2, "n3 n4"),
        ("n4", 1, "n4"),
        ("", 1, ""),
    ],
)
def test_those_that_are_left_go_on_with_spares_if_they_are_enough(alive: str, least: int, chosen: str) -> None:
    found = successors(NODES, frozenset(alive.split()), (SPARE,), least)
    assert [node.name for node in found] == chosen.split()


# -- a stand-in --------------------------------------------------------------------------------


def test_a_stand_in_has_the_lost_ones_rank_and_the_gangs_secret(tmp_path: Path) -> None:
    survey, job = plans.CASES["boxes"]
    gang = plans.build(job, survey, tmp_path).head.assignment
    mine = plans.build(job, survey, tmp_path).nodes[2]  # planned as if it were another's third node
    other = replace(mine, assignment=replace(mine.assignment, token="another's", gang_port=1))
    made = stand_in(other, gang, Member("gpu3", 1, 8, "10.0.0.13"))
    told = assignment.parse(next(file.text for file in made.files if file.path.name == "assignment.json"))
    assert told == made.assignment
    assert (told.token, told.gang_port, told.machine_rank) == (gang.token, gang.gang_port, 1)
    assert [member.node for member in told.members] == ["gpu0", "gpu3", "gpu2"] and not told.preflight
    assert made.part.machine_rank == 1 and told.env["CLUSTERFT_MACHINE_RANK"] == "1"
    assert made.container is not None and made.container.labels.machine_rank == 1
    assert (made.node, made.interface, made.directory) == (mine.node, mine.interface, mine.directory)


# -- the image gate ----------------------------------------------------------------------------

IMAGE = Identity("sha256:aa", ("sha256:1", "sha256:2"), "amd64", "linux", "", 1)
OTHER = replace(IMAGE, layers=("sha256:1", "sha256:3"))


def test_equal_images_are_no_finding() -> None:
    assert sameness.judge("x:1", IMAGE, {"n1": IMAGE, "n2": replace(IMAGE, size=2)}, "clusterft up") == ()
    assert sameness.judge("x:1", None, {"n1": IMAGE, "n2": IMAGE}, "clusterft up") == ()


def test_another_image_under_the_tag_names_its_nodes_and_up() -> None:
    (found,) = sameness.judge("x:1", IMAGE, {"n1": IMAGE, "n2": OTHER, "n3": OTHER}, "clusterft up --hosts rack")
    assert (found.id, found.status, found.nodes) == ("dk.image-drift", "fail", ("n2", "n3"))
    assert found.evidence == "layer 2 of 2 differs" and found.fix == ("clusterft up --hosts rack",)


def test_a_missing_image_and_a_node_out_of_reach_are_named() -> None:
    gone = Unreachable("ssh.timeout", "no answer")
    found = sameness.judge("x:1", IMAGE, {"n1": IMAGE, "n2": None, "n3": gone}, "clusterft up")
    assert [(one.id, one.nodes) for one in found] == [("dk.image-missing", ("n2",)), ("ssh.timeout", ("n3",))]


# -- what is written down ----------------------------------------------------------------------


def entry() -> Entry:
    """A record with little in it."""
    body = {"run": "one", "cluster": "rack", "run_dir": "/shared/one", "nodes": [{"container": None}]}
    return Entry({"name": "one"}, body, (Part("n1", 0, "docker", "/run/clusterft", "python3"),), "running", 1.0)


def test_a_record_comes_back_as_it_was() -> None:
    text = entry().to_json()
    assert record.parse(text) == entry()
    head = json.loads(text)
    assert (head["schema"], head["run"], head["cluster"]) == (2, "one", "rack")


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1}', '{"schema": 2}'])
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ClusterftError, match="not a record of a run"):
        record.parse(text)


def test_changed_settings_are_told_field_by_field() -> None:
    before = {"name": "a", "restarts": 1, "train": {"batch": {"per_slot": 1}, "seed": 5}, "script": None}
    after = {"name": "b", "restarts": 9, "train": {"batch": {"per_slot": 2}, "seed": 5}, "script": None}
    assert differences(before, before) == []
    assert differences(before, after) == ["train.batch.per_slot: 1 → 2"]
    assert differences(before, {**before, "train": None})[0].startswith("train: ")
