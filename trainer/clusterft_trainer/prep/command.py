"""`prep CONFIG.json --shared DIR`: the command line of making a data set ready.

Owns the options, signals and exit codes: 0 when all that was asked for is there, whoever made it; 2 and 5 as
training; killed by the signal that asked it to stop, after it has given its tasks back. Imports torch for nothing
but the stages that need it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from clusterft_trainer.errors import USAGE, ConfigError, RunError
from clusterft_trainer.prep import stages
from clusterft_trainer.prep.stages import Asked
from clusterft_trainer.prep.telling import Voice, duration

if TYPE_CHECKING:
    from clusterft_trainer.latents.session import Stop

_MOST_WORKERS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("config", type=Path, help="JSON with the settings of the train: block")
    parser.add_argument("--shared", type=Path, required=True, help="directory that all workers see")
    parser.add_argument("--only", choices=stages.STAGES, help="one stage alone")
    parser.add_argument("--workers", type=_workers, default=1, help="processes on this machine; default 1")
    parser.add_argument(
        "--status", action="store_true", help="tell what is missing and who is at work; do nothing"
    )
    parser.add_argument("--json", action="store_true", help="with --status: one JSON document")


def main(arguments: argparse.Namespace) -> None:
    """Do one worker's part, or tell how far the work is."""
    if arguments.json and not arguments.status:
        raise ConfigError("--json belongs to --status.", "Leave it out; what prep does is told line by line.")
    environment = dict(os.environ)
    if arguments.workers > 1:
        environment |= {"LOCAL_WORLD_SIZE": str(arguments.workers)}
    given = stages.asked(_settings(arguments.config), arguments.shared.absolute(), arguments.only, environment)
    if arguments.status:
        _tell_status(given, as_json=arguments.json)
    elif arguments.workers > 1:
        _together(given, arguments.workers)
    else:
        work(given, os.environ.get("RANK", "0"))


def work(given: Asked, rank: str) -> None:
    """One worker in this process."""
    from clusterft_trainer.latents import session

    stop = session.Stop()
    _listen(stop)
    voice = Voice(leads=rank == "0")
    try:
        stages.run(given, session.owner_name({"RANK": rank}), stop, voice)
    except session.Stopped:
        voice.line("Stopped as asked: what is finished stays, and the rest is given back.")
        sys.stdout.flush()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def _listen(stop: Stop) -> None:
    from clusterft_trainer.latents.session import Stopped

    def asked(_number: int, _frame: FrameType | None) -> None:
        first = not stop.is_set()
        stop.set()
        if stop.urgent and first:
            raise Stopped

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, asked)


def _together(given: Asked, count: int) -> None:
    """Several on this machine: this process waits for them, and one that fails ends all."""
    context = multiprocessing.get_context("spawn")
    crowd = [
        context.Process(target=_member, args=(given, str(rank), str(count)), name=f"rank {rank}")
        for rank in range(count)
    ]
    for process in crowd:
        process.start()

    def end(_number: int, _frame: FrameType | None) -> None:
        for process in crowd:
            process.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    for process in crowd:
        process.join()
    codes = [process.exitcode or 0 for process in crowd]
    if 0 not in codes:
        worst = next((code for code in codes if code == USAGE), codes[0])
        if worst == USAGE:
            raise ConfigError("No worker could begin or end its work.", "See what they said above.")
        raise RunError("prep", f"All {count} workers failed; exit codes {codes}.", "See what they said above.")


def _member(given: Asked, rank: str, count: str) -> None:
    from clusterft_trainer.errors import TrainerError

    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    try:
        work(given, rank)
    except TrainerError as error:
        sys.stderr.write(f"{error.message}\n{error.remedy}\n")
        sys.stderr.flush()
        os._exit(error.exit_code)
    sys.stdout.flush()
    os._exit(0)


def _tell_status(given: Asked, *, as_json: bool) -> None:
    from clusterft_trainer import dist

    os.environ["CLUSTERFT_DEVICE"] = "cpu"  # only names of entries are computed
    dist.settle()
    from clusterft_trainer.prep import counting, status

    standing = status.Standing(given.home / stages.WORK)
    workers = standing.watched()
    work_found = standing.plans(workers)
    counted = counting.count(given)
    body: dict[str, Any] = {"schema": 1, **counted.body(), **status.body(work_found, workers)}
    if as_json:
        sys.stdout.write(json.dumps(body) + "\n")
        return
    for line in lines(body):
        sys.stdout.write(line + "\n")


def lines(body: dict[str, Any]) -> list[str]:
    """The same for people."""
    if body["index"] is None:
        found = ["The sources have not been read yet."]
    else:
        found = [f"{body['index']['pictures']} pictures are indexed."]
    for name in ("latents", "text"):
        if name in body:
            one = body[name]
            broken = f", {one['broken']} cannot be made" if one["broken"] else ""
            found.append(f"{name}: {one['entries']} entries, {one['missing']} missing{broken}")
    for one in body["work"]:
        if not one["over"]:
            left = "" if one["seconds_left"] is None else f", {duration(one['seconds_left'])} to go"
            found.append(
                f"under way: {one['kind']}, {one['done']} of {one['entries']} entries, "
                f"{one['rate']:.1f} a second by {one['workers']} workers{left}"
            )
    found += [f"silent: {one['name']}" for one in body["workers"] if not one["alive"]]
    return found


def _settings(path: Path) -> Any:
    from pydantic import ValidationError

    from clusterft_trainer import config
    from clusterft_trainer.estimate import command

    try:
        return config.load(path)
    except (OSError, ValidationError, ValueError) as error:
        raise ConfigError(f"{path}: {error}", command.remedy(path)) from error


def _workers(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {_MOST_WORKERS}")
    return int(text)
