"""What keeps two gangs out of one run, and a member's word true when it is heard."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

from gang_bench import eventually

from clusterft_trainer.assignment import Member as Someone
from clusterft_trainer.supervisor import ledger
from clusterft_trainer.supervisor.fence import Fence
from clusterft_trainer.supervisor.member import Member
from clusterft_trainer.supervisor.messages import Hello, Message
from clusterft_trainer.supervisor.wire import Channel


def _looked(fence: Fence) -> bool:
    """What one whole look comes to."""
    fence.turn(time.monotonic(), wanted=True)
    began, found = time.monotonic(), False
    while fence._child is not None and time.monotonic() - began < 10:
        found = fence.turn(time.monotonic(), wanted=False) or found
        time.sleep(0.02)
    return found


def test_a_newer_plan_in_the_run_directory_is_seen(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"plan": {"first_attempt": 3}}))
    assert _looked(Fence(str(tmp_path), 2))
    assert not _looked(Fence(str(tmp_path), 3)), "its own plan"


def test_a_run_directory_without_a_plan_is_no_other_gang(tmp_path: Path) -> None:
    assert not _looked(Fence(str(tmp_path), 0))
    (tmp_path / "run.json").write_text('{"plan": ')
    assert not _looked(Fence(str(tmp_path), 0)), "cut short"


def test_nobody_looks_while_all_are_in_reach(tmp_path: Path) -> None:
    fence = Fence(str(tmp_path), 0)
    assert not fence.turn(time.monotonic(), wanted=False) and fence._child is None


def test_a_hello_is_composed_when_it_can_be_heard(tmp_path: Path) -> None:
    """Composed at the dial, it would say `running` of an attempt that ended before the head was proven."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(5)
    composed: list[bool] = []

    def hello() -> Hello:
        composed.append(member._channel is not None and member._channel.proven)
        return Hello(Someone("n1", 1, 1, "127.0.0.1"), 0, "boot", 0, False, None, 0, False)

    member = Member("127.0.0.1", listener.getsockname()[1], "token", hello)
    assert eventually(lambda: member.turn(time.monotonic()) or member.sockets())
    head = Channel(listener.accept()[0], "head", "token", time.monotonic())
    heard: list[Message] = []

    def both() -> bool:
        member.turn(time.monotonic())
        heard.extend(head.pump(time.monotonic()))
        return bool(heard)

    assert eventually(both)
    assert composed == [True] and isinstance(heard[0], Hello)
    member.close()
    head.close("done")
    listener.close()


def test_a_ledger_that_cannot_be_written_is_told_and_ends_nothing(tmp_path: Path) -> None:
    there = ledger.Ledger(attempt=1)
    assert ledger.keep(tmp_path / "state.json", there) == ""
    assert "cannot be written" in ledger.keep(tmp_path / "gone" / "state.json", there)
