"""A launcher that was imported before it was needed is the one that was asked for, and nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from gang_bench import eventually

from clusterft_trainer.rank import start_time
from clusterft_trainer.supervisor import processes, standby
from clusterft_trainer.supervisor.standby import Standby

LAUNCHER = """
import json, os, sys
LOADED = os.environ.get("WHEN")
if __name__ == "__main__":
    print(json.dumps([sys.argv, LOADED, dict(os.environ), os.getcwd(), sys.stdin.read()]), flush=True)
    print("a warning", file=sys.stderr)
    sys.exit(7)
"""


@pytest.fixture
def argv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The command of a launcher that stands for torch's."""
    (tmp_path / "launches.py").write_text(textwrap.dedent(LAUNCHER))
    monkeypatch.setattr(standby, "_LAUNCHERS", ("launches",))
    return (sys.executable, "-m", "launches", "--nodes", "2")


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """What both need to find their modules."""
    return {"PYTHONPATH": os.pathsep.join((str(tmp_path), *sys.path)), **more}


def test_it_becomes_what_a_start_would_have_been(argv: tuple[str, ...], tmp_path: Path) -> None:
    warm = Standby(argv, environment(tmp_path, WHEN="early", STRAY="1"))
    assert warm.pid and start_time(warm.pid)
    later, logs = environment(tmp_path, WHEN="late", RANK="0"), (tmp_path / "warm.log", tmp_path / "cold.log")
    cold = processes.start(argv, later, str(tmp_path), logs[1])
    made = warm.become(argv, later, str(tmp_path), logs[0])
    assert made is not None and warm.pid == 0
    assert (made.wait(20), cold.wait(20)) == (7, 7)
    (one, *rest), (other, *more) = (log.read_text().splitlines() for log in logs)
    assert rest == more == ["a warning"]
    (args, _, env, *here), (theirs, _, known, *there) = json.loads(one), json.loads(other)
    assert args[1:] == theirs[1:] == ["--nodes", "2"] and here == there == [str(tmp_path), ""]
    assert {name: value for name, value in env.items() if name != "LC_CTYPE"} == {
        name: value for name, value in known.items() if name != "LC_CTYPE"
    }


def test_one_that_has_died_is_none(argv: tuple[str, ...], tmp_path: Path) -> None:
    warm = Standby(argv, environment(tmp_path))
    os.kill(warm.pid, signal.SIGKILL)
    assert eventually(lambda: warm.pid == 0, 10)
    assert warm.become(argv, {}, "/", tmp_path / "log") is None


def test_one_that_is_asked_to_be_another_program_ends_instead(argv: tuple[str, ...], tmp_path: Path) -> None:
    # It once raised, which ended the supervisor of every script.
    warm = Standby(argv, environment(tmp_path))
    pid = warm.pid
    assert warm.become(("/bin/sh", "-c", "exit"), {}, "/", tmp_path / "log") is None
    assert start_time(pid) is None


@pytest.mark.parametrize(
    "argv",
    [(sys.executable, "train.py"), ("/nowhere/python", "-m", "launches"), (sys.executable, "-m", "users.own")],
    ids=["a script", "no python", "another module"],
)
def test_what_is_no_launcher_of_torchs_has_none(
    argv: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby, "_LAUNCHERS", ("launches",))
    warm = Standby(argv, {})
    assert warm.pid == 0 and warm.become(argv, {}, "/", tmp_path / "log") is None
    warm.close()


def test_it_ends_when_it_is_not_needed_and_when_its_supervisor_is_killed(
    argv: tuple[str, ...], tmp_path: Path
) -> None:
    warm = Standby(argv, environment(tmp_path))
    pid = warm.pid
    warm.close()
    assert start_time(pid) is None
    told = (
        "import sys, time; from clusterft_trainer.supervisor import standby; standby._LAUNCHERS = ('launches',); "
        f"warm = standby.Standby({argv!r}, {environment(tmp_path)!r}); print(warm.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", told], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        assert start_time(pid)
        supervisor.kill()
    assert eventually(lambda: start_time(pid) is None, 10)


def test_the_end_of_an_attempt_spares_the_one_that_waits_for_the_next(
    argv: tuple[str, ...], tmp_path: Path
) -> None:
    warm = Standby(argv, environment(tmp_path))
    rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    processes.end_descendants(time.monotonic() + 5, but=warm.pid)
    assert start_time(rank.pid) is None and start_time(warm.pid)
    warm.close()
