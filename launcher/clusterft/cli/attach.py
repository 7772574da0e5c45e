"""`clusterft attach`: watch a run that is under way, or see what it came to; from any controller with the keys."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from clusterft import board as boards
from clusterft.apply import Gang, reading, runs
from clusterft.apply.mending import Means, Mender
from clusterft.apply.record import Entry
from clusterft.apply.runs import Located
from clusterft.board import Board
from clusterft.cli import tending
from clusterft.cli.ask import Terminal
from clusterft.cli.tending import Tended
from clusterft.errors import UsageError
from clusterft.spec import JobSpec
from clusterft.ui import outcome, watch


def run(name: str | None, hosts: Path | None, cluster: str | None, *, as_json: bool) -> int:
    """To its end, or until the user detaches."""
    with runs.locate(name, hosts, cluster, Terminal()) as found:
        if not found.parts:
            raise UsageError(
                f"{found.run} has no training to watch", remedy=f"clusterft stop {found.run}   ends it"
            )
        if found.outcome is not None and not found.containers:
            # Nobody is left to be heard, and silence must not be taken for the run's end.
            return _told(reading.board(found), as_json=as_json)
        return tending.tend(_in_hand(found, as_json=as_json))


def _told(board: Board, *, as_json: bool) -> int:
    """What it came to, as `train` has said it; its exit code."""
    verdict = boards.judge(board)
    if as_json:
        watch.say(sys.stdout, json.dumps(outcome.to_dict(board, verdict, {})))
    for line in () if as_json else outcome.lines(board, verdict):
        watch.say(sys.stdout, line)
    return tending.exit_code(verdict)


def _in_hand(found: Located, *, as_json: bool) -> Tended:
    entry = found.entry
    patience = float(entry.plan["survival"]["patience"])
    gang = Gang(entry.run, entry.cluster, entry.parts, found.fleet, patience)
    job = job_of(entry)
    board = Board(
        entry.run,
        tuple(part.node for part in entry.parts),
        run_dir=str(entry.run_dir),
        restarts=int(entry.plan["survival"]["restarts"]),
        prep=entry.prep is not None,
    )
    return Tended(
        entry=entry,
        gang=gang,
        fleet=found.fleet,
        board=board,
        mender=Mender(entry, gang, found.fleet, Means(job, lambda: _secrets(gang, job))),
        as_json=as_json,
        local_logs={part.node: f"{part.directory}/logs" for part in entry.parts},
    )


def job_of(entry: Entry) -> JobSpec:
    """The job of a run as its record has it; its paths are whole, so that it matters not where it is read."""
    from pydantic import ValidationError

    try:
        return JobSpec.model_validate_json(json.dumps(entry.job))
    except ValidationError as error:
        raise UsageError(
            f"the job of {entry.run} is not one that this version knows: {error.errors()[0]['msg']}",
            where=str(entry.run_dir / "run.json"),
            remedy=f"use clusterft {entry.clusterft}, which started it",
        ) from None


def _secrets(gang: Gang, job: JobSpec) -> dict[str, str]:
    """From here where they are set, else those that a part of the gang still has."""
    if not job.secrets:
        return {}
    if all(name in os.environ for name in job.secrets):
        return {name: os.environ[name] for name in job.secrets}
    for node in gang.parts:
        if node not in gang.silent and (text := gang.read(node, "secrets.json")):
            values: dict[str, str] = json.loads(text)
            return values
    raise UsageError(
        f"secrets without a value: {', '.join(name for name in job.secrets if name not in os.environ)}",
        remedy="export them in this shell",
    )
