"""`clusterft status`: what runs on a cluster, or one run as it is now; containers that are over are taken away."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from clusterft import board as boards
from clusterft.apply import harvest, reading, runs
from clusterft.apply.runs import Located, Summary, Surroundings
from clusterft.board import Board
from clusterft.cli.ask import Terminal
from clusterft.errors import ClusterftError
from clusterft.fleet import Fleet
from clusterft.runtime import Harvest, docker
from clusterft.ui import outcome
from clusterft.ui import status as view
from clusterft.ui.watch import say

_OVER = ("ok", "stopped", "failed")
_PLAIN_WIDTH = 120  # of what is piped somewhere


def run(name: str | None, hosts: Path | None, cluster: str | None, *, as_json: bool) -> int:
    """Without a name, all that is alive, a line each."""
    if name is None:
        with runs.surroundings(hosts, cluster, Terminal()) as found:
            _print_all(found, as_json=as_json)
        return 0
    with runs.locate(name, hosts, cluster, Terminal()) as located:
        over = located.outcome is not None
        _end_processes(located)
        board = reading.board(located)
        _print_one(located, board, as_json=as_json)
        ended = (located.outcome or located.record).get("ended")
        quiet = board.over and all(state in docker.OVER for state in located.containers.values())
        members = [part.node for part in located.parts]
        if quiet or harvest.ripe(located.state, located.containers, members, ended, told=over):
            gathered = harvest.gather(located.fleet, located.run, located.parts, kill=over)
            for line in harvest.told(gathered):
                say(sys.stderr, f"! {line}")
    return 0


def _end_processes(located: Located) -> None:
    """What could not be told of the end would be shown as if it went on; its files stay, and are read after it."""
    if located.outcome is None or any(part.runtime != "process" for part in located.parts):
        return
    at_work = dict.fromkeys((part.node for part in located.parts), "at work")
    if harvest.ripe(located.state, at_work, at_work, located.outcome.get("ended"), told=True):
        for line in harvest.told(harvest.gather(located.fleet, located.run, located.parts, kill=True)):
            say(sys.stderr, f"! {line}")


def _print_all(found: Surroundings, *, as_json: bool) -> None:
    glances = [_glance(found, one) for one in found.runs if one.state == "running"]
    left = [box for one in found.runs if one.state != "running" for box in _clear(found.fleet, one)]
    name = found.fleet.cluster.name
    if as_json:
        say(sys.stdout, json.dumps(view.overview_dict(name, glances, left)))
        return
    for line in view.overview(name, glances, left):
        say(sys.stdout, line)
    for miss in found.fleet.unreached:
        say(sys.stdout, f"  ! {miss.node} cannot be reached: {miss.words}")


def _glance(found: Surroundings, one: Summary) -> view.Glance:
    """A run that cannot be read is a line even so: that it is there is known."""
    try:
        return view.glance(reading.board(found.locate(one.run)))
    except ClusterftError as error:
        there = len(one.containers or ())
        return view.Glance(
            one.run, f"unreadable: {error.what}", there, len(one.nodes), None, None, None, None, 0, None
        )


def _clear(fleet: Fleet, one: Summary) -> Iterator[view.LeftBehind]:
    """Take away the containers of a run that is over, once their logs are safe; those of any other are named."""
    there = one.containers or {}
    over = one.attempts is not None  # which only an outcome.json says
    safe = harvest.ripe(one.state, there, one.nodes, one.ended, told=over)
    gathered = harvest.gather(fleet, one.run, one.parts, kill=over) if there and safe else {}
    for node, state in there.items():
        done = gathered.get(node)
        if isinstance(done, Harvest):
            words = f"taken away; its logs are on {node} in {done.kept}" if done.kept else "taken away"
        else:
            later = "ends by itself within seconds, or is taken away then by: clusterft status"
            words = done.what if done else later if over else f"clusterft stop {one.run} --now   takes it away"
        yield view.LeftBehind(node, one.run, state, words)


def _print_one(located: Located, board: Board, *, as_json: bool) -> None:
    """Alive: the live screen; over: what it came to, as `train` has said it."""
    if as_json:
        say(sys.stdout, json.dumps(view.run_dict(board)))
        return
    if board.over:
        for line in outcome.lines(board, boards.judge(board)):
            say(sys.stdout, line)
        return
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False)
        for text in view.one_run(board, console.width):
            console.print(text)
    else:
        for text in view.one_run(board, shutil.get_terminal_size((_PLAIN_WIDTH, 24)).columns):
            say(sys.stdout, text.plain.rstrip())
    if located.unread:
        say(sys.stdout, f"! its record cannot be read: {located.unread}")
