"""`clusterft train`: read, judge, plan, act, watch, in that order. Brings no image: that is `up`'s.

Where the job has a cache, what is missing of it is prepared first, as a run of its own (`prep`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from clusterft import spec
from clusterft.apply import planning, record, settings
from clusterft.apply.mending import Means
from clusterft.apply.planning import Prepared, Wanted
from clusterft.cli import prep, starting, tending
from clusterft.cli.ask import Terminal
from clusterft.events import StageDone
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster
from clusterft.ship.code import CodeTree
from clusterft.spec import JobSpec
from clusterft.ui import text, watch


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of this verb."""

    job: Path
    hosts: Path | None
    cluster: str | None
    dry_run: bool
    preflight: bool
    as_json: bool
    prepare: bool = True


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read before any node was asked."""

    job: JobSpec
    text: str
    cluster: Cluster
    values: dict[str, str]  # of the secrets
    tree: CodeTree | None
    wanted: Wanted


def run(options: Options) -> int:
    """Run one job to its end; errors of every kind are exceptions of ours."""
    read = _read(options)
    out = watch.notes(quiet=options.as_json)
    for note in read.cluster.notes:
        out(note)
    where = settings.cluster_places(read.cluster.name)
    # Spares are connected too: one of them may have to step in.
    with Fleet(read.cluster.mustered(), where.known_hosts, key=where.key, asker=Terminal()) as fleet:
        began = time.monotonic()
        prepared = planning.prepare(read.job, fleet, read.wanted, read.cluster.active)
        for line in text.findings(prepared.found):
            out(line)
        if options.dry_run:
            starting.print_plan(prepared.plan, as_json=options.as_json)
            return 0
        first = StageDone(f"{len(read.cluster.active)} nodes checked", time.monotonic() - began)
        if options.prepare and prep.is_wanted(read.job):
            source = prep.Source(read.job, read.text, options.job, read.values, options.preflight)
            ended = prep.before_training(source, prepared, fleet, out, as_json=options.as_json)
            if ended is not None:
                return ended
            prepared = planning.prepare(read.job, fleet, read.wanted, read.cluster.active)
        return _started(options, read, prepared, fleet, first)


def _read(options: Options) -> _Read:
    job = spec.load(options.job)
    cluster = starting.cluster(job, options.job, options.hosts, options.cluster)
    values, unset = starting.secret_values(job, needed=not options.dry_run)
    tree = starting.shipped(job)
    wanted = Wanted(
        planning.fresh_id(job.name),
        tree.digest if tree else None,
        preflight=options.preflight,
        unset=unset,
        starts=not options.dry_run,
    )
    return _Read(job, options.job.read_text(encoding="utf-8-sig"), cluster, values, tree, wanted)


def _started(options: Options, read: _Read, prepared: Prepared, fleet: Fleet, first: StageDone) -> int:
    entry = record.begin(prepared.plan, fleet, read.job, read.text, read.wanted.code)
    means = Means(read.job, lambda: read.values)
    tended = starting.in_hand(entry, prepared, fleet, means, as_json=options.as_json)
    opening = starting.opening(tended, prepared.plan, read.values, first, read.tree)
    return tending.tend(tended, tending.begin(tended, opening))
