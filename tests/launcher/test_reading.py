"""Proves that `logs`, `status` and `runs` find and read a run on real nodes: its parts, else their mirror.

The nodes are this machine, the readers are real supervisors' `follow`, the shared dir is a directory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import spoken

from clusterft import cli
from clusterft.apply import record
from clusterft.apply.record import Entry, Note
from clusterft.events import Event, Said
from clusterft.plan import Part
from clusterft_trainer import stream
from clusterft_trainer.rank import start_time

Run = Callable[..., tuple[int, str, str]]


class Scene:
    """A cluster of two nodes that are this machine, and one run of it."""

    def __init__(self, root: Path) -> None:
        self.shared = root / "out"
        self.run_dir = self.shared / spoken.RUN
        (self.run_dir / "events").mkdir(parents=True)
        self.hostfile = root / "rack"
        self.hostfile.write_text("left slots=1 transport=local\nright slots=1 transport=local\n")
        self.parts = tuple(
            Part(node, rank, "process", str(root / node), sys.executable) for rank, node in enumerate(spoken.NODES)
        )
        for part in self.parts:
            Path(part.directory).mkdir()
        self.record("running")

    def record(self, state: str, **changes: Any) -> None:
        """run.json as a controller writes it, and its note."""
        plan = {
            "run": spoken.RUN,
            "cluster": "rack",
            "run_dir": str(self.run_dir),
            "job": "builtin:tiny",
            "survival": {"restarts": 3},
            "first_attempt": 0,
        }
        entry = Entry(job={}, plan=plan | changes, parts=self.parts, state=state, began=1_763_900_000.0)
        (self.run_dir / "run.json").write_text(entry.to_json())
        record.save_note(Note(spoken.RUN, "rack", str(self.hostfile), str(self.run_dir), self.parts))

    def says(self, *events: Event, mirrored: bool = True, alive: bool = True) -> None:
        """The parts' streams hold what was said; a part that is alive is watched by this very process."""
        for part in self.parts:
            mine = [event.line for event in events if isinstance(event, Said) and event.node == part.node]
            text = "".join(stream.encode(line) + "\n" for line in mine)
            where = Path(part.directory)
            (where / "stream.jsonl").write_text(text)
            (where / "supervisor.json").write_text(
                json.dumps({"pid": os.getpid(), "start": start_time(os.getpid()) if alive else 1})
            )
            if mirrored:
                (self.run_dir / "events" / f"{part.node}.jsonl").write_text(text)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Nothing of this machine's own clusters is seen."""
    monkeypatch.setenv("CLUSTERFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return Scene(tmp_path)


@pytest.fixture
def run(scene: Scene, capsys: pytest.CaptureFixture[str]) -> Run:
    """A verb of the command line, on this cluster."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.run([*arguments, "--hosts", str(scene.hostfile)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def lively(now: float) -> list[Event]:
    """A run that is training."""
    return [
        *(Said(node, stream.Started(1, now - 9)) for node in spoken.NODES),
        *spoken.begun(0, at=now - 8),
        spoken.log("left", 0, "hello from left", now - 7),
        spoken.log("right", 1, "hello from right", now - 6),
        spoken.told(spoken.step(40, at=now - 5)),
        spoken.log("right", 1, "WARNING: the disk is nearly full", now - 4),
    ]


def test_the_log_of_a_run_that_goes_on_is_what_there_is_now(scene: Scene, run: Run) -> None:
    scene.says(*lively(time.time()), mirrored=False)
    began = time.monotonic()
    code, out, err = run("logs", spoken.RUN)
    assert (code, err) == (0, "") and time.monotonic() - began < 8, "it waits for a heartbeat"
    assert out.splitlines()[2:] == [
        "left  rank 0   | hello from left",
        "right rank 1   | hello from right",
        "left  rank 0   | step 40/1000  epoch 1  loss 0.1043  rate 4.0e-07  8.0 img/s",
        "right rank 1   | WARNING: the disk is nearly full",
    ]
    code, out, _ = run("logs", spoken.RUN, "--node", "right", "--grep", "disk", "--json")
    assert code == 0 and json.loads(out)["text"].startswith("WARNING")


def test_a_followed_log_ends_with_the_run(scene: Scene, run: Run) -> None:
    scene.says(*lively(time.time()), *spoken.ended("ok", 0, time.time()), mirrored=False, alive=False)
    code, out, _ = run("logs", spoken.RUN, "-f", "--rank", "1")
    assert code == 0 and out.splitlines() == [
        "right rank 1   | hello from right",
        "right rank 1   | WARNING: the disk is nearly full",
    ]


def test_the_log_of_a_run_that_is_over_comes_from_the_shared_dir(scene: Scene, run: Run) -> None:
    scene.says(*lively(time.time()), *spoken.ended("ok", 0, time.time()), alive=False)
    scene.record("ok")
    for part in scene.parts:
        (Path(part.directory) / "stream.jsonl").unlink()
    code, out, err = run("logs", spoken.RUN)
    assert (code, err) == (0, "") and "hello from left" in out and "hello from right" in out


def test_nodes_that_were_replaced_are_in_the_log_too(scene: Scene, run: Run) -> None:
    scene.says(*lively(time.time()))
    (scene.run_dir / "events" / "lost.jsonl").write_text(stream.encode(stream.Log(1, "my last words", 1.0)) + "\n")
    code, out, _ = run("logs", spoken.RUN)
    assert code == 0 and "lost  rank 1   | my last words" in out.splitlines()


def test_the_log_of_a_resumed_run_begins_with_its_earlier_life(scene: Scene, run: Run) -> None:
    now = time.time()
    scene.says(*lively(now), mirrored=False)
    scene.record("running", first_attempt=1)
    for part in scene.parts:
        before = [
            stream.Started(1, now - 99),
            stream.Log(0, "in my earlier life", now - 98),
            stream.Started(2, now - 97, 1),
            stream.Ended("stopped", 0, now - 96),
        ]
        again = (Path(part.directory) / "stream.jsonl").read_text()
        text = "".join(stream.encode(line) + "\n" for line in before) + again
        (scene.run_dir / "events" / f"{part.node}.jsonl").write_text(text)
    code, out, _ = run("logs", spoken.RUN)
    lines = [line.split(" | ")[1] for line in out.splitlines()]
    assert code == 0 and lines.count("in my earlier life") == 2 and lines.count("hello from left") == 1
    assert lines.index("in my earlier life") < lines.index("hello from left")
    code, out, _ = run("status", spoken.RUN)
    assert code == 0 and "step 40 of 1 000" in out, "the earlier life's end is not the end"


def test_who_asks_for_a_node_or_a_pattern_that_is_none_is_told_at_once(scene: Scene, run: Run) -> None:
    scene.says(*lively(time.time()))
    code, _, err = run("logs", spoken.RUN, "--node", "middle")
    assert code == 2 and 'no node "middle"' in err and "left, right" in err
    code, _, err = run("logs", spoken.RUN, "--grep", "(")
    assert code == 2 and "regular expression" in err
    code, _, err = run("logs", spoken.RUN, "--since", "soon")
    assert code == 2 and "10min" in err
    code, _, err = run("logs", "lighthouse-20261120-1432-7f3b")
    assert code == 2 and spoken.RUN in err


def test_only_what_is_new_enough_is_printed(scene: Scene, run: Run) -> None:
    now = time.time()
    scene.says(*lively(now), spoken.log("left", 0, "long ago", now - 7200))
    _, out, _ = run("logs", spoken.RUN, "--since", "1h")
    assert "hello from left" in out and "long ago" not in out


def test_status_of_a_run_is_its_screen_and_its_document(scene: Scene, run: Run) -> None:
    scene.says(*lively(time.time()), mirrored=False)
    code, out, _ = run("status", spoken.RUN)
    assert code == 0 and "step 40 of 1 000" in out and "restarts 0 of 3" in out and "nearly full" in out
    code, out, _ = run("status", spoken.RUN, "--json")
    body = json.loads(out)
    assert (code, body["state"], body["step"], len(body["nodes"])) == (0, "training", 40, 2)


def test_status_of_a_cluster_is_a_line_for_each_run_that_is_alive(scene: Scene, run: Run) -> None:
    scene.says(*lively(time.time()))
    code, out, _ = run("status")
    assert code == 0 and out.splitlines()[0] == "cluster rack · 1 run"
    assert any(line.split()[:4] == [spoken.RUN, "training", "2", "40/1"] for line in out.splitlines())
    body = json.loads(run("status", "--json")[1])
    assert [(one["run"], one["state"], one["loss"]) for one in body["runs"]] == [(spoken.RUN, "training", 0.1043)]
    scene.record("ok")
    assert run("status")[1].splitlines()[0] == "cluster rack · nothing runs"


def test_a_mirror_that_has_stopped_is_not_taken_for_the_run(scene: Scene, run: Run) -> None:
    scene.says(*lively(time.time() - 3600))  # what the share got before it hung
    scene.says(*lively(time.time()), spoken.told(spoken.step(77, at=time.time())), mirrored=False)
    assert json.loads(run("status", spoken.RUN, "--json")[1])["step"] == 77


def test_status_of_a_run_that_is_over_says_what_it_came_to(scene: Scene, run: Run) -> None:
    died = spoken.died("right", 1, -9, time.time())
    scene.says(*lively(time.time()), died, *spoken.ended("failed", 1, time.time()), alive=False)
    scene.record("failed")
    code, out, _ = run("status", spoken.RUN)
    assert code == 0 and "first cause (killed): rank 1 on right was ended by SIGKILL" in out
    assert f"clusterft logs {spoken.RUN} --rank 1" in out
    body = json.loads(run("status", spoken.RUN, "--json")[1])
    assert (body["state"], body["verdict"]["failure"]) == ("failed", "killed")


def test_the_history_has_the_end_the_last_step_and_the_cause(scene: Scene, run: Run) -> None:
    (scene.run_dir / "metrics.jsonl").write_text('{"step": 1, "loss": 0.9}\n{"step": 55, "loss": 0.25}\n')
    outcome = {"schema": 1, "run": spoken.RUN, "end": "failed", "failure": "killed", "cause": spoken.SIGKILLED}
    outcome |= {"restarts": 3, "attempts": 4, "ended": 1_763_900_100.0}
    (scene.run_dir / "outcome.json").write_text(json.dumps(outcome))
    (scene.shared / "not-ours").mkdir()
    (scene.shared / "not-ours" / "run.json").write_text("{}")
    code, out, _ = run("runs", "--json")
    (one,) = json.loads(out)["runs"]
    assert (code, one["state"], one["step"], one["loss"], one["restarts"]) == (0, "failed", 55, 0.25, 3)
    assert (one["failure"], one["cause"], one["ended"]) == ("killed", spoken.SIGKILLED, 1_763_900_100.0)
    assert "1 m 40 s" in run("runs")[1]
