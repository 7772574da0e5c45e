"""One node's part on real processes: nothing said is lost, nothing started is left, and stops are heeded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gang_bench import GangBench, Node, eventually

from clusterft_trainer import progress, stream
from clusterft_trainer.assignment import Survival, parse
from clusterft_trainer.rank import start_time


class Bench:
    """A run of one node that is not restarted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gang = GangBench(root)
        self.shared = self.gang.shared
        self.node: Node
        self.dir = root / "n0" / "run"
        self.dir.mkdir(parents=True)

    def write(self, script: str, *, slots: int = 1, grace: float = 20.0, **changes: object) -> None:
        """Lay out an assignment whose ranks run `script`."""
        told = {"grace_seconds": grace, "survival": Survival(restarts=0), **changes}
        (self.node,) = self.gang.lay_out(script, nodes=1, slots=slots, **told)  # type: ignore[arg-type]
        self.verb, self.start = self.node.verb, self.node.start

    def follow(self) -> list[stream.Line]:
        """Everything it said, to the end."""
        return self.node.follow()

    def text(self, rank: int) -> list[str]:
        """What a rank wrote, as passed on."""
        return [line.text for line in self.follow() if isinstance(line, stream.Log) and line.rank == rank]

    def rank_pids(self) -> list[int]:
        """The ranks that have noted themselves."""
        return [json.loads(note.read_text())["pid"] for note in self.node.logs().glob("rank*.pid")]

    def said(self) -> str:
        """The stream as it lies there."""
        return (self.dir / "stream.jsonl").read_text() if (self.dir / "stream.jsonl").exists() else ""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A node's directory; whatever the test left running there is ended."""
    made = Bench(tmp_path)
    yield made
    made.gang.clear()


def test_all_that_ranks_say_arrives_in_order_and_is_mirrored(bench: Bench) -> None:
    bench.write(
        """
        import os, sys
        from clusterft_trainer import progress
        print("hello from", os.environ["RANK"])
        print(progress.encode(progress.Phase("train", 1.0)))
        sys.stderr.write("10%\\r50%\\r100%\\n")     # a progress bar: only its end is passed on
        os.write(2, b"from C++\\n")                 # not through sys.stderr
        sys.stdout.write("no newline at the end")
        """,
        slots=2,
    )
    bench.start()
    said = bench.follow()
    assert isinstance(said[0], stream.Started) and isinstance(said[1], stream.Attempt)
    assert isinstance(said[-1], stream.Ended) and (said[-1].end, said[-1].code) == ("ok", 0)
    for rank in (0, 1):
        mine = [line for line in said if getattr(line, "rank", None) == rank]
        texts = [line.text for line in mine if isinstance(line, stream.Log)]
        assert texts == [f"hello from {rank}", "100%", "from C++", "no newline at the end"]
        assert [line.record for line in mine if isinstance(line, stream.Progress)] == [
            progress.Phase("train", 1.0)
        ]
        mirrored = (bench.shared / "logs" / "attempt-0" / "n0" / f"rank{rank}.log").read_bytes()
        assert mirrored == (bench.node.logs() / f"rank{rank}.log").read_bytes()
        assert mirrored.endswith(b"no newline at the end")
    assert (bench.shared / "events" / "n0.jsonl").read_text().splitlines()[-1].count('"ended"') == 1


def test_in_the_foreground_all_is_said_on_stdout_for_people(bench: Bench) -> None:
    # PID 1 of a container: this is what `docker logs` shows.
    bench.write(
        """
        from clusterft_trainer import progress
        print("hello")
        print(progress.encode(progress.Step(3, 9, 0, 0.125, 1e-4, None, 1.0, 0.0, 1.0)))
        """
    )
    done = bench.verb("run")
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert shown[0] == "supervisor | started" and shown[-1] == "supervisor | over: ok"
    assert "rank 0 | hello" in shown and "rank 0 | step 3/9  loss 0.125" in shown
    assert "{" not in done.stdout


def test_ranks_see_the_planned_environment_and_nothing_else(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "stray")
    bench.write("import os; print(sorted(os.environ))")
    bench.start()
    (line,) = bench.text(0)
    assert "GIVEN" in line and "ACCELERATE_USE_FSDP" not in line and "HOME" not in line


def test_secrets_reach_the_ranks_and_are_gone_from_the_node(bench: Bench) -> None:
    secrets = bench.dir / "secrets.json"
    secrets.write_text('{"TOKEN": "s3cret"}')
    bench.write("import os; print(os.environ['TOKEN'] == 's3cret')", secrets_file=str(secrets))
    bench.start()
    assert bench.text(0) == ["True"]
    assert not secrets.exists()
    left = [path for path in bench.root.rglob("*") if path.is_file() and path.name != "rank.py"]
    assert not [path for path in left if b"s3cret" in path.read_bytes()]


def test_a_killed_rank_is_named_with_its_signal(bench: Bench) -> None:
    bench.write(
        """
        import os, signal
        if os.environ["RANK"] == "1":
            print("last words", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        slots=2,
    )
    bench.start()
    said = bench.follow()
    deaths = [line for line in said if isinstance(line, stream.RankDied)]
    assert [(death.rank, death.code) for death in deaths] == [(1, -9)]
    assert isinstance(said[-1], stream.Ended) and said[-1].end == "failed"
    assert "last words" in [line.text for line in said if isinstance(line, stream.Log)]


def test_a_stop_lets_ranks_save_first(bench: Bench) -> None:
    bench.write(
        """
        import signal, sys, time
        def save(*_):
            print("saved", flush=True)
            sys.exit(0)
        signal.signal(signal.SIGTERM, save)
        print("ready", flush=True)
        time.sleep(60)
        """
    )
    bench.start()
    assert eventually(lambda: "ready" in bench.said())
    assert json.loads(bench.verb("stop").stdout) == {"told": True}
    said = bench.follow()
    assert bench.text(0) == ["ready", "saved"]
    assert isinstance(said[-1], stream.Ended) and said[-1].end == "stopped"


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
# A loader worker that left its session and its parent: the kind that keeps GPU memory for ever.
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[0] + ".orphan", "w").write(str(os.getpid()))
        time.sleep(60)
    os._exit(0)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_second_stop_kills_and_nothing_is_left(bench: Bench) -> None:
    bench.write(STUBBORN)
    bench.start()
    orphan = bench.root / "rank.py.orphan"
    assert eventually(lambda: orphan.exists() and bool(orphan.read_text()))
    assert eventually(lambda: "ready" in bench.said())
    pids = [int(orphan.read_text()), *bench.rank_pids()]
    assert len(pids) == 2 and all(start_time(pid) for pid in pids)
    bench.verb("stop")
    time.sleep(0.3)
    assert all(start_time(pid) for pid in pids), "the first stop only asks"
    bench.verb("stop")
    time.sleep(0.3)
    assert all(start_time(pid) for pid in pids), "asked again for what was asked already"
    bench.verb("stop", "2")
    assert isinstance(bench.follow()[-1], stream.Ended)
    assert eventually(lambda: not any(start_time(pid) for pid in pids), 5)


def test_ranks_that_ignore_a_stop_are_killed_after_the_grace(bench: Bench) -> None:
    bench.write(STUBBORN, grace=0.5)
    bench.start()
    assert eventually(lambda: "ready" in bench.said())
    began = time.monotonic()
    bench.verb("stop")
    bench.follow()
    assert 0.4 < time.monotonic() - began < 8


def test_a_killed_supervisor_takes_the_launcher_along_and_the_follower_says_so(bench: Bench) -> None:
    bench.write("import time; print('ready', flush=True); time.sleep(60)")
    supervisor = bench.start()
    assert eventually(lambda: bool(bench.rank_pids()))
    launcher = int(Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()[0])
    os.kill(supervisor, signal.SIGKILL)
    assert isinstance(bench.follow()[-1], stream.Vanished)
    assert eventually(lambda: start_time(launcher) is None)
    assert eventually(lambda: not bench.node.rank_pids()), "the launcher was told, and ends its ranks"


def test_a_node_in_use_is_refused_by_the_name_of_the_run(bench: Bench) -> None:
    bench.write("import time; time.sleep(60)")
    bench.start()
    secrets = bench.dir / "secrets.json"
    secrets.write_text("{}")
    changed = json.loads((bench.dir / "assignment.json").read_text()) | {"secrets_file": str(secrets)}
    (bench.dir / "assignment.json").write_text(json.dumps(changed))
    second = bench.verb("start")
    assert second.returncode == 3
    assert json.loads(second.stdout) == {"busy": "run-1"}
    assert not secrets.exists(), "a start that did not happen keeps no secrets"


def test_the_lock_is_free_again_after_a_crash(bench: Bench) -> None:
    bench.write("import time; time.sleep(60)")
    os.kill(bench.start(), signal.SIGKILL)
    assert eventually(lambda: bench.verb("start").returncode == 0)


def test_a_hung_share_delays_the_end_but_not_the_output(bench: Bench) -> None:
    # Opening a FIFO that nobody reads blocks, as a file on a dead NFS server does.
    mirror = bench.shared / "logs" / "attempt-0" / "n0"
    mirror.mkdir(parents=True)
    os.mkfifo(mirror / "rank0.log")
    bench.write("print('hello')")
    bench.start()
    assert eventually(lambda: '"hello"' in bench.said(), 4)
    began = time.monotonic()
    end = bench.follow()[-1]
    assert isinstance(end, stream.Ended) and end.end == "ok"
    assert "took no writes for 10 s" in end.problem
    assert time.monotonic() - began < 14


def test_a_share_that_refuses_is_told_at_the_end(bench: Bench) -> None:
    (bench.shared / "logs").write_text("a file where the directory should be")
    bench.write("print('hello')")
    bench.start()
    end = bench.follow()[-1]
    assert isinstance(end, stream.Ended) and end.end == "ok" and "logs" in end.problem


@pytest.mark.long
def test_a_flood_from_one_rank_keeps_nobody_from_stopping_it(bench: Bench) -> None:
    bench.write("import os; os.execvp('yes', ['yes'])")
    bench.start()
    log = bench.node.logs() / "rank0.log"
    assert eventually(log.exists)
    time.sleep(1)
    pids = bench.rank_pids()
    bench.verb("stop", "2")
    assert eventually(lambda: not any(start_time(pid) for pid in pids), 5)
    assert eventually(lambda: '"ended"' in bench.said()[-400:], 30)


def test_long_lines_keep_their_meaning(bench: Bench) -> None:
    bench.write(
        """
        from clusterft_trainer import progress
        print("ж" * 12_000)
        print("x" * 40_000)
        print(progress.encode(progress.Failed("config", "k" * 20_000, "r", 1.0)))
        """
    )
    bench.start()
    said = bench.follow()
    records = [line.record for line in said if isinstance(line, stream.Progress)]
    assert isinstance(records[0], progress.Failed) and len(records[0].message) == 20_000
    texts = [line.text for line in said if isinstance(line, stream.Log)]
    assert texts[0] == "ж" * 12_000
    assert texts[1].startswith("x" * 16_000) and texts[1].endswith("[cut; the log file has all of it]")


def test_a_start_that_comes_after_its_stop_does_not_happen(bench: Bench) -> None:
    bench.write("import time; time.sleep(60)")
    assert json.loads(bench.verb("stop").stdout) == {"told": False}
    late = bench.verb("start")
    assert late.returncode == 1 and "stopped before it started" in late.stdout
    assert bench.rank_pids() == []


def test_a_full_disk_costs_lines_but_leaves_no_process(bench: Bench) -> None:
    # A limit on the size of files stands for the full disk: writes beyond it fail in the same way.
    bench.write(
        """
        import os, signal, time
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        print("x" * 3000, flush=True)
        time.sleep(1)
        """
    )
    script = "ulimit -f 2; trap '' XFSZ; exec \"$@\""
    argv = [sys.executable, "-m", "clusterft_trainer.supervisor", "start", str(bench.dir)]
    done = subprocess.run(["sh", "-c", script, "sh", *argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    pid = json.loads(done.stdout)["pid"]
    assert eventually(lambda: start_time(pid) is None, 40)
    assert not any(start_time(rank) for rank in bench.rank_pids())


@pytest.mark.parametrize(("kind", "words"), [("trainer", "cannot be started"), ("script", "not found")])
def test_a_launcher_that_is_not_there_ends_the_part_with_words(bench: Bench, kind: str, words: str) -> None:
    # A script's launcher is started by a shell, since its directory may lie on a share that hangs.
    bench.write("", argv=("/nowhere/python",), kind=kind)
    bench.start()
    said = bench.follow()
    assert isinstance(said[-1], stream.Ended) and said[-1].code == 127
    (told,) = [line.text for line in said if isinstance(line, stream.Log) and words in line.text]
    assert "/nowhere/python" in told


def test_stop_of_a_finished_run_harms_nobody(bench: Bench) -> None:
    bench.write("pass")
    bench.start()
    bench.follow()
    assert eventually(lambda: json.loads(bench.verb("stop").stdout) == {"told": False})


def test_a_part_that_nobody_needs_is_ended_at_once_and_holds_its_node_no_more(bench: Bench) -> None:
    bench.write("import time; print('here', flush=True); time.sleep(600)")
    pid = bench.start()
    assert eventually(lambda: "here" in bench.said())
    (rank,) = bench.rank_pids()
    assert json.loads(bench.verb("end").stdout) == {"ended": True}
    assert start_time(pid) is None and start_time(rank) is None
    assert '"ended"' not in bench.said(), "the run has had its last word from somebody else"
    assert json.loads(bench.verb("end").stdout) == {"ended": False}
    *told, last = bench.node.verb("follow").stdout.splitlines()
    assert "" not in told, "who only wants to look reads as far as a blank line"
    assert isinstance(stream.decode(last), stream.Vanished)
    (bench.dir / "stopped").unlink()
    bench.start()  # the lock is free


def test_a_part_that_says_its_last_words_may_finish_them(bench: Bench) -> None:
    bench.write("pass")
    bench.start()
    assert eventually(lambda: '"ended"' in bench.said())
    bench.verb("end")
    assert eventually(lambda: '"ended"' in (bench.shared / "events" / "n0.jsonl").read_text())


def test_an_assignment_of_another_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="schema"):
        parse('{"schema": 1}')
    with pytest.raises(ValueError, match="lacks"):
        parse('{"schema": 2}')
