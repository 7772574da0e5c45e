"""`clusterft stop`: ask a run for a checkpoint and its end, wait for that, and clear away what is over.

With --now its ranks get TERM at once, then KILL; a container that does not obey is ended by its engine, by id.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from clusterft import board as boards
from clusterft import commands
from clusterft import hosts as hostfiles
from clusterft.apply import Gang, box, harvest, reading, record, runs
from clusterft.apply.runs import Located
from clusterft.board import Board, Verdict
from clusterft.cli.ask import Terminal
from clusterft.errors import ClusterftError, RunFailed
from clusterft.hosts import Cluster
from clusterft.plan import Prep
from clusterft.remote import Unreachable
from clusterft.ui.watch import say
from clusterft_trainer import progress

_SAVES = 660.0  # seconds: the supervisor's own grace for a large checkpoint, and a little more
_DIES = 60.0
_BEFORE = {"ok": "has finished", "stopped": "was stopped before", "failed": "has failed before"}
_TRIES, _PAUSE = 3, 2.0  # to find a part that takes the request; seconds between


@dataclass(slots=True)
class _Told:
    """Who was asked to stop, and what came of it."""

    run: str
    told: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    missed: dict[str, str] = field(default_factory=dict)  # node -> why it could not be asked
    verdict: Verdict | None = None
    saved: progress.Saved | None = None  # the newest checkpoint, as far as was heard
    prep: bool = False
    over: str = ""  # what the run had come to before, where nothing of it was there to be told
    left: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  # nodes that are not through yet

    @property
    def code(self) -> int:
        """The exit code of the command."""
        return RunFailed.exit_code if self.missed or self.waiting else 0


def run(name: str, hosts: Path | None, cluster: str | None, *, now: bool, as_json: bool) -> int:
    """Tell every node's supervisor, wait for the end, and say what became of it."""
    note = record.find(name)
    told: _Told | None
    if note and note.box:
        path = hosts or Path(note.hostfile)
        told = _close(name, hostfiles.load(path, name=cluster or note.cluster))
    else:
        with runs.locate(name, hosts, cluster, Terminal()) as found:
            told = _stop(found, now=now, as_json=as_json) if found.parts else None
            meant = found.cluster
        if told is None:  # opened by hand, from another controller
            told = _close(name, meant)
    _print(told, as_json=as_json)
    return told.code


def _close(name: str, cluster: Cluster) -> _Told:
    """Containers without a launcher have nothing to save: they go at once."""
    done = box.close(cluster, name, Terminal())
    told = _Told(name)
    for node, found in done.items():
        if isinstance(found, Unreachable):
            told.missed[node] = found.what
        else:
            (told.told if found else told.idle).append(node)
    if not told.missed:
        record.forget(name)
    return told


def _stop(found: Located, *, now: bool, as_json: bool) -> _Told:
    told = _Told(found.run, prep=Prep.from_plan(found.record.get("plan", {})) is not None)
    gang = Gang(found.run, found.cluster.name, found.parts, found.fleet)
    asked = _ask(gang, now=now)
    for part in found.parts:
        answer = asked.get(part.node)
        if answer is None:
            told.missed[part.node] = _why(found, part.node)
        elif isinstance(answer, ClusterftError):
            told.missed[part.node] = answer.what
        else:
            (told.told if answer else told.idle).append(part.node)
    if told.told and not as_json:
        say(sys.stdout, f"told to stop: {', '.join(told.told)}")
    if told.told:
        told.verdict = _await(found, gang, told, _DIES if now else _SAVES)
    elif not told.missed and found.state in _BEFORE:
        told.over = found.state
        told.saved = reading.board(found).saved.get("checkpoint") if found.state != "ok" else None
    if not told.waiting:
        told.left = harvest.told(
            harvest.gather(found.fleet, found.run, found.parts, kill=told.verdict is not None)
        )
    if told.verdict and not found.unread and found.entry.state == "running" and not told.waiting:
        # A controller that watches writes the same; there may be none.
        record.end(found.entry, found.fleet, told.verdict)
    return told


def _ask(gang: Gang, *, now: bool) -> dict[str, bool | ClusterftError]:
    """Again, as long as no part has taken it and some could not be asked: one that has tells the others."""
    for _ in range(_TRIES - 1):
        asked = gang.stop(now=now)
        if True in asked.values() or all(answer is False for answer in asked.values()):
            return asked
        time.sleep(_PAUSE)
    return gang.stop(now=now)


def _await(found: Located, gang: Gang, told: _Told, seconds: float) -> Verdict | None:
    """Listen to those that were told until they are through."""
    nodes = tuple(part.node for part in found.parts)
    board = Board(found.run, nodes, run_dir=str(found.run_dir), prep=told.prep)
    deadline = time.monotonic() + seconds
    gang.ignore(told.missed.keys() | set(told.idle))
    for event in gang.events():
        if event is not None:
            board.see(event)
        if time.monotonic() > deadline:
            told.waiting = [node for node in told.told if node not in board.ended]
            return None
    board = reading.concluded(board, found.fleet)  # `train`, where it watches, clears the same parts away
    told.saved = board.saved.get("checkpoint")
    return boards.judge(board)


def _why(found: Located, node: str) -> str:
    miss = next((one for one in found.fleet.unreached if one.node == node), None)
    return miss.words if miss else f"no longer in {found.cluster.path}"


def _to_go_on(told: _Told) -> Iterator[str]:
    """Of a run that was stopped or failed: what it has saved, and how it goes on from there."""
    end = told.verdict.end if told.verdict else told.over
    if end not in ("stopped", "failed"):
        return
    if told.saved:
        yield f"  checkpoint   {told.saved.path}  (step {told.saved.step})"
    if told.saved or told.prep:
        yield "  to go on:    " + commands.shown(f"clusterft resume {told.run}")


def _print(told: _Told, *, as_json: bool) -> None:
    if as_json:
        body = {
            "schema": 2,
            "run": told.run,
            "told": told.told,
            "not_running": told.idle,
            "unreached": told.missed,
            "not_over": told.waiting,
            "outcome": told.verdict.end if told.verdict else None,
            "was_over": told.over or None,  # ok, stopped or failed: it had ended before
            "checkpoint": {"path": told.saved.path, "step": told.saved.step} if told.saved else None,
            "left": told.left,
        }
        say(sys.stdout, json.dumps(body))
        return
    if told.verdict:
        say(sys.stdout, f"{told.run}: {told.verdict.summary}")
    elif told.over:
        say(sys.stdout, f"{told.run} {_BEFORE[told.over]}; there was nothing to stop")
    elif told.told and not told.waiting:
        say(sys.stdout, f"ended: {', '.join(told.told)}")
    for line in _to_go_on(told):
        say(sys.stdout, line)
    if told.idle and not told.over:
        say(sys.stdout, f"not running: {', '.join(told.idle)}")
    for node in told.waiting:
        say(sys.stdout, commands.shown(f"! {node} is still at it; at once: clusterft stop {told.run} --now"))
    for line in told.left:
        say(sys.stdout, f"! {line}")
    for node, words in told.missed.items():
        say(sys.stdout, f"✗ not told: {node}: {words}")
