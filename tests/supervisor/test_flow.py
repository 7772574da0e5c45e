"""The path of a log line from a rank to a follower: many a second, none lost, in little memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from gang_bench import GangBench, eventually

from clusterft_trainer import stream
from clusterft_trainer.supervisor.tails import Tail

RATE, SECONDS = 7_000, 4
CHATTERS = f"""
import os, sys, time
rank, began = os.environ["RANK"], time.monotonic()
for tick in range({SECONDS * 20}):
    for line in range({RATE // 40}):
        sys.stdout.write(f"{{rank}} {{tick}} {{line}} " + "x" * 80 + "\\n")
    time.sleep(max(0, began + (tick + 1) / 20 - time.monotonic()))
"""


def peak(pid: int) -> int:
    """The most memory that a process has held, in MiB; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) >> 10 for line in text.splitlines() if line.startswith("VmHWM")), 0)


def test_thousands_of_lines_a_second_reach_a_follower_without_loss_in_little_memory(gang: GangBench) -> None:
    (node,) = gang.lay_out(CHATTERS, nodes=1, slots=2)
    supervisor = node.start()
    argv = [sys.executable, "-P", "-m", "clusterft_trainer.supervisor", "follow", str(node.dir)]
    held: list[int] = []
    seen: dict[int, list[str]] = {0: [], 1: []}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        for number, text in enumerate(follower.stdout):
            line = stream.decode(text)
            if isinstance(line, stream.Log):
                seen[line.rank].append(line.text)
            if number % 5_000 == 0:
                held.append(max(peak(supervisor), peak(follower.pid)))
        assert follower.wait(20) == 0
    expected = [f"{tick} {line}" for tick in range(SECONDS * 20) for line in range(RATE // 40)]
    for rank in (0, 1):
        assert [" ".join(text.split()[1:3]) for text in seen[rank]] == expected
    assert max(held) < 80


def test_a_follower_that_comes_later_skips_what_it_has_heard(gang: GangBench) -> None:
    (node,) = gang.lay_out("for i in range(1000): print(i)", nodes=1)
    node.start()
    all_lines = [line for line in node.verb("follow").stdout.splitlines() if line]  # not its heartbeats
    assert len(all_lines) > 1000
    for skip in (1, 500, len(all_lines) - 1):
        assert node.verb("follow", str(skip)).stdout.splitlines() == all_lines[skip:]
    assert node.verb("follow", "x").returncode == 2


def test_skipping_a_long_stream_is_cheap(tmp_path: Path) -> None:
    path = tmp_path / "stream.jsonl"
    path.write_bytes(b"".join(b'{"text": "%d", "rest": "%s"}\n' % (n, b"x" * 100) for n in range(500_000)))
    tail, began = Tail(path), time.monotonic()
    tail.skip(499_998)
    assert time.monotonic() - began < 1
    assert [line[:17] for line in tail.lines()] == ['{"text": "499998"', '{"text": "499999"']
    late = Tail(path)
    late.skip(600_000)
    assert list(late.lines()) == []


def test_a_follower_hears_the_end_of_one_that_ends_while_it_listens(gang: GangBench) -> None:
    (node,) = gang.lay_out("import time; time.sleep(1); print('late')", nodes=1)
    node.start()
    assert isinstance(node.follow()[-1], stream.Ended) and node.texts(0) == ["late"]
    assert eventually(lambda: node.verb("follow").stdout.splitlines()[-1].count('"ended"'))
