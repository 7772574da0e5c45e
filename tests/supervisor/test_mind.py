"""What the head decides, whatever members say and in whatever order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mind_bench import SURVIVAL, Table

from clusterft_trainer import stream
from clusterft_trainer.assignment import Member
from clusterft_trainer.supervisor import actions, messages
from clusterft_trainer.supervisor.messages import Go, Hello, Over, Report, Sign

KILLED = Sign("signal", "killed", 3, "rank 3 was ended by SIGKILL")
ECHO = Sign("said", "peer-lost", 0, "Another rank is gone")


def test_nothing_starts_before_all_are_there() -> None:
    table = Table()
    table.hello(0)
    table.hello(1)
    table.tick(30)
    assert table.gang.phase == "gathering" and not table.told
    table.hello(2)
    for rank in range(3):
        assert table.last(rank) == Go(0, table.members, 100)
    assert table.ledger.running == (0, 1, 2) and table.kept


def test_the_ledger_is_kept_before_anybody_is_told_to_go() -> None:
    table = Table(count=1)
    table.gang.hello(Hello(table.members[0], 0, "boot"), table.now)
    table.act()
    table.gang.tick(table.now)
    kinds = [type(action) for action in table.gang.drain()]
    assert kinds.index(actions.Keep) < kinds.index(actions.Send)


def test_one_that_fails_ends_it_everywhere_and_the_first_cause_is_named() -> None:
    table = Table()
    table.gather()
    table.ends(0, 1, ECHO)  # the echo arrives first
    finish = table.last(1)
    assert isinstance(finish, messages.Finish) and finish.words == 5.0, "an echo: the others may know more"
    table.ends(1, 1, KILLED)
    table.ends(2, 1, ECHO)
    (decided,) = table.decided()
    assert (decided.again, decided.failure, decided.node, decided.rank) == (True, "killed", "n1", 3)
    assert isinstance(table.last(2), Go) and table.last(2) == Go(1, table.members, 101)


def test_where_the_cause_is_clear_nobody_waits_for_echoes() -> None:
    table = Table()
    table.gather()
    table.ends(1, 1, KILLED)
    assert isinstance(finish := table.last(0), messages.Finish) and finish.words == 1.0


def test_a_training_run_is_ok_only_if_rank_0_said_so() -> None:
    table = Table()
    table.gather()
    for rank in range(3):
        table.ends(rank, 0, done=rank == 0)
    assert isinstance(over := table.last(2), Over) and over.end == "ok"
    assert not table.parted
    for rank in range(3):
        table.says(rank, messages.Bye())
    assert table.parted


def test_a_crash_after_the_run_was_complete_changes_nothing() -> None:
    table = Table()
    table.gather()
    table.ends(0, 0, done=True)
    table.ends(1, 1, Sign("signal", "crash", 2, "rank 2 was ended by SIGSEGV"))
    table.ends(2, 0)
    assert isinstance(over := table.last(0), Over) and over.end == "ok"


def test_ranks_that_save_and_end_are_an_interruption_and_cost_no_restart() -> None:
    table = Table()
    table.gather()
    table.says(1, messages.Leaving())
    for rank in range(3):
        table.ends(rank, 0)
    (decided,) = table.decided()
    assert (decided.again, decided.failure, decided.used, decided.node) == (True, "interrupted", 0, "n1")
    assert table.gang.phase == "gathering", "n1 is expected back"
    table.gang.gone(1, table.now)
    table.tick(20)
    table.incarnations[1] = 1
    table.hello(1, left=True, attempt=0)
    assert table.last(0) == Go(1, table.members, 101)


def test_the_last_ones_of_an_attempt_get_a_minute_to_end_with_the_others() -> None:
    table = Table()
    table.gather()
    table.ends(0, 0)
    table.ends(1, 0)
    table.tick(50)
    assert isinstance(table.last(2), Go)
    table.tick(20)
    assert isinstance(table.last(2), messages.Finish)


def test_a_script_is_ok_if_all_launchers_ended_with_0() -> None:
    table = Table(kind="script")
    table.gather()
    table.ends(0, 0)
    table.tick(90)
    assert table.gang.phase == "running", "ranks of a script may end when they like"
    table.ends(1, 0)
    table.ends(2, 0)
    assert isinstance(over := table.last(0), Over) and over.end == "ok"


def test_a_container_that_was_killed_and_came_back_is_the_cause() -> None:
    table = Table()
    table.gather()
    table.back(1)
    assert isinstance(table.last(0), messages.Finish)
    table.ends(0, 1, ECHO)
    table.ends(2, 1, ECHO)
    (decided,) = table.decided()
    assert (decided.failure, decided.node, decided.used) == ("container", "n1", 1)
    assert table.last(1) == Go(1, table.members, 101)


def test_a_node_that_rebooted_is_an_interruption() -> None:
    table = Table()
    table.gather()
    table.boots[1] = "another boot"
    table.back(1)
    table.ends(0, 1, ECHO)
    table.ends(2, 1, ECHO)
    assert [(line.failure, line.used) for line in table.decided()] == [("interrupted", 0)]


def test_a_lost_connection_that_heals_is_nothing() -> None:
    table = Table()
    table.gather()
    table.gang.gone(2, table.now)
    table.tick(50)
    waiting = [line for line in table.said if isinstance(line, stream.Waiting)]
    assert [line.nodes for line in waiting] == [("n2",)] and waiting[0].until == pytest.approx(5.0 + 60 - 4, abs=1)
    table.hello(2, attempt=0, running=True)
    assert table.gang.phase == "running" and isinstance(table.last(2), Go) and len(table.told[2]) == 1
    assert [line.nodes for line in table.said if isinstance(line, stream.Waiting)] == [("n2",), ()]


def test_what_a_member_reported_while_it_had_no_connection_is_heard_later() -> None:
    table = Table()
    table.gather()
    table.gang.gone(2, table.now)
    table.hello(2, attempt=0, report=Report(0, "failed", 1, signs=(KILLED,)))
    assert isinstance(table.last(0), messages.Finish)


def test_a_go_that_was_lost_with_its_connection_is_said_again() -> None:
    table = Table()
    table.gather()
    table.gang.gone(2, table.now)
    table.hello(2, attempt=-1)
    assert table.told[2] == [Go(0, table.members, 100)] * 2


def test_out_of_reach_for_longer_than_patience_is_lost() -> None:
    table = Table()
    table.gather()
    table.gang.gone(2, table.now)
    table.tick(59)
    assert table.gang.phase == "running"
    table.tick(3)
    assert isinstance(table.last(0), messages.Finish)
    table.ends(0, 1, ECHO)
    table.ends(1, 1, ECHO)
    assert isinstance(over := table.last(0), Over) and (over.end, over.failure) == ("failed", "node-lost")
    assert table.decided()[-1].node == "n2" and "2 of 3 nodes are left, and the job needs 3" in over.words


def test_who_never_came_is_not_lost_but_kept_from_the_heads_port() -> None:
    """Found by a user: a firewall on the head was told as nodes that had rebooted, and as a reunion."""
    table = Table()
    table.hello(0)
    table.hello(1)
    table.gang.gone(1, table.now)  # it came, and went: that is another matter
    table.tick(200)
    (found,) = [line for line in table.said if isinstance(line, stream.Found)]
    assert (found.id, found.status, found.nodes) == ("net.master-port", "fail", ("n0", "n2"))
    assert "n2 never came to port 1 of n0" in found.summary
    assert found.fix[0] == "on n0: sudo iptables -I INPUT -p tcp -s 10.0.0.2 --dport 1 -j ACCEPT"
    assert isinstance(over := table.last(0), Over) and (over.failure, over.node) == ("net.master-port", "n0")
    waits = [line for line in table.said if isinstance(line, stream.Waiting)]
    assert [(line.nodes, line.lost) for line in waits] == [(("n1", "n2"), ()), ((), ("n1", "n2"))]


def test_a_head_that_comes_back_knows_who_has_been_there() -> None:
    table = Table()
    table.hello(0)
    table.hello(1)
    table.gang.gone(1, table.now)
    table.sit_down()
    table.hello(0)
    table.tick(200)
    (found,) = [line for line in table.said if isinstance(line, stream.Found)]
    assert found.nodes == ("n0", "n2")


def test_enough_nodes_go_on_without_the_lost_one_and_take_it_back_next_time() -> None:
    table = Table(survival=replace(SURVIVAL, min_nodes=2))
    table.gather()
    table.gang.gone(1, table.now)
    table.tick(62)
    table.ends(0, 1, ECHO)
    table.ends(2, 1, ECHO)
    assert table.last(2) == Go(1, (table.members[0], table.members[2]), 101)
    table.hello(1, attempt=0, running=True)
    assert isinstance(table.last(1), messages.Finish), "its old ranks are in the way"
    table.ends(1, 1, attempt=0)
    table.ends(2, 1, KILLED)
    table.ends(0, 1, ECHO)
    assert table.last(1) == Go(2, table.members, 102)


def test_a_newcomer_takes_the_place_of_one_that_is_gone_and_keeps_it() -> None:
    table = Table()
    table.gather()
    spare = Member("spare", 1, 2, "10.0.0.9")
    assert "has the place" in table.hello(1, member=spare)
    table.gang.gone(1, table.now)
    assert table.hello(1, member=spare) == ""
    table.ends(0, 1, ECHO)
    table.ends(2, 1, ECHO)
    assert table.decided()[0].failure == "node-lost" and table.decided()[0].node == "n1"
    members = (table.members[0], spare, table.members[2])
    assert table.last(1) == Go(1, members, 101)
    assert table.ledger.members == members
    table.gang.gone(1, table.now)
    assert "has the place" in table.hello(1), "the old one, too late"


def test_a_stop_wins_over_everything() -> None:
    table = Table()
    table.hello(0)
    table.says(0, messages.Asked(1))
    assert isinstance(over := table.last(0), Over) and over.end == "stopped", "also before the first attempt"

    table = Table()
    table.gather()
    table.says(2, messages.Asked(1))
    assert all(table.last(rank) == messages.Stop(1) for rank in range(3))
    table.ends(1, 1, KILLED)
    assert table.last(0) == messages.Stop(1), "the others are saving: nobody hurries them"
    table.says(0, messages.Asked(2))
    assert table.last(2) == messages.Stop(2)
    table.ends(0, 1)
    table.ends(2, 1)
    assert isinstance(over := table.last(0), Over) and over.end == "stopped"


def test_a_stop_that_is_asked_of_one_out_of_reach_arrives_with_it() -> None:
    table = Table()
    table.gather()
    table.gang.gone(2, table.now)
    table.hello(2, attempt=0, running=True, stops=1)
    assert table.last(0) == messages.Stop(1)
    table.gang.gone(1, table.now)
    table.hello(1, attempt=0, running=True)
    assert table.last(1) == messages.Stop(1), "one that missed it is told again"


def test_no_step_for_too_long_dumps_all_stacks_before_it_ends() -> None:
    table = Table()
    table.gather()
    table.tick(150)
    table.says(0, messages.Moved(0, 1))
    table.tick(99)
    assert isinstance(table.last(1), Go)
    table.tick(3)
    assert table.last(1) == messages.Dump(0)
    for rank in range(3):
        table.says(rank, messages.Dumped(0, 2))
    (hang,) = [line for line in table.said if isinstance(line, stream.Hang)]
    assert hang.stacks == "/shared/r/stacks/attempt-0" and hang.seconds == 100.0
    assert isinstance(finish := table.last(1), messages.Finish) and finish.words == 0.0
    for rank in range(3):
        table.ends(rank, -9)
    assert table.decided()[0].failure == "hang" and table.decided()[0].again


def test_a_peer_out_of_reach_is_no_hang() -> None:
    table = Table()
    table.gather()
    table.says(0, messages.Moved(0, 1))
    table.tick(70)
    table.gang.gone(2, table.now)
    table.tick(50)
    table.hello(2, attempt=0, running=True)
    table.tick(99)
    assert isinstance(table.last(0), Go)
    table.tick(3)
    assert table.last(0) == messages.Dump(0)


def test_a_head_that_was_killed_goes_on_where_it_was() -> None:
    table = Table()
    table.gather()
    table.incarnations[0] = 1
    table.sit_down()
    table.hello(0, attempt=0)
    table.hello(1, attempt=0, running=True)
    assert isinstance(table.last(1), messages.Finish)
    table.hello(2, attempt=0, report=Report(0, "failed", 1, signs=(ECHO,)))
    table.ends(1, 1, ECHO)
    (decided,) = table.decided()
    assert (decided.failure, decided.node, decided.again) == ("container", "n0", True)
    assert table.last(2) == Go(1, table.members, 101)


def test_a_head_that_comes_back_between_two_attempts_does_not_count_one() -> None:
    table = Table()
    table.gather()
    for rank in range(3):
        table.ends(rank, 1, *((KILLED,) if rank == 1 else ()))
        if rank == 1:
            table.gang.gone(2, table.now)
            table.hello(2, attempt=0, report=Report(0, "failed", 1))
    table.sit_down()
    assert table.ledger.attempt == 1 and len(table.ledger.history) == 1


def test_a_head_that_comes_back_after_the_end_tells_the_others() -> None:
    table = Table()
    table.gather()
    for rank in range(3):
        table.ends(rank, 0, done=rank == 0)
    table.told.clear()
    table.sit_down()
    table.hello(2, attempt=0)
    assert isinstance(table.last(2), Over)


def test_a_leaving_head_begins_nothing() -> None:
    table = Table()
    table.gather()
    table.gang.leave()
    table.says(0, messages.Leaving())
    for rank in range(3):
        table.ends(rank, 0)
    table.tick(30)
    assert table.gang.phase == "gathering" and table.ledger.attempt == 0
    table.ledger.left = False
    table.incarnations[0] = 1
    table.sit_down()
    table.hello(0, left=True, attempt=0)
    table.hello(1, attempt=0)
    table.hello(2, attempt=0)
    assert table.ledger.attempt == 1 and table.decided()[0].failure == "interrupted"


def test_restarts_are_used_up_in_the_end() -> None:
    table = Table(survival=replace(SURVIVAL, restarts=1))
    table.gather()
    for attempt in range(2):
        for rank in range(3):
            table.ends(rank, 1, *((KILLED,) if rank == 1 else ()), step=attempt)
    first, last = table.decided()
    assert (first.again, last.again, last.used, last.why) == (True, False, 1, "all 1 restarts are used")
    assert isinstance(over := table.last(1), Over) and over.failure == "killed"


def test_a_stranger_has_no_seat() -> None:
    table = Table()
    assert "no machine rank 7" in table.hello(0, member=Member("x", 7, 1, "a"))
