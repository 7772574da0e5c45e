"""`clusterft push`: what must be equal on every node without a shared disk, such as a base model."""

from __future__ import annotations

import json
import sys
from pathlib import Path, PurePosixPath

from clusterft.apply import settings
from clusterft.apply.pushing import Pushing
from clusterft.cli.ask import Terminal
from clusterft.errors import Blocked
from clusterft.ui import muster as view
from clusterft.ui import text
from clusterft.ui.watch import say


def run(path: Path, to: str | None, *, full: bool, hosts: Path | None, cluster: str | None, as_json: bool) -> int:
    """Push; 3 when a node does not have it in the end."""
    meant = settings.find(hosts, cluster)
    with view.watcher(quiet=as_json) as watcher:
        person = Terminal()
        person.pause = watcher.pause
        pushing = Pushing(meant, watcher.show, person)
        done = pushing.run(path, PurePosixPath(to) if to else None, full=full)
    roster = pushing.roster
    if as_json:
        body = view.changes(meant.name, roster, ()) | {"files": done.files, "bytes": done.size, "sent": done.sent}
        say(sys.stdout, json.dumps(body))
    else:
        for line in text.findings(roster.failures, effect="keeps the node without it"):
            say(sys.stdout, line)
        what = f"{done.files} file{'s' * (done.files != 1)}, {view.size(done.size)}"
        equal = f"as here on {' '.join(roster.up) or 'no node'}, where more files than these may lie"
        sent = f"{view.size(done.sent)} sent from here" if done.sent else "nothing had to be sent"
        say(sys.stdout, f"{what}: {equal}; {sent}")
    return Blocked.exit_code if roster.failures else 0
