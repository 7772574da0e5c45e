"""`clusterft stop`: ask a run's supervisors to end it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from clusterft import hosts, places
from clusterft.apply import record
from clusterft.errors import RunFailed
from clusterft.fleet import Fleet
from clusterft.remote import Completed, Unreachable


def run(name: str, *, now: bool, as_json: bool) -> int:
    """Tell every node's supervisor, and say which of them was still there."""
    note = record.find(name)
    cluster = hosts.load(Path(note.hostfile), name=note.cluster)
    with Fleet(cluster, places.controller_home() / cluster.name / "known_hosts") as fleet:
        outcomes: dict[str, Completed | Unreachable | None] = {}
        for _ in range(2 if now else 1):  # told twice, a supervisor no longer waits for its ranks
            outcomes.update(fleet.each(lambda node, remote: remote.run(tuple(note.stop[node]))))
        missed = {miss.node: miss.words for miss in fleet.unreached}
    told, idle = [], []
    for node, outcome in outcomes.items():
        if not isinstance(outcome, Completed):
            missed[node] = str(outcome)
        elif json.loads(outcome.out or "{}").get("told"):
            told.append(node)
        else:
            idle.append(node)
    _print(name, told, idle, missed, as_json=as_json)
    if missed:
        raise RunFailed("not every node could be told", failure="unreachable", where=", ".join(missed))
    return 0


def _print(name: str, told: list[str], idle: list[str], missed: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        body = {"schema": 1, "run": name, "told": told, "not_running": idle, "unreached": missed}
        sys.stdout.write(json.dumps(body) + "\n")
        return
    if told:
        sys.stdout.write(f"told to stop: {', '.join(told)}\n")
    if idle:
        sys.stdout.write(f"not running: {', '.join(idle)}\n")
    for node, words in missed.items():
        sys.stdout.write(f"not reached: {node}: {words}\n")
