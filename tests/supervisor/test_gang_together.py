"""A gang of real supervisors on loopback: what ends one part ends all, and what can go on goes on."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace

from gang_bench import GangBench, eventually

from clusterft_trainer import stream
from clusterft_trainer.assignment import Member, Survival
from clusterft_trainer.supervisor.part import TOMBSTONE

TRAIN = """
import os, time
from clusterft_trainer import progress
attempt, rank = int(os.environ["CLUSTERFT_ATTEMPT"]), int(os.environ["RANK"])
for step in range(1, 4 if attempt else 200):
    if rank == 0:
        print(progress.encode(progress.Step(step, 3, 0, 0.1, 1e-4, None, 1.0, 0.0, time.time())), flush=True)
    time.sleep(0.05)
if rank == 0:
    print(progress.encode(progress.Done(3, 0.1, 0.1, time.time())), flush=True)
"""


def test_a_killed_rank_is_followed_by_another_attempt_on_all_nodes(gang: GangBench) -> None:
    nodes = gang.lay_out(TRAIN, kind="train")
    gang.start()
    assert eventually(lambda: nodes[0].all(stream.Progress) and nodes[1].rank_pids())
    os.kill(nodes[1].rank_pids()[0], signal.SIGKILL)
    ends = [node.follow()[-1] for node in nodes]
    assert [(end.end, end.why) for end in ends if isinstance(end, stream.Ended)] == [("ok", ""), ("ok", "")]
    for node in nodes:
        assert [line.attempt for line in node.all(stream.Attempt)] == [0, 1]
        assert [line.end for line in node.all(stream.AttemptEnded)] == ["failed", "ok"]
    first, last = nodes[0].all(stream.Decided)
    assert (first.again, first.failure, first.node, first.rank, first.used) == (True, "killed", "n1", 1, 1)
    assert first.cause == "rank 1 on n1 was ended by SIGKILL"
    assert (last.again, last.failure, last.why) == (False, "", "finished")
    ports = [line.port for line in nodes[0].all(stream.Attempt)]
    assert ports[0] != ports[1]


def test_a_killed_supervisor_that_comes_back_is_recognised(gang: GangBench) -> None:
    nodes = gang.lay_out(TRAIN, kind="train", nodes=3)
    gang.start()
    assert eventually(lambda: nodes[0].all(stream.Progress) and nodes[1].rank_pids())
    old = nodes[1].rank_pids()
    os.kill(nodes[1].supervisor(), signal.SIGKILL)
    nodes[1].start()
    ends = [node.follow()[-1] for node in nodes]
    assert [end.end for end in ends if isinstance(end, stream.Ended)] == ["ok"] * 3
    assert not set(old) & set(nodes[1].rank_pids()) and nodes[1].state()["incarnation"] == 1
    first = nodes[0].all(stream.Decided)[0]
    assert (first.failure, first.node, first.used) == ("container", "n1", 1)


def test_a_killed_head_comes_back_and_goes_on_with_its_members(gang: GangBench) -> None:
    nodes = gang.lay_out(TRAIN, kind="train", nodes=3)
    gang.start()
    assert eventually(lambda: nodes[0].all(stream.Progress) and nodes[1].rank_pids())
    os.kill(nodes[0].supervisor(), signal.SIGKILL)
    nodes[0].start()
    ends = [node.follow()[-1] for node in nodes]
    assert [end.end for end in ends if isinstance(end, stream.Ended)] == ["ok"] * 3
    assert [line.incarnation for line in nodes[0].all(stream.Started)] == [0, 1]
    assert [line.attempt for line in nodes[2].all(stream.Attempt)] == [0, 1]
    first, last = nodes[0].all(stream.Decided)
    assert (first.failure, first.node, first.used, last.again) == ("container", "n0", 1, False)


def test_a_head_that_comes_back_to_a_run_planned_anew_begins_nothing(gang: GangBench) -> None:
    nodes = gang.lay_out(TRAIN, kind="train")
    gang.start()
    assert eventually(lambda: nodes[0].all(stream.Progress) and nodes[1].rank_pids())
    os.kill(nodes[0].supervisor(), signal.SIGKILL)
    (gang.shared / "run.json").write_text(json.dumps({"plan": {"first_attempt": 1}}))
    (gang.shared / "outcome.json").write_text("of the other gang")
    nodes[0].start()
    ends = [node.follow()[-1] for node in nodes]
    assert [end.end for end in ends if isinstance(end, stream.Ended)] == ["failed"] * 2
    last = nodes[0].all(stream.Decided)[-1]
    assert (last.again, last.failure) == (False, "replaced") and "planned anew" in last.cause
    assert [line.attempt for line in nodes[0].all(stream.Attempt)] == [0], "not even one"
    assert (gang.shared / "outcome.json").read_text() == "of the other gang"
    assert not nodes[1].rank_pids(0) and not nodes[1].rank_pids(1)


FORSAKES = """
import os, signal, time
if os.environ["CLUSTERFT_ATTEMPT"] == "0":
    launcher = os.getppid()
    time.sleep(0.5)
    os.kill(launcher, signal.SIGTERM)
    time.sleep(60)
"""
# Ends well when it is told to end, whatever its rank does: as DeepSpeed's runner when its other half was killed.
CARELESS = """
import os, signal, subprocess, sys
rank = subprocess.Popen([sys.executable, "-m", "clusterft_trainer.rank", sys.argv[3]], start_new_session=True,
                        env={**os.environ, "RANK": sys.argv[2], "LOCAL_RANK": "0"})
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
sys.exit(rank.wait())
"""


def test_a_launcher_that_ends_well_but_leaves_its_ranks_has_failed(gang: GangBench) -> None:
    nodes = gang.lay_out(FORSAKES, nodes=1)
    (gang.root / "launcher.py").write_text(CARELESS)
    gang.start()
    end = nodes[0].follow()[-1]
    assert isinstance(end, stream.Ended) and end.end == "ok"
    first = nodes[0].all(stream.Decided)[0]
    assert (first.again, first.failure) == (True, "launcher") and "left 1 of its ranks behind" in first.cause


SAVES = """
import os, signal, sys, time
def save(*_):
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_stop_told_to_one_node_stops_all(gang: GangBench) -> None:
    nodes = gang.lay_out(SAVES, nodes=3)
    gang.start()
    assert eventually(lambda: all("ready" in node.texts(rank) for rank, node in enumerate(nodes)))
    nodes[2].verb("stop")
    ends = [node.follow()[-1] for node in nodes]
    assert [end.end for end in ends if isinstance(end, stream.Ended)] == ["stopped"] * 3
    for rank, node in enumerate(nodes):
        assert node.texts(rank) == ["ready", "saved"]
    assert nodes[0].all(stream.Decided)[-1].why == "stopped as asked"


def test_a_stop_told_to_every_node_at_once_lets_ranks_save(gang: GangBench) -> None:
    """Each node hears of it from itself and from the others, in any order: that is one stop, and no second one."""
    nodes = gang.lay_out(SAVES.replace("    print", "    time.sleep(1)\n    print"), nodes=3)
    gang.start()
    assert eventually(lambda: all("ready" in node.texts(rank) for rank, node in enumerate(nodes)))
    for node in nodes:  # as `stop` does, before a signal of its own comes late
        (node.dir / TOMBSTONE).write_text("asked\n")
    os.kill(nodes[2].supervisor(), signal.SIGTERM)
    assert eventually(lambda: nodes[0].state()["stops"] and nodes[1].state()["stops"])
    for node in nodes[:2]:
        os.kill(node.supervisor(), signal.SIGTERM)
    ends = [node.follow()[-1] for node in nodes]
    assert [end.end for end in ends if isinstance(end, stream.Ended)] == ["stopped"] * 3
    for rank, node in enumerate(nodes):
        assert node.texts(rank) == ["ready", "saved"]


def test_a_kill_by_hand_after_a_stop_is_a_second_one(gang: GangBench) -> None:
    (node,) = gang.lay_out(SAVES.replace("signal.SIGTERM, save", "signal.SIGTERM, signal.SIG_IGN"), nodes=1)
    gang.start()
    assert eventually(lambda: "ready" in node.texts(0))
    node.verb("stop")
    assert eventually(lambda: node.state()["stops"] == 1)
    assert node.rank_pids()
    os.kill(node.supervisor(), signal.SIGTERM)
    end = node.follow()[-1]
    assert isinstance(end, stream.Ended) and end.end == "stopped" and not node.rank_pids()


def test_a_stop_at_once_kills_on_all_nodes(gang: GangBench) -> None:
    stubborn = SAVES.replace("signal.SIGTERM, save", "signal.SIGTERM, signal.SIG_IGN")
    nodes = gang.lay_out(stubborn)
    gang.start()
    assert eventually(lambda: all("ready" in node.texts(rank) for rank, node in enumerate(nodes)))
    nodes[1].verb("stop")
    time.sleep(0.5)
    assert all(node.rank_pids() for node in nodes)
    nodes[1].verb("stop", "2")
    ends = [node.follow()[-1] for node in nodes]
    assert [end.end for end in ends if isinstance(end, stream.Ended)] == ["stopped"] * 2
    assert not any(node.rank_pids() for node in nodes)


def test_a_member_that_stays_away_is_lost_and_the_run_ends_with_the_reason(gang: GangBench) -> None:
    nodes = gang.lay_out(TRAIN, kind="train", survival=Survival(patience=1.5))
    gang.start()
    assert eventually(lambda: nodes[0].all(stream.Progress))
    os.kill(nodes[1].supervisor(), signal.SIGKILL)
    end = nodes[0].follow()[-1]
    assert isinstance(end, stream.Ended) and end.end == "failed"
    assert end.why.startswith("n1 was out of reach for 2 s; 1 of 2 nodes are left")
    assert nodes[0].all(stream.Decided)[-1].failure == "node-lost"


def test_enough_nodes_go_on_without_the_lost_one(gang: GangBench) -> None:
    nodes = gang.lay_out(TRAIN, kind="train", nodes=3, survival=Survival(patience=4.0, min_nodes=2))
    gang.start()
    assert eventually(lambda: nodes[0].all(stream.Progress))
    os.kill(nodes[1].supervisor(), signal.SIGKILL)
    ends = [node.follow()[-1] for node in (nodes[0], nodes[2])]
    assert [end.end for end in ends if isinstance(end, stream.Ended)] == ["ok"] * 2
    again = nodes[2].all(stream.Attempt)[1]
    assert (again.machines, again.machine_rank, again.first_rank, again.world) == (2, 1, 1, 2)


def test_a_spare_takes_the_place_of_a_lost_node(gang: GangBench) -> None:
    nodes = gang.lay_out(TRAIN, kind="train")
    gang.start()
    assert eventually(lambda: nodes[0].all(stream.Progress))
    os.kill(nodes[1].supervisor(), signal.SIGKILL)
    member = Member("spare", 1, 1, "127.0.0.1")
    spare = gang.node(replace(nodes[1].told, members=(nodes[0].told.members[0], member)), member)
    gang.nodes.append(spare)
    spare.start()
    ends = [node.follow()[-1] for node in (nodes[0], spare)]
    assert [end.end for end in ends if isinstance(end, stream.Ended)] == ["ok"] * 2
    assert nodes[0].all(stream.Decided)[0].cause == "n1 was replaced by spare"
    assert [line.attempt for line in spare.all(stream.Attempt)] == [1]


def test_who_does_not_know_the_token_is_not_let_in(gang: GangBench) -> None:
    nodes = gang.lay_out(TRAIN, kind="train", survival=Survival(patience=2.0))
    stranger = replace(nodes[1].told, token="another")
    (nodes[1].dir / "assignment.json").write_text(stranger.to_json())
    gang.start()
    end = nodes[0].follow()[-1]
    assert isinstance(end, stream.Ended) and end.end == "failed"
    assert nodes[0].all(stream.Attempt) == [] and nodes[1].all(stream.Attempt) == []


# As the trainer does: a rank that is told to end has all of them end at the same step.
LEAVES = TRAIN.replace(
    "import os, time",
    "import os, pathlib, signal, sys, time\n"
    "leave = pathlib.Path(sys.argv[0] + os.environ['CLUSTERFT_ATTEMPT'])\n"
    "signal.signal(signal.SIGTERM, lambda *_: leave.touch())",
).replace("    time.sleep(0.05)", "    time.sleep(0.05)\n    leave.exists() and sys.exit(0)")


def test_a_contained_part_that_the_engine_ends_and_brings_back_goes_on(gang: GangBench) -> None:
    nodes = gang.lay_out(LEAVES, kind="train", contained=True, secrets_file=str(gang.root / "secrets.json"))
    (gang.root / "secrets.json").write_text('{"TOKEN": "x"}')
    first = [node.run() for node in nodes]
    assert eventually(lambda: nodes[0].all(stream.Progress) and nodes[1].rank_pids())
    first[1].send_signal(signal.SIGTERM)
    assert first[1].wait(20) == 143
    assert not nodes[1].all(stream.Ended) and (gang.root / "secrets.json").exists()
    again = nodes[1].run()
    assert (first[0].wait(30), again.wait(30)) == (0, 0)
    decided = nodes[0].all(stream.Decided)
    assert [(line.failure, line.used) for line in decided] == [("interrupted", 0), ("", 0)]
    assert decided[0].node == "n1" and not (gang.root / "secrets.json").exists()
    assert [line.end for line in nodes[1].all(stream.Ended)] == ["ok"]


def test_a_contained_head_that_the_engine_ends_and_brings_back_goes_on(gang: GangBench) -> None:
    nodes = gang.lay_out(LEAVES, kind="train", contained=True)
    first = [node.run() for node in nodes]
    assert eventually(lambda: nodes[0].all(stream.Progress) and nodes[1].rank_pids())
    first[0].send_signal(signal.SIGTERM)
    assert first[0].wait(20) == 143
    again = nodes[0].run()
    assert (again.wait(30), first[1].wait(30)) == (0, 0)
    decided = nodes[0].all(stream.Decided)
    assert [(line.failure, line.used, line.node) for line in decided] == [("interrupted", 0, "n0"), ("", 0, "")]


HANGS = """
import os, time
from clusterft_trainer import progress
attempt, rank = int(os.environ["CLUSTERFT_ATTEMPT"]), int(os.environ["RANK"])
def waits_for_ever():
    time.sleep(0 if attempt else 60)
if rank == 0:
    print(progress.encode(progress.Step(1, 3, 0, 0.1, 1e-4, None, 1.0, 0.0, time.time())), flush=True)
waits_for_ever()
if rank == 0:
    print(progress.encode(progress.Done(3, 0.1, 0.1, time.time())), flush=True)
"""


def test_a_hang_leaves_the_stacks_of_all_ranks_and_is_followed_by_another_attempt(gang: GangBench) -> None:
    survival = Survival(hang_after=1.0, first_step_after=10.0, patience=10.0)
    nodes = gang.lay_out(HANGS, kind="train", slots=2, survival=survival)
    gang.start()
    ends = [node.follow()[-1] for node in nodes]
    assert [end.end for end in ends if isinstance(end, stream.Ended)] == ["ok"] * 2
    (hang,) = nodes[0].all(stream.Hang)
    assert hang.stacks == str(gang.shared / "stacks" / "attempt-0")
    for rank in range(4):
        text = (gang.shared / "stacks" / "attempt-0" / f"n{rank // 2}" / f"rank{rank}.txt").read_text()
        assert "in waits_for_ever" in text
    first, last = nodes[0].all(stream.Decided)
    assert (first.failure, first.again, last.why) == ("hang", True, "finished")
