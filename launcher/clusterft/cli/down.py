"""`clusterft down`: what `up` brought goes again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from clusterft import commands
from clusterft.apply import settings
from clusterft.apply.teardown import Teardown
from clusterft.board import Roster
from clusterft.cli.ask import Terminal
from clusterft.errors import Blocked
from clusterft.ui import muster as view
from clusterft.ui import text
from clusterft.ui.watch import say


def run(hosts: Path | None, cluster: str | None, *, now: bool, yes: bool, as_json: bool) -> int:
    """Take the cluster down, once somebody has agreed; 3 when a node still has something of it."""
    meant = settings.find(hosts, cluster)
    with view.watcher(quiet=as_json) as watcher:
        person = Terminal()
        person.pause = watcher.pause
        teardown = Teardown(meant, watcher.show, person, now=now, yes=yes)
        own = teardown.run()
    if as_json:
        say(sys.stdout, json.dumps(view.changes(meant.name, teardown.roster, own)))
    else:
        for line in _lines(meant.name, teardown.roster, own):
            say(sys.stdout, line)
    return Blocked.exit_code if teardown.roster.failures else 0


def _lines(cluster: str, roster: Roster, own: tuple[str, ...]) -> list[str]:
    left = len(roster.rows) - len(roster.up)
    lines = list(text.findings(roster.failures, effect="keeps what it has"))
    if left:
        lines.append(
            f"cluster {cluster}: {left} of {len(roster.rows)} nodes still have it; "
            + commands.shown("again: clusterft down")
        )
    elif any(row.changes for row in roster.rows.values()) or own:
        lines.append(f"cluster {cluster} is down; its host keys stay pinned on this machine")
    else:
        lines.append(f"nothing of cluster {cluster} was left")
    return lines
