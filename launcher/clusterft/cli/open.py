"""`clusterft open`: a container of the cluster's image on every node, and SSH between them without a question."""

from __future__ import annotations

import json
import secrets
import sys
import time
from dataclasses import asdict
from pathlib import Path

from clusterft import commands
from clusterft.apply import settings
from clusterft.apply.box import Opened, Opening
from clusterft.cli.ask import Terminal
from clusterft.ui import muster as view
from clusterft.ui import text
from clusterft.ui.watch import say


def run(hosts: Path | None, cluster: str | None, mounts: tuple[str, ...], *, as_json: bool) -> int:
    """Open, and say how to get in and how to end it."""
    meant = settings.find(hosts, cluster)
    name = f"open-{time.strftime('%Y%m%d-%H%M')}-{secrets.token_hex(2)}"
    with view.watcher(quiet=as_json) as watcher:
        person = Terminal()
        person.pause = watcher.pause
        opened = Opening(meant, name, mounts, watcher.show, person).run()
    if as_json:
        body = {"schema": 1, **asdict(opened), "findings": [one.to_dict() for one in opened.findings]}
        say(sys.stdout, json.dumps(body))
        return 0
    for line in (*text.findings(opened.findings), *_lines(opened)):
        say(sys.stdout, line)
    return 0


def _lines(opened: Opened) -> tuple[str, ...]:
    head = opened.nodes[0]
    other = opened.nodes[-1]
    return (
        f"✓ {opened.run} is open on {' '.join(opened.nodes)}",
        commands.shown(
            f"  clusterft ssh {head} --container {opened.run}   a shell in it; from there: ssh {other}"
        ),
        "  deepspeed --hostfile /run/clusterft/hostfile ...   in that shell, starts on all nodes",
        commands.shown(f"  clusterft stop {opened.run}   ends it"),
    )
