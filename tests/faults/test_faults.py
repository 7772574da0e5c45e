"""What befalls real clusters befalls a run on three nodes, with its controller attached or long gone.

A run goes on from its newest complete checkpoint, or stops with the first cause by name. Either way every sample
is computed exactly once in every epoch, and nothing is left on any node.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from faults.rig import BEHIND, DATA, NODES, Controller, Rig

pytestmark = [pytest.mark.lab_full, pytest.mark.trainer, pytest.mark.long]

Tell = Callable[[str], None]
LONG = {"train": {"epochs": 5}}  # some twenty seconds of steps


@dataclass(frozen=True)
class Fault:
    """Something that a run lives through."""

    act: Callable[[Rig, str], object]
    attempts: tuple[int, ...]  # how many the run may take
    cause: str = ""  # what the run says of the attempt that failed, in some of its words
    node: str = ""  # where


def _engine_restarts(node: str) -> Callable[[Rig, str], None]:
    def act(rig: Rig, run: str) -> None:
        rig.node(node).stop_engine()
        rig.node(node).start_engine()

    return act


def _link_drops(rig: Rig, run: str) -> None:
    rig.node("n3").cut_link()
    time.sleep(120)
    rig.node("n3").restore_link()


def _shared_hangs(rig: Rig, run: str) -> None:
    with rig.frozen():
        time.sleep(60)


FAULTS = {
    "a rank is killed": Fault(lambda rig, run: rig.kill_rank(run, 1), (2,), "SIGKILL", "n2"),
    "rank 0 is killed": Fault(lambda rig, run: rig.kill_rank(run, 0), (2,), "SIGKILL", "n1"),
    "a container is killed": Fault(lambda rig, run: rig.kill_container("n2", run), (2,), "n2", "n2"),
    "the head's container is killed": Fault(lambda rig, run: rig.kill_container("n1", run), (2,), "", "n1"),
    "an engine restarts": Fault(_engine_restarts("n3"), (2,)),
    "the head's engine restarts": Fault(_engine_restarts("n1"), (2,)),
    "a node reboots": Fault(lambda rig, run: rig.node("n3").reboot(), (2,)),
    "the head reboots": Fault(lambda rig, run: rig.node("n1").reboot(), (2,)),
    "a node's link drops for two minutes": Fault(_link_drops, (1, 2)),
    "the shared dir hangs for a minute": Fault(_shared_hangs, (1,)),
}


def ended(rig: Rig, controller: Controller, run: str, attached: bool) -> dict[str, Any]:
    """How a run ended well: told by its controller, or found by the next that asks."""
    if attached:
        code = controller.wait(420)
        assert code == 0, controller.words()
    outcome = rig.over(run, 420)
    if not attached:
        rig.status(run)  # collects what containers still hold, and takes them away
    return outcome


@pytest.mark.parametrize("how", ["attached", "detached"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_run_lives_through(rig: Rig, tell: Tell, name: str, how: str) -> None:
    """The run ends well, with every sample once and nothing left."""
    fault, attached = FAULTS[name], how == "attached"
    controller, run = rig.train(**LONG)
    rig.saved(run, controller)
    if not attached:
        controller.kill()
    fault.act(rig, run)
    outcome = ended(rig, controller, run, attached)
    assert outcome["end"] == "ok", outcome
    assert outcome["attempts"] in fault.attempts, outcome
    assert (rig.shared(run, "report.html") or "").startswith("<!"), "the report"
    rig.assert_each_once(run, epochs=5)
    rig.assert_clean()
    causes = "".join(f"; {one['cause']}: again from step {rig.resumed(run)}" for one in outcome["history"])
    tell(f"finished, attempts: {outcome['attempts']}{causes}")
    for one in outcome["history"]:
        assert fault.cause in one["cause"] and fault.node in (one["node"], ""), one


def test_a_full_disk_stops_the_run_and_resume_goes_on(rig: Rig, tell: Tell) -> None:
    """Disk full during a checkpoint: stops at once by that name; once there is room, resume loses nothing."""
    controller, run = rig.train(**LONG)
    rig.saved(run, controller)
    rig.fill_shared(leave_mib=8)
    assert controller.wait() == 5, controller.words()
    said = controller.said()
    assert said["verdict"]["failure"] == "disk-full", said
    assert rig.containers("n1", run) == []
    rig.free_shared()
    outcome = rig.over(run)
    assert (outcome["failure"], outcome["attempts"]) == ("disk-full", 1), outcome
    more = rig.begin("resume", run, "--json")
    assert more.wait() == 0, more.words()
    rig.assert_each_once(run, epochs=5)
    rig.assert_clean()
    tell("stopped at once: disk-full; resume finished it")


def test_attach_from_another_home_after_the_controller_was_killed(rig: Rig, tell: Tell) -> None:
    """kill -9 of the controller, attach from another home: the run goes on and is watched to its end."""
    controller, run = rig.train(**LONG)
    rig.saved(run, controller)
    controller.kill()
    other = rig.another_desk()
    attached = rig.begin("attach", run, "--json", desk=other)
    assert attached.wait() == 0, attached.words()
    said = attached.said()
    assert (said["run"], said["outcome"]) == (run, "ok"), said
    assert rig.outcome(run)["attempts"] == 1
    rig.assert_each_once(run, epochs=5)
    rig.assert_clean()
    tell("finished, 1 attempt, watched from another home")


def test_ctrl_c_once_stops_after_a_checkpoint_and_resume_goes_on(rig: Rig, tell: Tell) -> None:
    """Ctrl-C without a terminal: a checkpoint of the very last step, exit 130; resume repeats nothing."""
    controller, run = rig.train(**LONG)
    rig.saved(run, controller)
    controller.interrupt()
    assert controller.wait() == 130, controller.words()
    assert rig.outcome(run)["end"] == "stopped"
    step = rig.step(run)
    assert rig.checkpoints(run)[-1] == step
    rig.assert_clean()
    more = rig.begin("resume", run, "--json")
    assert more.wait() == 0, more.words()
    assert rig.resumed(run) == step + 1
    rig.assert_each_once(run, epochs=5)
    rig.assert_clean()
    tell(f"stopped with a checkpoint of step {step}; resume finished it")


def test_ctrl_c_twice_stops_at_once(rig: Rig, tell: Tell) -> None:
    """Ctrl-C twice: exit 130, and soon nothing is left."""
    controller, run = rig.train(**LONG)
    rig.saved(run, controller)
    controller.interrupt()
    time.sleep(0.2)
    controller.interrupt()
    began = time.monotonic()
    assert controller.wait(60) == 130, controller.words()
    assert rig.outcome(run)["end"] == "stopped"
    rig.assert_clean()
    tell(f"all gone after {time.monotonic() - began:.0f} s")


def test_stop_from_another_home(rig: Rig, tell: Tell) -> None:
    """stop RUN from another controller: the one that watches is told; nothing is left."""
    controller, run = rig.train(**LONG)
    rig.saved(run, controller)
    done = rig.another_desk().run("stop", run, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert controller.wait() == 130, controller.words()
    assert rig.checkpoints(run)[-1] == rig.step(run)
    rig.assert_clean()
    tell("stopped with a checkpoint")


@pytest.mark.parametrize("words", [(), ("--no-preflight",)], ids=["preflight", "no preflight"])
def test_pictures_that_one_node_lacks(rig: Rig, tell: Tell, words: tuple[str, ...]) -> None:
    """Bad config on one node only: the node and the path are named, and nothing is left."""
    folder = f"{DATA}/pictures"
    try:
        for name in NODES[:2]:
            rig.pictures(name, folder)
        rig.write(train={"data": {"sources": [{"folder": folder}], "resolution": 64}})
        began = time.monotonic()
        controller = rig.begin("train", "job.yaml", "--json", *words)
        code = controller.wait()
        text = controller.words()
        assert code == 3, text
        assert "n3" in text and folder in text, text
        rig.assert_clean()
        tell(f"exit {code} after {time.monotonic() - began:.0f} s: n3 and the path are named")
    finally:
        for name in NODES[:2]:
            rig.sh(name, f"rm -rf {DATA}")


def test_another_image_under_the_same_name_on_one_node(rig: Rig, tell: Tell) -> None:
    """Wrong image on one node: refused before anything starts, the node is named; up mends it."""
    rig.swap_image("n2")
    rig.write()
    controller = rig.begin("train", "job.yaml", "--json")
    assert controller.wait() == 3, controller.words()
    assert "n2" in controller.words()
    rig.assert_clean()
    rig.desk.up()
    tell("exit 3: n2 is named; up mended it")


def test_a_straggler_is_waited_for(rig: Rig, tell: Tell) -> None:
    """A node with a quarter of a processor: slow is not dead, so the run ends well in its first attempt."""
    rig.node("n3").slow(0.25)
    controller, run = rig.train(env={"WITNESS_PAUSE": "0"})
    assert controller.wait(600) == 0, controller.words()
    assert rig.outcome(run)["attempts"] == 1
    rig.assert_each_once(run, epochs=3)
    rig.assert_clean()
    tell("finished, 1 attempt")


def test_a_hang_leaves_the_stacks_of_all_ranks(rig: Rig, tell: Tell) -> None:
    """A rank that is frozen: stacks of all ranks are in the run directory before anything is killed."""
    controller, run = rig.train(**LONG, hang_after="20s")
    rig.saved(run, controller)
    rig.kill_rank(run, 1, "STOP")
    outcome = ended(rig, controller, run, attached=True)
    assert outcome["attempts"] == 2, outcome
    show = "ls */rank*.txt; cat n1/rank0.txt n2/rank1.txt"
    stacks = rig.sh("n1", f"cd {BEHIND}/{run}/stacks/attempt-0; {show}")
    assert {f"{node}/rank{rank}.txt" for rank, node in enumerate(NODES)} <= set(stacks.split()), stacks
    assert "train.py" in stacks, "rank 0 tells where it is"
    assert "T (stopped)" in stacks, "rank 1 cannot; the kernel does"
    rig.assert_each_once(run, epochs=5)
    rig.assert_clean()
    tell("stacks of 3 ranks, then finished, 2 attempts")


def test_a_spare_takes_the_place_of_a_dead_node(rig: Rig, tell: Tell) -> None:
    """A node that stays dead, controller attached: the spare goes on in its place."""
    controller, run = rig.train(**LONG, patience="20s")
    rig.saved(run, controller)
    rig.node("n3").kill()
    outcome = ended(rig, controller, run, attached=True)
    assert outcome["end"] == "ok" and outcome["attempts"] == 2, outcome
    assert {note.rank for note in rig.notes(run) if note.attempt == 1} == {0, 1, 2}
    rig.returns("n3", run)
    rig.assert_each_once(run, epochs=5)
    rig.status(run)
    rig.assert_clean()
    tell("finished on n1, n2 and n4, 2 attempts")


@pytest.mark.parametrize("how", ["attached", "detached"])
def test_fewer_nodes_where_the_job_allows_it(rig: Rig, tell: Tell, how: str) -> None:
    """A node that stays dead, no spare, min_nodes: 2: the run goes on with two."""
    hosts = rig.without_spare()
    controller, run = rig.train(**LONG, patience="20s", min_nodes=2, hosts=str(hosts))
    rig.saved(run, controller)
    if how == "detached":
        controller.kill()
    rig.node("n3").kill()
    outcome = ended(rig, controller, run, how == "attached")
    assert outcome["end"] == "ok" and outcome["attempts"] == 2, outcome
    assert {note.world for note in rig.notes(run) if note.attempt == 1} == {2}
    rig.returns("n3", run)
    rig.assert_each_once(run, epochs=5)
    rig.status(run)
    rig.assert_clean()
    tell("finished on n1 and n2, 2 attempts")


@pytest.mark.parametrize("how", ["attached", "detached"])
def test_a_dead_node_that_nothing_replaces_ends_the_run(rig: Rig, tell: Tell, how: str) -> None:
    """A node that stays dead, no spare, all nodes needed: stops as node-lost; resume goes on when it is back."""
    hosts = rig.without_spare()
    controller, run = rig.train(**LONG, patience="20s", hosts=str(hosts))
    rig.saved(run, controller)
    if how == "detached":
        controller.kill()
    rig.node("n3").kill()
    if how == "attached":
        assert controller.wait() == 5, controller.words()
    outcome = rig.over(run)
    assert (outcome["failure"], outcome["node"]) == ("node-lost", "n3"), outcome
    rig.returns("n3", run)
    rig.status(run)
    rig.assert_clean()
    more = rig.begin("resume", run, "--json")
    assert more.wait() == 0, more.words()
    rig.assert_each_once(run, epochs=5)
    rig.assert_clean()
    tell("stopped: node-lost, n3; resume finished it")


def test_the_head_is_lost_and_the_controller_plans_anew(rig: Rig, tell: Tell) -> None:
    """The head stays dead, controller attached: another node becomes the head, the spare fills up."""
    controller, run = rig.train(**LONG, patience="20s")
    rig.saved(run, controller)
    rig.node("n1").kill()
    assert controller.wait(420) == 0, controller.words()
    rig.returns("n1", run)
    rig.assert_each_once(run, epochs=5)
    rig.status(run)
    rig.assert_clean()
    tell("finished on n2, n3 and n4")


def test_a_second_run_on_the_same_nodes_is_refused(rig: Rig, tell: Tell) -> None:
    """Two controllers, one cluster: the second is told whose run holds the nodes."""
    controller, run = rig.train(**LONG)
    rig.saved(run, controller)
    other = rig.another_desk("--job", str(rig.desk.root / "job.yaml"))
    done = other.run("train", "job.yaml", "--json")
    assert done.returncode == 3 and run in done.stdout + done.stderr, done.stdout + done.stderr
    assert controller.wait() == 0, controller.words()
    assert rig.outcome(run)["attempts"] == 1
    rig.assert_each_once(run, epochs=5)
    rig.assert_clean()
    tell(f"exit 3, {run} is named; the first run finished undisturbed")
