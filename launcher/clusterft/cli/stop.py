"""`clusterft stop`: ask a run's supervisors to end it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from clusterft import hosts
from clusterft.apply import box, record, settings
from clusterft.cli.ask import Terminal
from clusterft.errors import RunFailed
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster
from clusterft.remote import Remote, Unreachable
from clusterft.runtime import process


def run(name: str, *, now: bool, as_json: bool) -> int:
    """Tell every node's supervisor, and say which of them was still there."""
    note = record.find(name)
    cluster = hosts.load(Path(note.hostfile), name=note.cluster)
    if note.containers:
        return _close(note, cluster, as_json=as_json)
    known = {node.name for node in cluster.active}
    missed = {node: f"no longer in {note.hostfile}" for node in note.stop if node not in known}
    told: list[str] = []
    idle: list[str] = []
    where = settings.cluster_places(cluster.name)
    with Fleet(cluster, where.known_hosts, key=where.key, asker=Terminal()) as fleet:
        missed |= {miss.node: miss.words for miss in fleet.unreached if miss.node in note.stop}
        for _ in range(2 if now else 1):  # told twice, a supervisor no longer waits for its ranks
            outcomes = fleet.each(lambda node, remote: _tell(note.stop.get(node), remote))
        for node, outcome in outcomes.items():
            if isinstance(outcome, Exception):
                missed[node] = str(outcome)
            elif outcome is not None:
                (told if outcome else idle).append(node)
    _print(name, told, idle, missed, as_json=as_json)
    return RunFailed.exit_code if missed else 0


def _close(note: record.Note, cluster: Cluster, *, as_json: bool) -> int:
    """Containers without a launcher have nothing to save: they go at once."""
    done = box.close(cluster, note.run, Terminal())
    told = [node for node, found in done.items() if not isinstance(found, Unreachable) and found]
    idle = [node for node, found in done.items() if not isinstance(found, Unreachable) and not found]
    missed = {node: found.what for node, found in done.items() if isinstance(found, Unreachable)}
    missed |= {node: f"no longer in {note.hostfile}" for node in note.stop if node not in done}
    if not missed:
        record.forget_box(note.run)
    _print(note.run, told, idle, missed, as_json=as_json)
    return RunFailed.exit_code if missed else 0


def _tell(argv: list[str] | None, remote: Remote) -> bool | None:
    """Whether a supervisor was there to be told; None for a node that is not of this run."""
    if argv is None:
        return None
    done = remote.run(tuple(argv))
    answer = process.answer(done.out)
    if done.code != 0 or "told" not in answer:
        words = (done.err or done.out).strip()[-300:]
        raise Unreachable("run.unreadable", f"it gave no answer (exit code {done.code}): {words}")
    return bool(answer["told"])


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
        sys.stdout.write(f"✗ not told: {node}: {words}\n")
