"""A run that prepares data: members come, fail and come back, and nobody's work ends because of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from gang_bench import GangBench, Node, eventually
from hypothesis import given, settings
from mind_bench import SURVIVAL, Table
from test_mind_random import EVENTS, NODES, Obedient, World

from clusterft_trainer import progress, stream
from clusterft_trainer.assignment import Survival
from clusterft_trainer.supervisor import messages
from clusterft_trainer.supervisor.messages import Go, Over, Sign

OOM = Sign("said", "oom", 1, "Memory ran out")
WRONG = Sign("said", "data", 1, "The folder /pictures does not exist.")
ALONE = replace(SURVIVAL, min_nodes=1)


def table(count: int = 3) -> Table:
    """A gang that prepares."""
    made = Table(count=count, kind="prep", survival=ALONE)
    made.gather()
    return made


def over(of: Table, rank: int = 0) -> Over:
    """What a member was told last."""
    told = of.last(rank)
    assert isinstance(told, Over)
    return told


# --- what the head decides


def test_one_that_fails_leaves_its_work_to_the_others() -> None:
    gang = table()
    gang.ends(1, 5, OOM)
    assert gang.gang.phase == "running" and gang.last(0) == gang.last(2) == Go(0, gang.members, 100)
    gang.ends(0, 0)
    gang.ends(2, 0)
    assert over(gang).end == "ok" and not [line for line in gang.decided() if line.again]


def test_settings_that_nobody_could_use_end_it_everywhere_and_for_good() -> None:
    gang = table()
    gang.ends(1, 2, WRONG)
    assert isinstance(gang.last(0), messages.Finish)
    gang.ends(0, 0, why="the attempt ended on n1")
    gang.ends(2, 143, why="the attempt ended on n1")
    assert (over(gang).end, over(gang).failure, over(gang).node) == ("failed", "data", "n1")


def test_a_lost_node_is_not_waited_for() -> None:
    gang = table()
    gang.gang.gone(2, gang.now)
    gang.tick(70)
    assert gang.gang.phase == "running" and isinstance(gang.last(0), Go)
    gang.ends(0, 0)
    gang.ends(1, 0)
    assert over(gang).end == "ok"


def test_a_lost_node_whose_ranks_went_on_is_one_of_them_again() -> None:
    gang = table()
    gang.gang.gone(2, gang.now)
    gang.tick(70)
    gang.hello(2, attempt=0, running=True)
    gang.ends(0, 5, OOM)
    gang.ends(1, 5, OOM)
    assert gang.gang.phase == "running"
    gang.ends(2, 0)
    assert over(gang).end == "ok"


def test_a_node_that_comes_back_takes_up_work_in_the_same_attempt() -> None:
    gang = table()
    gang.back(1)
    assert gang.last(1) == Go(0, gang.members, 100) and len(gang.told[1]) == 2
    assert isinstance(gang.last(0), Go) and len(gang.told[0]) == 1, "the others hear nothing of it"
    gang.ends(0, 5, OOM)
    gang.ends(2, 5, OOM)
    assert gang.gang.phase == "running"
    gang.ends(1, 0)
    assert over(gang).end == "ok"


def test_one_that_left_with_its_machine_takes_up_work_when_it_is_back() -> None:
    gang = table(2)
    gang.says(1, messages.Leaving())
    gang.ends(1, 0, why="this machine or its engine is shutting down")
    gang.tick(90)
    assert gang.gang.phase == "running", "an end that was asked for does not mean that all is done"
    gang.back(1, left=True)
    assert gang.last(1) == Go(0, gang.members, 100) and len(gang.told[1]) == 2


def test_one_that_comes_late_joins_and_ranks_are_counted_as_if_all_were_there() -> None:
    gang = Table(count=3, kind="prep", survival=ALONE)
    gang.hello(0)
    gang.hello(2)
    gang.tick(130)
    assert gang.last(0) == gang.last(2) == Go(0, gang.members, 100)
    assert gang.ledger.running == (0, 2)
    gang.hello(1)
    assert gang.last(1) == Go(0, gang.members, 100) and gang.ledger.running == (0, 1, 2)


def test_one_that_dies_again_and_again_is_left_out() -> None:
    gang = table(2)
    for _ in range(40):
        gang.back(1)
    assert len(gang.told[1]) == 21 and gang.gang.phase == "running"
    gang.ends(0, 0)
    assert over(gang).end == "ok"


def test_when_all_have_failed_another_attempt_begins() -> None:
    gang = table(2)
    gang.ends(0, 5, OOM)
    gang.ends(1, 5, Sign("said", "oom", 2, "Memory ran out elsewhere"))
    (decided,) = gang.decided()
    assert (decided.again, decided.failure, decided.used) == (True, "oom", 1)
    assert gang.last(1) == Go(1, gang.members, 101)


def test_the_last_ones_are_ended_a_minute_after_all_is_done() -> None:
    gang = table(2)
    gang.ends(0, 0)
    gang.tick(50)
    assert isinstance(gang.last(1), Go)
    gang.tick(20)
    assert isinstance(gang.last(1), messages.Finish)
    gang.ends(1, 143, why="the ranks on other nodes had ended")
    assert over(gang).end == "ok"


def test_a_stop_is_no_good_end() -> None:
    gang = table(2)
    gang.says(0, messages.Asked(1))
    for rank in range(2):
        gang.ends(rank, 0, why="stopped as asked")
    assert over(gang).end == "stopped"


def test_silence_of_all_is_a_hang_although_a_node_is_lost() -> None:
    gang = table(3)
    gang.gang.gone(2, gang.now)
    gang.tick(70)
    gang.says(0, messages.Moved(0, None, stepping=True))
    gang.tick(120)
    assert isinstance(gang.last(1), messages.Finish) and gang.gang.phase == "ending"
    hangs = [line for line in gang.said if isinstance(line, stream.Hang)]
    assert len(hangs) == 1 and hangs[0].seconds == 100.0


class Workshop(World):
    """Members of a gang that prepares: a supervisor that was brought back starts its part of the attempt again."""

    def do(self, one: Obedient, message: messages.Message) -> None:
        if isinstance(message, Go) and message.attempt == one.attempt and not one.running and one.report is None:
            one.running = True
        else:
            super().do(one, message)


@given(EVENTS)
@settings(max_examples=200, deadline=None)
def test_whatever_happens_to_members_the_run_ends_once(events: list[tuple[str, int]]) -> None:
    world = Workshop(Table(kind="prep", survival=ALONE))
    for rank in range(NODES):
        world.hello(rank)
    for event, rank in events:
        world.happens(event, rank)
    for _ in range(12):
        for rank in range(NODES):
            world.hello(rank)
        world.happens("hang", 0)
    gang = world.table
    assert gang.ledger.over is not None and gang.parted
    assert not any(one.running for one in world.members if one.connected)
    assert len([line for line in gang.decided() if not line.again]) == 1


# --- real processes: work is files in a shared directory, claimed by their creation

WORK = """
import os, signal, sys, time
from pathlib import Path
from clusterft_trainer import errors, rank
rank.begin()
shared, me = Path(sys.argv[1]), os.environ["RANK"]
print("rank", me, "of", os.environ["WORLD_SIZE"], "local", os.environ["LOCAL_RANK"], flush=True)
trouble = shared / f"trouble-{me}"
if trouble.exists():
    word = trouble.read_text()
    if word == "refuse":
        sys.exit(errors.USAGE)
    if word == "fail":
        sys.exit(5)
    if word == "once":
        trouble.unlink()
    os.kill(os.getpid(), signal.SIGKILL)
deadline = time.monotonic() + 30
while time.monotonic() < deadline and not (shared / "done").exists():
    time.sleep(0.02)
"""


def lay_out(gang: GangBench, nodes: int = 2, slots: int = 1, **changes: object) -> list[Node]:
    """Nodes whose ranks are started by our own starter."""
    package = gang.root / "package"
    package.mkdir()
    (package / "work.py").write_text(WORK)
    starter = (sys.executable, "-m", "clusterft_trainer.supervisor.starter", str(slots), "@FIRST_RANK@", "@WORLD@")
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    given: dict[str, object] = {
        "kind": "prep",
        "argv": (*starter, "work", str(gang.shared)),
        "env": {"PATH": os.environ["PATH"], "PYTHONPATH": path},
        "survival": Survival(patience=3.0, min_nodes=1),
    }
    return gang.lay_out("", nodes=nodes, slots=slots, **{**given, **changes})  # type: ignore[arg-type]


def finish(gang: GangBench) -> None:
    """All is prepared."""
    (gang.shared / "done").touch()


def end(node: Node) -> stream.Ended:
    """Its last word."""
    last = node.follow()[-1]
    assert isinstance(last, stream.Ended)
    return last


def test_ranks_are_numbered_over_all_nodes_and_need_no_port(gang: GangBench) -> None:
    nodes = lay_out(gang, slots=2)
    gang.start()
    assert eventually(lambda: all(len(node.rank_pids()) == 2 for node in nodes))
    finish(gang)
    assert [(end(node).end, end(node).code) for node in nodes] == [("ok", 0)] * 2
    assert nodes[1].texts(3) == ["rank 3 of 4 local 1"]


def test_a_rank_that_was_killed_starts_again_and_is_told_of(gang: GangBench) -> None:
    (gang.shared / "trouble-1").write_text("once")
    (node,) = lay_out(gang, nodes=1, slots=2)
    gang.start()
    assert eventually(lambda: len(node.texts(1)) == 2)
    finish(gang)
    assert end(node).end == "ok"
    assert [(line.rank, line.code) for line in node.all(stream.RankDied)] == [(1, -signal.SIGKILL)]
    (told,) = [line.record for line in node.all(stream.Progress) if isinstance(line.record, progress.Notice)]
    assert told.text == "rank 1 was ended by SIGKILL, and starts again (1 of 3)"


def test_a_rank_that_fails_leaves_its_work_to_the_others(gang: GangBench) -> None:
    (gang.shared / "trouble-0").write_text("fail")
    (node,) = lay_out(gang, nodes=1, slots=2)
    gang.start()
    assert eventually(lambda: node.all(stream.RankDied) and node.texts(1))
    finish(gang)
    assert end(node).end == "ok" and node.texts(0) == ["rank 0 of 2 local 0"]


def test_a_rank_that_refuses_ends_its_node_at_once(gang: GangBench) -> None:
    (gang.shared / "trouble-1").write_text("refuse")
    (node,) = lay_out(gang, nodes=1, slots=2, survival=Survival(restarts=0, min_nodes=1))
    gang.start()
    last = end(node)
    assert (last.end, last.code) == ("failed", 2)
    assert not node.rank_pids()


def test_a_stop_ends_all_ranks_and_none_starts_again(gang: GangBench) -> None:
    nodes = lay_out(gang, slots=2)
    gang.start()
    assert eventually(lambda: all(len(node.rank_pids()) == 2 for node in nodes))
    assert json.loads(nodes[1].verb("stop").stdout) == {"told": True}
    assert [end(node).end for node in nodes] == ["stopped", "stopped"]
    assert not [pid for node in nodes for pid in node.rank_pids()]
    assert all(len(node.texts(rank)) == 1 for rank, node in ((0, nodes[0]), (3, nodes[1])))


def test_a_killed_supervisor_comes_back_to_the_same_attempt_and_the_others_go_on(gang: GangBench) -> None:
    nodes = lay_out(gang)
    gang.start()
    assert eventually(lambda: nodes[1].texts(1) and nodes[0].rank_pids())
    other = nodes[0].rank_pids()
    os.kill(nodes[1].supervisor(), signal.SIGKILL)
    nodes[1].start()
    assert eventually(lambda: len(nodes[1].all(stream.Attempt)) == 2 and nodes[1].rank_pids())
    assert eventually(lambda: len(nodes[1].texts(1)) == 2), "what was said before is not said twice"
    assert nodes[0].rank_pids() == other
    finish(gang)
    assert [end(node).end for node in nodes] == ["ok", "ok"]
    assert [line.attempt for line in nodes[1].all(stream.Attempt)] == [0, 0]
    assert nodes[1].texts(1) == ["rank 1 of 2 local 0"] * 2


def test_a_node_that_never_comes_back_does_not_keep_the_others(gang: GangBench) -> None:
    nodes = lay_out(gang, nodes=3, survival=Survival(patience=5.0, min_nodes=1))
    gang.start()
    assert eventually(lambda: all(node.rank_pids() for node in nodes))
    os.kill(nodes[2].supervisor(), signal.SIGKILL)
    assert eventually(lambda: nodes[0].all(stream.Waiting))
    finish(gang)
    assert [end(node).end for node in nodes[:2]] == ["ok", "ok"]
    assert len(nodes[0].all(stream.Attempt)) == 1


def test_the_starter_says_how_it_is_used() -> None:
    argv = [sys.executable, "-m", "clusterft_trainer.supervisor.starter"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=Path("/"))
    assert done.returncode == 2 and "usage:" in done.stderr
