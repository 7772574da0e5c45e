"""`clusterft prep`: the job's data made ready for training, by all nodes together, as a run like any other.

Index, latents and text states go into the shared dir, where every later run of the same data finds them. Work is
claimed: a run that was stopped, or lost a node, has lost nothing. `train` calls it for what is missing.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clusterft import board as boards
from clusterft import commands, spec
from clusterft.apply import Gang, planning, preparing, record, settings
from clusterft.apply.mending import Means
from clusterft.apply.planning import Prepared, Wanted
from clusterft.apply.preparing import Standing
from clusterft.cli import starting, tending
from clusterft.cli.ask import Terminal
from clusterft.cli.tending import Tended
from clusterft.errors import Blocked, ClusterftError, UsageError
from clusterft.events import StageDone
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster
from clusterft.plan import STAGES, Prep
from clusterft.spec import JobSpec
from clusterft.ui import prepared as view
from clusterft.ui import text, watch

_SOURCE = re.compile(r"\bdata\.sources\[(\d{1,4})\]")
_SETTLES = 20.0  # seconds from the last word of a part to its end


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of this verb."""

    job: Path
    hosts: Path | None
    cluster: str | None
    only: str | None
    status: bool
    dry_run: bool
    preflight: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class Source:
    """A job whose data is prepared, and what comes with it."""

    job: JobSpec
    text: str
    path: Path
    values: dict[str, str]  # of its secrets
    preflight: bool
    unset: tuple[str, ...] = ()


def run(options: Options) -> int:
    """Prepare, or show what is prepared."""
    job = spec.load(options.job)
    _suits(job, options)
    cluster = starting.cluster(job, options.job, options.hosts, options.cluster)
    values, unset = starting.secret_values(job, needed=not (options.dry_run or options.status))
    out = watch.notes(quiet=options.as_json)
    for note in cluster.notes:
        out(note)
    where = settings.cluster_places(cluster.name)
    with Fleet(cluster.mustered(), where.known_hosts, key=where.key, asker=Terminal()) as fleet:
        if options.status:
            return _show(_standing(job, fleet, cluster), job, as_json=options.as_json)
        text_of = options.job.read_text(encoding="utf-8-sig")
        source = Source(job, text_of, options.job, values, options.preflight, unset)
        began = time.monotonic()
        ready = _prepared(source, fleet, cluster, options.only, starts=not options.dry_run)
        for line in text.findings(ready.found):
            out(line)
        if options.dry_run:
            starting.print_plan(ready.plan, as_json=options.as_json)
            return 0
        first = StageDone(f"{len(cluster.active)} nodes checked", time.monotonic() - began)
        code, tended = _tended(source, ready, fleet, first, as_json=options.as_json)
        if _to_be_mended(source, tended, out):
            out(commands.shown(f"once that is mended: clusterft prep {options.job}"))
        return code


def is_wanted(job: JobSpec) -> bool:
    """Whether a run of this job reads what is prepared before it."""
    return job.train is not None and job.train.data.cache is not None


def before_training(
    source: Source, prepared: Prepared, fleet: Fleet, out: Callable[[str], None], *, as_json: bool
) -> int | None:
    """What is missing, as a run before the one that is planned; an exit code where that one is not to follow."""
    began = time.monotonic()
    missing = _missing(source.job, prepared, fleet, source.values, out)
    if missing == 0:
        out(f"✓ all data is prepared  {time.monotonic() - began:.1f} s")
        return None
    out(f"{_words(missing)}: prepared first, by all nodes (--no-prep leaves that out)")
    began = time.monotonic()
    ready = _prepared(source, fleet, fleet.cluster, None, starts=True)
    first = StageDone(f"{len(ready.plan.nodes)} nodes ready to prepare", time.monotonic() - began)
    code, tended = _tended(source, ready, fleet, first, as_json=as_json, sequel=True)
    if code != 0:
        when = "that is mended" if _to_be_mended(source, tended, out) else "the data is prepared"
        out(commands.shown(f"training was not started; once {when}: clusterft train {source.path}"))
        return code
    if not tended.board.over:  # the user has left it to itself
        later = f"training does not follow by itself; once the data is prepared: clusterft train {source.path}"
        out(commands.shown(later))
        return 0
    _await_end(tended.gang)
    return None


def _suits(job: JobSpec, options: Options) -> None:
    where = str(options.job)
    if job.train is None:
        raise UsageError(
            "a script prepares its own data",
            where=where,
            remedy=f"clusterft train {where}   starts it; prep is for train:",
        )
    if options.only is not None and options.only not in STAGES:
        raise UsageError(f'there is no stage "{options.only}"', remedy=f"--only is one of: {', '.join(STAGES)}")
    if options.status and options.dry_run:
        raise UsageError("--status and --dry-run exclude each other", remedy="leave one out")
    cache = job.train.data.cache
    if options.only in ("latents", "text") and cache is None:
        raise UsageError(
            f"--only {options.only}: the job keeps no cache", where=where, remedy="add cache: {} under train.data"
        )
    if options.only == "text" and cache is not None and not cache.text:
        raise UsageError(
            "--only text: the job keeps no text states",
            where=where,
            remedy="set text: true under train.data.cache",
        )


def _prepared(source: Source, fleet: Fleet, cluster: Cluster, only: str | None, *, starts: bool) -> Prepared:
    name = planning.fresh_id(f"{source.job.name}-prep")
    wanted = Wanted(name, preflight=source.preflight, unset=source.unset, prep=Prep(only), starts=starts)
    return planning.prepare(source.job, fleet, wanted, cluster.active)


def _tended(
    source: Source, ready: Prepared, fleet: Fleet, first: StageDone, *, as_json: bool, sequel: bool = False
) -> tuple[int, Tended]:
    entry = record.begin(ready.plan, fleet, source.job, source.text)
    tended = starting.in_hand(entry, ready, fleet, Means(source.job, lambda: source.values), as_json=as_json)
    tended.sequel = sequel
    opening = starting.opening(tended, ready.plan, source.values, first, None)
    return tending.tend(tended, tending.begin(tended, opening)), tended


def _to_be_mended(source: Source, tended: Tended, out: Callable[[str], None]) -> bool:
    """Whether the run has ended by what is wrong with job or data, which the same again would end by, too."""
    if not tended.board.over:
        return False
    verdict = boards.judge(tended.board)
    if verdict.end != "failed" or verdict.failure not in boards.MENDED_FIRST:
        return False
    place = _place(source.job, verdict.summary)
    if place:
        out(f"  in the job: {place}")
    return True


def _place(job: JobSpec, words: str) -> str:
    """Where the source that the trainer complains of stands in the job."""
    found = _SOURCE.search(words)
    return job.where("train", "data", "sources", int(found[1])) if found else ""


def _words(missing: int | None) -> str:
    if missing is None:
        return "the data is not prepared yet"
    return "1 entry of the cache is missing" if missing == 1 else f"{missing} entries of the cache are missing"


def _missing(
    job: JobSpec, prepared: Prepared, fleet: Fleet, secrets: dict[str, str], out: Callable[[str], None]
) -> int | None:
    """Pieces of work; None where nobody can say: the run that prepares finds out, and says what is wrong."""
    try:
        return preparing.look(prepared.plan.head, str(prepared.plan.places.shared), fleet, secrets).missing
    except preparing.Refused as error:
        error.where = _place(job, error.what)
        raise
    except ClusterftError as error:
        out(f"! {error.what}")
        return None


def _standing(job: JobSpec, fleet: Fleet, cluster: Cluster) -> Standing:
    """Asked on the first node that is there: what stands in the way of a start is no matter here."""
    node = next((node for node in cluster.active if node.name in fleet.remotes), None)
    if node is None:
        miss = fleet.unreached[0]
        raise Blocked(f"no node of {cluster.name} is reachable; {miss.node}: {miss.words}", ())
    alone = job.model_copy(update={"min_nodes": None})
    wanted = Wanted(planning.fresh_id(f"{job.name}-prep"), preflight=False, prep=Prep())
    planned = planning.prepare(alone, fleet, wanted, [node]).plan
    return preparing.look(planned.head, str(job.shared), fleet)


def _show(standing: Standing, job: JobSpec, *, as_json: bool) -> int:
    if as_json:
        watch.say(sys.stdout, json.dumps(standing.body))
        return 0
    for line in view.lines(standing.body, str(job.shared)):
        watch.say(sys.stdout, line)
    return 0


def _await_end(gang: Gang) -> None:
    """A part that has said its last word holds its node for a moment longer."""
    deadline = time.monotonic() + _SETTLES
    while any(answer is True for answer in gang.alive().values()) and time.monotonic() < deadline:
        time.sleep(0.2)
