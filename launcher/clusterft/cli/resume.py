"""`clusterft resume`: a run that is over goes on from its newest complete checkpoint, on the nodes there are now.

The same id, the same directory, the next attempt. Refuses a run that is not over, and settings that have changed
unless that is meant: a changed batch or seed makes another course of what was half done.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusterft import board as boards
from clusterft import commands, spec
from clusterft import hosts as hostfiles
from clusterft.apply import Gang, harvest, planning, reading, record, runs, settings
from clusterft.apply.mending import Means, successors
from clusterft.apply.planning import Wanted
from clusterft.apply.runs import Located
from clusterft.cli import attach, starting, tending
from clusterft.cli.ask import Terminal
from clusterft.cli.tending import Tended
from clusterft.errors import Blocked, UsageError
from clusterft.events import Event, StageDone
from clusterft.findings import Finding
from clusterft.hosts import Node
from clusterft.remote import Unreachable
from clusterft.ship.code import CodeTree
from clusterft.spec import JobSpec
from clusterft.ui import outcome, text, watch

_ATTEMPTS = 'cd -- "$1/logs" 2>/dev/null && ls -d attempt-* 2>/dev/null; exit 0'
# Where a run keeps no index the trainer reads the sources anew, and goes on with other pictures than a checkpoint
# has where those were left.
_LEAVE = '[ ! -d "$1/index" ] || mv -T -- "$1/index" "$1/index.left-$2"'
_SECONDS = 20.0
# What says how a run is carried out, not what it computes.
_FREE = frozenset(
    "name hosts restarts min_nodes hang_after first_step_after patience stagger_seconds resources env secrets "
    "mounts user port image launcher rendezvous python".split()
)


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of this verb."""

    run: str
    job: Path | None
    hosts: Path | None
    cluster: str | None
    changed: bool
    preflight: bool
    as_json: bool
    new_data: bool = False


def run(options: Options) -> int:
    """From where it stopped to its end."""
    given = spec.load(options.job) if options.job else None
    with runs.locate(options.run, options.hosts, options.cluster, Terminal()) as found:
        before = attach.job_of(found.entry)
        _refuse_alive(found)
        if given:
            _same(before, given, options)
        if found.state == "ok" and not (given and _differences(before, given)):
            return _finished(found, options)
        job = given or before
        if options.new_data and (job.train is None or found.entry.prep):
            raise UsageError(f"{found.run} reads no pictures that it could leave", remedy="leave out --new-data")
        values, _ = starting.secret_values(job, needed=True)
        tree = starting.shipped(job) if given else None
        return _go_on(options, found, job, values, tree)


def _go_on(options: Options, found: Located, job: JobSpec, values: dict[str, str], tree: CodeTree | None) -> int:
    """Of two who resume the same run at once, one does; the other must not so much as tidy up."""
    entry, fleet, attempt = found.entry, found.fleet, _next_attempt(found)
    claim = f"start-{attempt}"
    if not record.claim(fleet, entry.run_dir, claim):
        raise _taken(found, record.holder(fleet, entry.run_dir, claim), claim)

    def let_go() -> None:
        if problem := record.release(fleet, entry.run_dir, claim):
            watch.say(sys.stderr, f"! {problem}")

    try:
        now = record.read(fleet, entry.run_dir)
        if now != entry:
            raise _taken(found, now.controller if now else "another controller")
        tended, opening = _planned(options, found, job, values, tree)
    except BaseException:
        let_go()
        raise
    return tending.tend(tended, tending.begin(tended, _until_started(opening, let_go)))


def _until_started(opening: Iterator[Event], let_go: Callable[[], None]) -> Iterator[Event]:
    try:
        yield from opening
    finally:
        let_go()


def _taken(found: Located, who: str, claim: str = "") -> Blocked:
    """Somebody else starts it, or has."""
    fix = [f"clusterft attach {found.run}"]
    if claim:
        fix.append(f"if nobody does any more: rm -r {found.entry.run_dir}/claims/{claim}")
    words = (
        "starts it at this moment, or has been cut off while doing so" if claim else "has just changed its record"
    )
    return Blocked(
        f"{found.run} is in other hands",
        (Finding("run.taken", "fail", (), f"{who} {words}", fix=tuple(fix)),),
        effect="blocks",
    )


def _planned(
    options: Options, found: Located, job: JobSpec, values: dict[str, str], tree: CodeTree | None
) -> tuple[Tended, Iterator[Event]]:
    entry, fleet, out = found.entry, found.fleet, watch.notes(quiet=options.as_json)
    gathered = harvest.gather(fleet, found.run, found.parts, kill=found.outcome is not None)
    for line in harvest.told(gathered):
        out(f"! {line}")  # a container's name is the lock: what is left of the run itself holds it
    began = time.monotonic()
    code = tree.digest if tree else entry.code
    brought = settings.load(settings.cluster_places(found.cluster.name))
    # Where nobody has said `up`, its own image is still on the nodes.
    tag = None if brought and brought.tag else entry.image
    attempt = _next_attempt(found)
    wanted = Wanted(found.run, code, attempt, options.preflight, tag=tag, prep=entry.prep, starts=True)
    prepared = planning.prepare(job, fleet, wanted, _nodes(found, job))
    for line in text.findings(prepared.found):
        out(line)
    first = StageDone(f"{len(prepared.plan.nodes)} nodes checked", time.monotonic() - began)
    if options.new_data:
        _leave_data(found, prepared.plan.head.node.name, wanted.first_attempt)
    fresh = record.again(entry, prepared.plan, fleet, job, code)
    means = Means(job, lambda: values)
    tended = starting.in_hand(fresh, prepared, fleet, means, as_json=options.as_json)
    return tended, starting.opening(tended, prepared.plan, values, first, tree)


def _leave_data(found: Located, head: str, attempt: int) -> None:
    """Have the trainer take the pictures that are there now; what the run began with stays beside it."""
    argv = ("sh", "-c", _LEAVE, "sh", str(found.run_dir), str(attempt))
    done = found.fleet.remotes[head].run(argv, seconds=_SECONDS)
    if done.code != 0:
        left = f"{found.run_dir}/index.left-{attempt}"
        raise Blocked(
            f"{found.run} cannot be given other pictures: {done.err.strip()}",
            (),
            remedy=f"on {head}: mv {found.run_dir}/index {left}   then clusterft resume {found.run}",
            effect="blocks",
        )


def _refuse_alive(found: Located) -> None:
    """A part that is there, or may be: nobody knows what a node does that cannot be asked."""
    if not found.parts:
        raise UsageError(f"{found.run} has never trained", remedy="clusterft train job.yaml")
    entry = found.entry
    alive = Gang(found.run, entry.cluster, found.parts, found.fleet).alive()
    running = [node for node, answer in alive.items() if answer is True]
    known = found.outcome is not None
    silent = [part.node for part in found.parts if not isinstance(alive.get(part.node), bool)]
    if silent and not running and not known:
        raise Blocked(
            f"whether {found.run} still runs is not known",
            (
                Finding(
                    "run.alive",
                    "fail",
                    tuple(silent),
                    "cannot be asked about its part of it, and may be training",
                    evidence=f"started by {entry.controller}; no outcome.json in {entry.run_dir}",
                    fix=(
                        "make the node reachable; or make sure that it is off, and take it out of the hostfile",
                        f"clusterft status {found.run}",
                    ),
                ),
            ),
            effect="blocks",
        )
    if running and not known:
        raise Blocked(
            f"{found.run} is still running",
            (
                Finding(
                    "run.alive",
                    "fail",
                    tuple(running),
                    "a part of it is there",
                    evidence=f"started by {entry.controller}",
                    fix=(f"clusterft attach {found.run}", f"clusterft stop {found.run}"),
                ),
            ),
            effect="blocks",
        )


def _same(before: JobSpec, given: JobSpec, options: Options) -> None:
    told = _differences(before, given)
    if told and not options.changed:
        again = f"clusterft resume {options.run}"
        raise UsageError(
            f"the settings of {options.run} have changed: " + "; ".join(told),
            where=str(options.job),
            remedy=f"{again} --job {shlex.quote(str(options.job))} --changed   goes on with the new ones;  "
            f"{again}   with the old ones",
        )


def _differences(before: JobSpec, given: JobSpec) -> list[str]:
    return differences(before.model_dump(mode="json"), given.model_dump(mode="json"))


def _finished(found: Located, options: Options) -> int:
    """Nothing is left to do, and nothing is wrong with that: how more would be had."""
    if options.as_json:
        board = reading.board(found)
        watch.say(sys.stdout, json.dumps(outcome.to_dict(board, boards.judge(board))))
        return 0
    watch.say(sys.stdout, f"✓ run {found.run} has finished; there is nothing to resume")
    job = shlex.quote(str(options.job)) if options.job else "job.yaml"
    if found.entry.prep:
        more = f"pictures that have come since: clusterft prep {job}"
    elif found.entry.job.get("train"):
        more = f"to train on: raise steps in the job, then clusterft resume {found.run} --job {job} --changed"
    else:
        more = f"the same once more: clusterft train {job}"
    watch.say(sys.stdout, f"  {commands.shown(more)}")
    watch.say(sys.stdout, f"  {commands.shown(f'what it came to: clusterft status {found.run}')}")
    return 0


def differences(before: Mapping[str, Any], after: Mapping[str, Any], where: str = "") -> list[str]:
    """Field by field, what of a job says another thing; pure. How a run is carried out is free to change."""
    told = []
    for key in dict.fromkeys((*before, *after)):
        old, new, at = before.get(key), after.get(key), f"{where}{key}"
        if old == new or (not where and key in _FREE):
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            told += differences(old, new, f"{at}.")
        else:
            told.append(f"{at}: {old} → {new}")
    return told


def _next_attempt(found: Located) -> int:
    """After all that have left logs, wherever their outcome was written down."""
    attempts = [int(found.entry.plan["first_attempt"]) - 1]
    for remote in list(found.fleet.remotes.values()):
        try:
            done = remote.run(("sh", "-c", _ATTEMPTS, "sh", str(found.run_dir)), seconds=_SECONDS)
        except Unreachable:
            continue
        names = (line.removeprefix("attempt-") for line in done.out.split())
        attempts += [int(name) for name in names if name.isdecimal()]
        break
    return max(attempts) + 1


def _nodes(found: Located, job: JobSpec) -> tuple[Node, ...]:
    """Those of the hostfile as it is now; where one is missing, a spare, or fewer if the job allows that."""
    cluster = hostfiles.load(found.cluster.path, name=found.cluster.name)
    spares = tuple(node for node in cluster.nodes if node.spare)
    least = job.min_nodes or len(cluster.active)
    chosen = successors(cluster.active, frozenset(found.fleet.remotes), spares, least)
    return chosen or cluster.active  # what is missing is then said by the checks
