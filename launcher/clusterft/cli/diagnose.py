"""`clusterft doctor --run RUN` and `--log FILE`: what made a run fail, and the lines that prove it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from clusterft.apply import collecting
from clusterft.apply.collecting import Collected
from clusterft.board.verdict import Verdict
from clusterft.cli.ask import Terminal
from clusterft.diagnosis import cause
from clusterft.diagnosis.diagnosis import Diagnosis
from clusterft.errors import RunFailed, UsageError
from clusterft.ui import diagnosis as view
from clusterft.ui.watch import say


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of this part of the verb."""

    run: str | None
    logs: tuple[Path, ...]
    hosts: Path | None
    cluster: str | None
    as_json: bool


def run(options: Options) -> int:
    """5 where a failure was found, 0 where there was none."""
    if options.run and options.logs:
        raise UsageError("--run and --log exclude each other", remedy="a run's logs are found by its id")
    if options.run:
        collected = collecting.run(options.run, options.hosts, options.cluster, Terminal())
    else:
        collected = collecting.files(options.logs)
    answer = settled(cause.diagnose(collected.heard), collected)
    if options.as_json:
        say(sys.stdout, json.dumps(answer.to_dict()))
    else:
        for line in view.lines(answer):
            say(sys.stdout, line)
    return RunFailed.exit_code if answer.verdict == "failed" else 0


def settled(answer: Diagnosis, collected: Collected) -> Diagnosis:
    """With what the run itself is known to have come to."""
    answer = replace(answer, run=collected.run)
    if collected.state == "running" and not answer.id:
        words = "the run goes on, and nothing in its logs speaks of a failure"
        if answer.earlier:
            words = "the run goes on, after a failure that it has got over"
        return replace(answer, verdict="running", summary=words)
    verdict = collected.verdict
    if verdict is None or verdict.end != "failed":
        return answer
    # Of a run that somebody has stopped once it had failed, its logs tell more than its end.
    return replace(answer, verdict="failed") if answer.id else _by_the_gang(answer, verdict)


def _by_the_gang(answer: Diagnosis, verdict: Verdict) -> Diagnosis:
    """No line tells more than what the run's own supervisors found."""
    return replace(
        answer,
        verdict="failed",
        id=verdict.failure,
        summary=verdict.summary,
        node=verdict.node,
        rank=verdict.rank,
        cause=verdict.why or verdict.summary,
        fix=(verdict.remedy,) if verdict.remedy else (),
    )
