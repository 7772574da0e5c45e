"""Proves the first moments of a rank: its cores, and a script that is started as if by its own launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clusterft_trainer import rank

DEVICES = sorted(Path("/sys/bus/pci/devices").glob("*/local_cpulist"))
TELL = (
    "import os; from clusterft_trainer import rank; rank.keep_near_card(); print(sorted(os.sched_getaffinity(0)))"
)


def _cores(cards: str, local: str = "1") -> tuple[set[int], str]:
    """Where a rank with these cards runs, and what it says."""
    env = {**os.environ, "CLUSTERFT_CARDS": cards, "LOCAL_RANK": local}
    done = subprocess.run([sys.executable, "-c", TELL], env=env, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout)), done.stderr


@pytest.mark.skipif(not DEVICES, reason="this machine shows no PCI bus")
def test_a_rank_runs_on_the_cores_that_the_kernel_calls_near() -> None:
    near = subprocess.run(
        ["taskset", "--cpu-list", DEVICES[0].read_text().strip(), sys.executable, "-c", TELL],
        env={name: value for name, value in os.environ.items() if name != "CLUSTERFT_CARDS"},
        capture_output=True,
        text=True,
        check=True,
    )
    cores, said = _cores(f"no-such-card;{DEVICES[0].parent.name}")
    assert cores == set(json.loads(near.stdout)) and said == ""


def test_a_card_that_the_kernel_does_not_know_leaves_the_cores_as_they_are() -> None:
    cores, said = _cores("ffff:00:00.0;ffff:00:00.1")
    assert cores == os.sched_getaffinity(0) and "not kept near card ffff:00:00.1" in said


def test_the_kernels_ranges_are_understood() -> None:
    assert rank._numbers("0-2,8,10-11\n") == {0, 1, 2, 8, 10, 11} and rank._numbers("\n") == set()


@pytest.mark.parametrize("own", [[], ["--local_rank=3"]])
def test_a_script_finds_its_arguments_and_its_folder_as_if_started_alone(own: list[str], tmp_path: Path) -> None:
    script = tmp_path / "code" / "go.py"
    script.parent.mkdir()
    (script.parent / "beside.py").write_text("WORD = 'near'\n")
    (tmp_path / "beside.py").write_text("WORD = 'far'\n")
    script.write_text(
        "import json, os, sys, beside\n"
        "print(json.dumps([sys.argv, beside.WORD, __name__, os.environ.get('PYTHONSAFEPATH')]))\n"
    )
    for safe in ("", "1"):
        done = subprocess.run(
            [sys.executable, "-m", "clusterft_trainer.rank", *own, str(script), "--lr", ""],
            env={**os.environ, "PYTHONSAFEPATH": safe},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == [[str(script), *own, "--lr", ""], "near", "__main__", None]


def test_without_a_script_there_is_a_usage_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clusterft_trainer.rank", "--local_rank=0"], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.startswith("usage: ")


def test_the_ranks_of_a_node_begin_one_after_the_other_where_the_job_asks_for_it() -> None:
    code = "import time; from clusterft_trainer import rank\nt = time.monotonic()\nrank.begin()\n"
    code += "print(time.monotonic() - t)"
    took = []
    for local in ("0", "2"):
        env = {**os.environ, "CLUSTERFT_STAGGER": "0.2", "LOCAL_RANK": local}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
        took.append(float(done.stdout))
    assert took[0] < 0.2 and 0.4 <= took[1] < 2


def test_a_script_is_main_to_the_very_end_and_its_tracebacks_are_its_own(tmp_path: Path) -> None:
    script = tmp_path / "go.py"
    script.write_text(
        "import atexit, pickle, multiprocessing\n"
        "class Thing: pass\n"
        "def double(x): return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    atexit.register(lambda: print(type(pickle.loads(pickle.dumps(Thing()))).__name__))\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool: print(pool.map(double, [2]))\n"
        "    raise ValueError('mine')\n"
    )
    argv = [sys.executable, "-m", "clusterft_trainer.rank", str(script)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.splitlines() == ["[4]", "Thing"]
    assert done.stderr.splitlines()[:2] == [
        "Traceback (most recent call last):",
        f'  File "{script}", line 7, in <module>',
    ]
    assert done.stderr.splitlines()[-1] == "ValueError: mine"


def test_a_script_that_is_not_there_is_named(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "clusterft_trainer.rank", str(tmp_path / "away.py")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path}/away.py cannot be read: No such file or directory\n"


def test_a_rank_ends_with_its_supervisor(tmp_path: Path) -> None:
    # A launcher that lives on (DeepSpeed's second half does) and does not end its ranks is no reason to go on.
    script = tmp_path / "go.py"
    script.write_text("import sys, time\nprint('here', flush=True)\ntime.sleep(60)\n")
    supervisor = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    told = f"{supervisor.pid}:{rank.start_time(supervisor.pid)}"
    argv = [sys.executable, "-m", "clusterft_trainer.rank", str(script)]
    env = {**os.environ, "CLUSTERFT_SUPERVISOR": told}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None and one.stdout.readline() == "here\n"
        supervisor.kill()
        supervisor.wait()
        assert one.wait(10) == -signal.SIGTERM
    late = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert late.returncode == 1 and "supervisor of this rank is gone" in late.stderr
