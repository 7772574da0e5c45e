"""`clusterft runs`: what has run on a cluster, from its shared dir."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from clusterft.apply import runs
from clusterft.apply.runs import Summary
from clusterft.cli.ask import Terminal
from clusterft.ui import status as view
from clusterft.ui.watch import say


def run(hosts: Path | None, cluster: str | None, *, as_json: bool) -> int:
    """The newest first."""
    found = [_past(one) for one in runs.history(hosts, cluster, Terminal())]
    if as_json:
        say(sys.stdout, json.dumps(view.past_dict(found)))
        return 0
    for line in view.past(found):
        say(sys.stdout, line)
    return 0


def _past(one: Summary) -> view.Past:
    return view.Past(
        run=one.run,
        state=one.state,
        began=one.began or None,
        ended=one.ended,
        step=one.step,
        loss=one.loss,
        failure=one.failure,
        cause="" if one.state == "ok" else one.cause,
        restarts=one.restarts,
        job=one.job,
        run_dir=one.run_dir,
        nodes=one.nodes,
    )
