"""`python -m clusterft_trainer`: what a rank runs. Settings in, exit code out.

    train CONFIG.json --run-dir DIR   train, or go on training, in DIR
    builtin DIR                       write the builtin model and picture set, to look at

Owns the command line, and turning an error into one progress line and an exit code: 0 done or
stopped as asked, 2 settings or data are wrong, 5 training failed, 1 a bug. CLUSTERFT_DEBUG=1 shows
the traceback of every error. Refuses to import torch before the arguments make sense.
"""

from __future__ import annotations

# First of all, so that even a failing import is written to this rank's own log.
from clusterft_trainer import rank

if __name__ == "__main__":
    rank.claim_log()

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from clusterft_trainer import errors, metrics

BUG = 1


def main(argv: list[str]) -> NoReturn:
    """Run one command, and leave with its exit code from within, as _leave explains."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "train":
            held = _train(arguments.config, arguments.run_dir)
        else:
            held = _builtin(arguments.folder, arguments.images)
        _leave(0, held)
    except errors.TrainerError as error:
        if os.environ.get("CLUSTERFT_DEBUG") == "1":
            traceback.print_exc()
        _fail(error.failure, error.message, error.remedy, everywhere=error.everywhere)
        _leave(error.exit_code, error)
    except Exception as error:  # noqa: BLE001 - the outermost place: told in full, then exit
        traceback.print_exc()
        known = _known(error)
        remedy = "The traceback is in this rank's log; please report it."
        bug = ("bug", f"{type(error).__name__}: {error}", remedy)
        _fail(*known or bug, everywhere=False)
        _leave(errors.RUN_FAILED if known else BUG, error)


def _leave(code: int, _held: object) -> NoReturn:
    """Exit at once, while the second argument keeps the run alive, directly or by a traceback's frames.

    Files are closed by now. Freeing models and process groups can deadlock in torch (a destructor
    joins gloo's thread while holding the interpreter lock that the thread waits for), and costs
    each rank a second when it does not.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m clusterft_trainer", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train, or go on training")
    train.add_argument("config", type=Path, help="JSON with the settings of the train: block")
    train.add_argument("--run-dir", type=Path, required=True, help="where everything is written")
    builtin = commands.add_parser("builtin", help="write the builtin model and pictures")
    builtin.add_argument("folder", type=Path)
    builtin.add_argument("--images", type=int, default=64, help="how many pictures to draw")
    return parser


def _train(path: Path, run_dir: Path) -> object:
    if os.environ.get("RANK", "0") == "0":
        metrics.phase("imports")
    from pydantic import ValidationError

    from clusterft_trainer import config, dist

    try:
        settings = config.load(path)
    except (OSError, ValidationError, ValueError) as error:
        raise errors.ConfigError(f"{path}: {_first(error)}", "Mend the setting named.") from error
    place = dist.settle()
    from clusterft_trainer import train

    return train.run(settings, run_dir.absolute(), place)


def _builtin(folder: Path, images: int) -> object:
    from clusterft_trainer import dist

    dist.settle()
    from clusterft_trainer import builtin

    for kind, count in (("tiny", 0), ("shapes", images)):
        where = builtin.materialise(kind, count, folder.absolute())
        sys.stdout.write(f"{where}\n")
    return None


def _first(error: Exception) -> str:
    """The first complaint, with the path of its setting."""
    details = getattr(error, "errors", None)
    if details is None:
        return str(error)
    first = details()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the settings"
    return f"{where}: {first['msg']}"


def _known(error: Exception) -> tuple[str, str, str] | None:
    """Failures that libraries raise and users can mend."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate" in text:
        remedy = "Lower batch.per_slot (raise batch.accumulate instead) or data.resolution."
        return "oom", f"Memory ran out: {text.splitlines()[0]}", remedy
    if isinstance(error, OSError) and error.errno in errors.FULL:
        return "disk-full", f"A file could not be written: {text}", errors.MAKE_ROOM
    if any(sign in text for sign in ("Connection closed by peer", "Connection reset by peer")):
        remedy = "Look for the first failure in the logs of the other ranks."
        return "peer-lost", f"Another rank is gone: {text.splitlines()[0]}", remedy
    return None


def _fail(failure: str, message: str, remedy: str, *, everywhere: bool) -> None:
    """One line for the run: every rank knows of a shared error, then rank 0 speaks."""
    if not everywhere or os.environ.get("RANK", "0") == "0":
        metrics.failed(failure, message, remedy)


if __name__ == "__main__":
    main(sys.argv[1:])
