"""What is left in the shared dir when a run is over, and who else may read it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from gang_bench import GangBench, eventually

from clusterft_trainer import stream
from clusterft_trainer.assignment import Survival
from clusterft_trainer.supervisor import ending
from clusterft_trainer.supervisor.messages import Over

FAILS = "raise SystemExit('no')"


def test_the_head_leaves_an_outcome_and_a_page(gang: GangBench) -> None:
    nodes = gang.lay_out(FAILS, survival=Survival(restarts=1, patience=10.0))
    began = time.time()
    gang.start()
    ends = [node.follow()[-1] for node in nodes]
    assert [(end.end, end.problem) for end in ends if isinstance(end, stream.Ended)] == [("failed", "")] * 2
    told = json.loads((gang.shared / "outcome.json").read_text())
    decided = nodes[0].all(stream.Decided)[-1]
    assert (told["schema"], told["run"], told["end"]) == (1, "run-1", "failed")
    for name in ("failure", "cause", "node", "rank", "why"):
        assert told[name] == getattr(decided, name)
    assert told["attempts"] == decided.attempt + 1 and told["restarts"] == decided.used
    assert began < told["began"] < told["ended"] < time.time()
    assert "<html" in (gang.shared / "report.html").read_text().lower()
    assert [path.name for path in gang.shared.iterdir() if path.name.startswith(".")] == []


def test_a_member_that_lost_the_head_learns_how_the_run_ended(tmp_path: Path) -> None:
    told = {"schema": 1, "end": "ok", "failure": "", "cause": "", "node": "", "rank": None, "why": "finished"}
    (tmp_path / "outcome.json").write_text(json.dumps({**told, "ended": 100.0}))
    found = ending.left_behind(str(tmp_path), since=50.0)
    assert isinstance(found, Over) and (found.end, found.why) == ("ok", "finished")
    assert ending.left_behind(str(tmp_path), since=200.0) is None, "that was another time"
    assert ending.left_behind(str(tmp_path / "away"), since=0.0) is None
    (tmp_path / "outcome.json").write_text("[]")
    assert ending.left_behind(str(tmp_path), since=0.0) is None


def test_a_share_that_hangs_does_not_keep_a_member_that_asks_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "outcome.json")
    began = time.monotonic()
    assert ending.left_behind(str(tmp_path), since=0.0) is None
    assert time.monotonic() - began < 8


def test_a_page_that_cannot_be_made_is_told_at_the_end(gang: GangBench) -> None:
    (gang.shared / "report.html").mkdir()
    (node,) = gang.lay_out("pass", nodes=1)
    node.start()
    end = node.follow()[-1]
    assert isinstance(end, stream.Ended) and end.end == "ok" and end.problem.startswith("report.html was not made")


def test_a_lost_head_ends_its_members_with_the_reason(gang: GangBench) -> None:
    script = "import time; print('ready', flush=True); time.sleep(60)"
    nodes = gang.lay_out(script, nodes=2, survival=Survival(patience=0.5))
    gang.start()
    assert eventually(lambda: "ready" in nodes[1].texts(1))
    os.kill(nodes[0].supervisor(), signal.SIGKILL)
    end = nodes[1].follow()[-1]
    assert isinstance(end, stream.Ended) and end.end == "failed"
    assert end.why.startswith("the head was out of reach for 1")
    assert nodes[1].rank_pids() == []
