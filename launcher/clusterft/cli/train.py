"""`clusterft train`: read, judge, plan, act, watch, in that order."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from types import FrameType, TracebackType

from clusterft import board as boards
from clusterft import checks, facts, places, plan, spec
from clusterft.apply import Gang, settings
from clusterft.apply.record import Record
from clusterft.board import Board, Verdict
from clusterft.cli.ask import Terminal
from clusterft.errors import Blocked, ClusterftError, Interrupted, RunFailed, UsageError
from clusterft.events import Event, StageDone, Stopping
from clusterft.findings import Finding, blockers
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster, Node
from clusterft.plan import LaunchPlan
from clusterft.spec import JobSpec
from clusterft.ui import outcome, text, watch

_SHARED_BYTES = 128 * 2**20  # until the trainer can estimate a run's checkpoints
_LOCAL_BYTES = 64 * 2**20  # logs and files of a run


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of this verb."""

    job: Path
    hosts: Path | None
    cluster: str | None
    dry_run: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What reading, judging and planning came to."""

    plan: LaunchPlan
    found: tuple[Finding, ...]
    offsets: dict[str, float]  # node -> seconds that its clock is ahead of the controller's


def run(options: Options) -> int:
    """Run one job to its end; errors of every kind are exceptions of ours."""
    job = spec.load(options.job)
    cluster = _cluster(options, job)
    values = {} if options.dry_run else _secret_values(job)
    out = watch.notes(quiet=options.as_json)
    for note in cluster.notes:
        out(note)
    where = settings.cluster_places(cluster.name)
    with Fleet(cluster, where.known_hosts, key=where.key, asker=Terminal()) as fleet:
        began = time.monotonic()
        prepared = _judge_and_plan(options, job, fleet)
        for line in text.findings(prepared.found):
            out(line)
        if options.dry_run:
            _print_plan(prepared.plan, as_json=options.as_json)
            return 0
        first = StageDone(f"{len(cluster.active)} nodes checked", time.monotonic() - began)
        return _carry_out(options, prepared, fleet, values, first)


def _cluster(options: Options, job: JobSpec) -> Cluster:
    path = options.hosts or job.hosts
    if path is None and options.cluster is None and not settings.any_default():
        raise UsageError(
            "no hostfile is named",
            where=str(options.job),
            remedy="add hosts: to the job, or give --hosts FILE, or run: clusterft up --hosts FILE",
        )
    return settings.find(path, options.cluster)


def _secret_values(job: JobSpec) -> dict[str, str]:
    missing = [name for name in job.secrets if name not in os.environ]
    if missing:
        raise UsageError(
            f"secrets without a value: {', '.join(missing)}",
            remedy=f"export {missing[0]}=...   in this shell, then run the command again",
        )
    return {name: os.environ[name] for name in job.secrets}


def _judge_and_plan(options: Options, job: JobSpec, fleet: Fleet) -> _Prepared:
    shared = str(job.shared)
    survey = fleet.survey(lambda node: (shared, _home(node)))
    demand = checks.Demand(job.resources.device, shared, _SHARED_BYTES, _LOCAL_BYTES)
    found = checks.judge(survey, demand)
    blocking = blockers(found)
    if blocking:
        count = len(blocking)
        raise Blocked(f"{count} check{'s' * (count > 1)} block{'s' * (count == 1)}; nothing was started", found)
    request = plan.Request(
        run=f"{job.name}-{time.strftime('%Y%m%d-%H%M')}-{secrets.token_hex(2)}",
        roots={node.name: _root(node, survey) for node in survey.cluster.active},
        python=job.python or sys.executable,
    )
    offsets = {name: known.clock_offset or 0.0 for name, known in survey.facts.items()}
    return _Prepared(plan.build(job, survey, request), found, offsets)


def _home(node: Node) -> str:
    """Where the node's own files go, for the question of room."""
    return str(places.controller_home()) if node.transport == "local" else facts.HOME


def _root(node: Node, survey: checks.Survey) -> PurePosixPath:
    if node.transport == "local":
        return PurePosixPath(places.controller_home())
    home = survey.facts[node.name].home
    if not home:
        raise ClusterftError(f"the home directory of {node.name} could not be read")
    return PurePosixPath(home) / ".clusterft"


def _print_plan(planned: LaunchPlan, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"schema": 1, "plan": planned.to_dict()}) + "\n")
        return
    for line in text.plan(planned):
        sys.stdout.write(line + "\n")


def _carry_out(
    options: Options, prepared: _Prepared, fleet: Fleet, values: dict[str, str], first: StageDone
) -> int:
    """Start the gang, watch it to its end, and say what it came to."""
    planned = prepared.plan
    record = Record(planned, fleet, options.job.read_text(encoding="utf-8-sig"))
    board = Board(planned.run, tuple(node.node.name for node in planned.nodes), prepared.offsets)
    gang = Gang(planned, fleet)
    with _Interrupts() as interrupts, watch.watcher(quiet=options.as_json) as watcher:
        try:
            record.begin()
            for event in chain((first,), gang.start(values)):  # each stage is shown when it is over
                _take(event, board, watcher)
        except Exception as error:
            # Nothing was left running, so the record must not say that the run goes on.
            remedy = error.remedy if isinstance(error, ClusterftError) else ""
            record.end(Verdict("failed", str(error), failure="start", remedy=remedy))
            raise
        try:
            for event in _until_over(gang, interrupts):
                _take(event, board, watcher)
        except Exception:
            # A bug of ours while watching is no reason to end a run that may be well.
            watch.say(sys.stderr, f"! the run goes on unwatched; to end it: clusterft stop {planned.run}")
            raise
        verdict = boards.judge(board)
    _conclude(planned, board, verdict, as_json=options.as_json)
    unrecorded = record.end(verdict)
    if unrecorded:
        watch.say(sys.stderr, f"! {unrecorded}")
    return {"ok": 0, "stopped": Interrupted.exit_code, "failed": RunFailed.exit_code}[verdict.end]


def _take(event: Event, board: Board, watcher: watch.Watcher) -> None:
    board.see(event)
    watcher.show(event, board)


def _until_over(gang: Gang, interrupts: _Interrupts) -> Iterator[Event]:
    """All events of the gang; a Ctrl-C stops it after a checkpoint, a second one at once."""
    heeded = 0
    for event in gang.events():
        if event is not None:
            yield event
        while interrupts.count > heeded:
            heeded += 1
            if heeded <= 2:
                yield Stopping("asked" if heeded == 1 else "asked again: now")
                gang.stop()


def _conclude(planned: LaunchPlan, board: Board, verdict: Verdict, *, as_json: bool) -> None:
    if as_json:
        watch.say(sys.stdout, json.dumps(outcome.to_dict(planned, board, verdict)))
        return
    for line in outcome.lines(planned, board, verdict):
        watch.say(sys.stdout, line)


class _Interrupts:
    """Counts Ctrl-C and SIGTERM instead of raising in the middle of something."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> _Interrupts:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        self.count += 1
