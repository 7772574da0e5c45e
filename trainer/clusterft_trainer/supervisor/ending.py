"""The end of a run, as its head leaves it in the shared dir: outcome.json and the page about the run.

Every wait in here has an end: a share that hangs must not keep a supervisor.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from clusterft_trainer.supervisor.ledger import Ledger
from clusterft_trainer.supervisor.messages import Over
from clusterft_trainer.supervisor.processes import Child

SCHEMA = 1
OUTCOME = "outcome.json"
_REPORT = 60.0  # seconds for the page
_LOOK = 5.0  # seconds for a look at what a head has left
_TICK = 0.02
_ENDS = ("ok", "stopped", "failed")


def outcome(run: str, ledger: Ledger, at: float) -> str:
    """What outcome.json says, once the run is over."""
    over = ledger.over or Over("failed")
    body = {
        "schema": SCHEMA,
        "run": run,
        "end": over.end,  # ok, stopped or failed
        "failure": over.failure,  # the class of the first cause: oom, killed, nan, config, ...
        "cause": over.cause,  # the first cause in words
        "node": over.node,
        "rank": over.rank,  # null where it is no rank's
        "why": over.why,  # why there was no further attempt
        "attempts": ledger.attempt + 1,
        "restarts": over.restarts,  # attempts that counted against `restarts`
        "began": ledger.began,
        "ended": at,
        "history": [one.to_dict() for one in ledger.history],  # the attempts before the last, each with its cause
    }
    return json.dumps(body, indent=2) + "\n"


def report(run_dir: str) -> str:
    """Have the page made; what went wrong, empty if nothing did."""
    lines, code = _answer((sys.executable, "-P", "-m", "clusterft_trainer.report", run_dir), _REPORT)
    if code == 0:
        return ""
    if code is None:
        return f"report.html was not made within {_REPORT:.0f} s"
    return f"report.html was not made: {lines[-1] if lines else f'exit code {code}'}"


def left_behind(run_dir: str, since: float) -> Over | None:
    """How the run ended, if its head has left word of it since then: for a member that lost it meanwhile."""
    probe = (sys.executable, "-P", "-m", "clusterft_trainer.supervisor.probe", "outcome", run_dir)
    lines, code = _answer(probe, _LOOK)
    if code != 0 or not lines:
        return None
    try:
        body: dict[str, Any] = json.loads(lines[0])
        if body["schema"] != SCHEMA or body["end"] not in _ENDS or body["ended"] < since:
            return None
        return Over(body["end"], body["failure"], body["cause"], body["node"], body["rank"], body["why"])
    except (ValueError, KeyError, TypeError):
        return None  # not one of ours: the head is lost, and that is all that is known


def superseded(run_dir: str, first_attempt: int) -> bool:
    """Whether a controller has planned the run anew since this gang was made: then another gang writes there.

    A share that does not answer tells nothing; whoever would write into it waits for it as well.
    """
    probe = (sys.executable, "-P", "-m", "clusterft_trainer.supervisor.probe", "plan", run_dir)
    lines, code = _answer(probe, _LOOK)
    if code != 0 or not lines:
        return False
    try:
        return int(json.loads(lines[0])["first_attempt"]) > first_attempt
    except (ValueError, KeyError, TypeError):
        return False  # no plan of ours is there: nobody has made another


def _answer(argv: tuple[str, ...], seconds: float) -> tuple[list[str], int | None]:
    """What a process says, and its exit code: None if it took too long."""
    child, deadline = Child(argv), time.monotonic() + seconds
    lines: list[str] = []
    while child.code() is None and time.monotonic() < deadline:
        lines += child.lines()
        time.sleep(_TICK)
    lines += child.lines()
    code = child.code()
    child.kill()
    return [line for line in lines if line.strip()], code
