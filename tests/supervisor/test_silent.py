"""A rank that cannot answer is accounted for by the kernel; one that has answered, or is gone, is left alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusterft_trainer.rank import start_time
from clusterft_trainer.supervisor import silent


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def note(folder: Path, rank: int, pid: int, start: int | None) -> Path:
    (folder / f"rank{rank}.pid").write_text(json.dumps({"pid": pid, "start": start}))
    stacks = folder / f"rank{rank}.stacks"
    stacks.touch()
    return stacks


def test_a_stopped_rank_is_said_to_be_stopped(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    stopped = note(tmp_path, 0, sleeper.pid, start_time(sleeper.pid))
    answered = note(tmp_path, 1, sleeper.pid, start_time(sleeper.pid))
    answered.write_text("Current thread\n")
    gone = note(tmp_path, 2, sleeper.pid, 1)
    sleeper.send_signal(signal.SIGSTOP)
    while "T (stopped)" not in Path(f"/proc/{sleeper.pid}/status").read_text():
        pass
    assert silent.testify(tmp_path) == 2
    lines = stopped.read_text().splitlines()
    assert lines[0] == f"process {sleeper.pid} did not answer; the kernel says of its threads:"
    assert lines[1].startswith(f"  {sleeper.pid} python") and "T (stopped)" in lines[1]
    assert answered.read_text() == "Current thread\n"
    assert gone.read_text() == ""


def test_a_process_that_ends_meanwhile_has_no_threads() -> None:
    assert silent.account(2**22 + 1).count("\n") == 1
