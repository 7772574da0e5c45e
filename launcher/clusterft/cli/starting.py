"""What verbs that start a run have in common: `train`, `prep` and `resume`. Refuses what is missing here."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from clusterft.apply import Gang, settings
from clusterft.apply.mending import Means, Mender
from clusterft.apply.planning import Prepared
from clusterft.apply.record import Entry
from clusterft.board import Board
from clusterft.cli.tending import Tended
from clusterft.errors import UsageError
from clusterft.events import Event, StageDone
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster
from clusterft.plan import LaunchPlan
from clusterft.ship import code
from clusterft.ship.code import CodeTree
from clusterft.spec import JobSpec
from clusterft.ui import text


def secret_values(job: JobSpec, *, needed: bool) -> tuple[dict[str, str], tuple[str, ...]]:
    """The values of the job's secrets, and which have none; UsageError where those are needed."""
    missing = tuple(name for name in job.secrets if name not in os.environ)
    if missing and needed:
        raise UsageError(
            f"secrets without a value: {', '.join(missing)}",
            remedy=f"export {missing[0]}=...   in this shell, then run the command again",
        )
    return {name: os.environ[name] for name in job.secrets if name not in missing}, missing


def shipped(job: JobSpec) -> CodeTree | None:
    """The folder of a script, read and found whole; None for the trainer's own jobs."""
    if job.script is None:
        return None
    tree = code.read(job.script.folder)
    tree.require(job.script.inside)
    work = job.script.workdir
    if work != "." and not any(item.path.startswith(f"{work}/") for item in tree.items):
        raise UsageError(
            f"script.workdir {work} is empty, and an empty folder is not shipped",
            where=str(job.script.folder),
            remedy="start in another folder, or put a file into this one",
        )
    return tree


def cluster(job: JobSpec, at: Path, hosts: Path | None, name: str | None) -> Cluster:
    """The one that the command line, the job at that path, or the last `up` means."""
    path = hosts or job.hosts
    if path is None and name is None and not settings.any_default():
        raise UsageError(
            "no hostfile is named",
            where=str(at),
            remedy="add hosts: to the job, or give --hosts FILE, or run: clusterft up --hosts FILE",
        )
    return settings.find(path, name)


def print_plan(planned: LaunchPlan, *, as_json: bool) -> None:
    """What `--dry-run` shows."""
    if as_json:
        sys.stdout.write(json.dumps({"schema": 1, "plan": planned.to_dict()}) + "\n")
        return
    for line in text.plan(planned):
        sys.stdout.write(line + "\n")


def in_hand(entry: Entry, prepared: Prepared, fleet: Fleet, means: Means, *, as_json: bool) -> Tended:
    """A run that is about to be started."""
    planned = prepared.plan
    gang = Gang(planned.run, planned.cluster, planned.parts, fleet, means.job.patience)
    return Tended(
        entry=entry,
        gang=gang,
        fleet=fleet,
        board=board_of(planned, prepared.offsets),
        mender=Mender(entry, gang, fleet, means),
        as_json=as_json,
        local_logs={node.node.name: node.assignment.log_dir for node in planned.nodes},
    )


def board_of(planned: LaunchPlan, offsets: dict[str, float]) -> Board:
    """An empty one."""
    nodes = tuple(node.node.name for node in planned.nodes)
    where, restarts = str(planned.places.dir), planned.survival.restarts
    return Board(planned.run, nodes, offsets, where, restarts, prep=planned.prep is not None)


def opening(
    run: Tended, planned: LaunchPlan, values: dict[str, str], first: StageDone, tree: CodeTree | None
) -> Iterator[Event]:
    """Each stage is shown when it is over."""
    yield first
    if tree is not None:
        yield ship(tree, planned, run.fleet)
    yield from run.gang.start(planned, values)


def ship(tree: CodeTree, planned: LaunchPlan, fleet: Fleet) -> StageDone:
    """The folder of a script into the shared dir, over the head."""
    began = time.monotonic()
    sent = code.send(fleet.remotes[planned.head.node.name], tree, PurePosixPath(planned.places.shared))
    return StageDone(f"code shipped ({sent.files} files, {sent.bytes} bytes)", time.monotonic() - began)
