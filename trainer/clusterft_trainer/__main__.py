"""`python -m clusterft_trainer`: what a rank runs, and what can be asked without a run.

    train CONFIG.json --run-dir DIR    train, or go on training, in DIR
    export CHECKPOINT --out DIR        a checkpoint as a model file or diffusers folder
    sample CHECKPOINT --out FILE.png   pictures from a checkpoint
    estimate CONFIG.json               memory, disk and time that a run will need
    migrate FILE                       kohya's or accelerate's settings as a job of ours
    builtin DIR                        write the builtin model and picture set, to look at
    prep CONFIG.json --shared DIR      index, latents and text states of a data set, by any number of workers
    verify, pack, unpack, import-npz, export-npz    caches tested, moved, exchanged with kohya's

Owns the command line, and turning an error into one progress line and an exit code: 0 done or
stopped as asked, 2 settings or data are wrong, 5 training failed, 1 a bug. CLUSTERFT_DEBUG=1 shows
the traceback of every error. Refuses to import torch before the arguments make sense.
"""

from __future__ import annotations

# First of all, so that even a failing import is written to this rank's own log.
from clusterft_trainer import rank

if __name__ == "__main__":
    rank.begin()

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from clusterft_trainer import errors, metrics
from clusterft_trainer.estimate import command
from clusterft_trainer.prep import verbs

BUG = 1
_LOST = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
_MEET = "Look whether all nodes have started, and whether the head's port can be reached from each of them."


def main(argv: list[str]) -> NoReturn:
    """Run one command, and leave with its exit code from within, as _leave explains."""
    arguments = _parser(argv[0] if argv else "").parse_args(argv)
    tell = _fail if _is_watched(arguments) else _say
    try:
        if arguments.command in verbs.VERBS:
            _leave(verbs.run(arguments), None)
        _leave(0, _COMMANDS[arguments.command](arguments))
    except errors.TrainerError as error:
        if os.environ.get("CLUSTERFT_DEBUG") == "1":
            traceback.print_exc()
        tell(error.failure, error.message, error.remedy, by=error.met_by if error.everywhere else None)
        _leave(error.exit_code, error)
    except Exception as error:  # noqa: BLE001 - the outermost place: told in full, then exit
        traceback.print_exc()
        known = _known(error)
        remedy = "The traceback is in this rank's log; please report it."
        bug = ("bug", f"{type(error).__name__}: {error}", remedy)
        tell(*known or bug, by=None)
        _leave(errors.RUN_FAILED if known else BUG, error)


def _is_watched(arguments: argparse.Namespace) -> bool:
    """Whether a supervisor reads what this rank says."""
    return arguments.command == "train" or (arguments.command == "prep" and "CLUSTERFT_LOG_DIR" in os.environ)


def _leave(code: int, _held: object) -> NoReturn:
    """Exit at once, while the second argument keeps the run alive, directly or by a traceback's frames.

    Files are closed by now. Freeing models and process groups can deadlock in torch (a destructor
    joins gloo's thread while holding the interpreter lock that the thread waits for), and costs
    each rank a second when it does not.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _parser(typed: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m clusterft_trainer", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train, or go on training")
    train.add_argument("config", type=Path, help="JSON with the settings of the train: block")
    train.add_argument("--run-dir", type=Path, required=True, help="where everything is written")
    export = commands.add_parser("export", help="a checkpoint as a model file or diffusers folder")
    _choose(export)
    export.add_argument("--out", type=Path, required=True, help="folder to write into")
    export.add_argument("--name", help="file stem; the run's if not given")
    export.add_argument("--dtype", choices=("fp16", "bf16", "fp32"), help="the run's if not given")
    export.add_argument("--diffusers", action="store_true", help="a diffusers folder, too")
    sample = commands.add_parser("sample", help="pictures from a checkpoint")
    _choose(sample)
    sample.add_argument("--out", type=Path, required=True, help="picture to write: FILE.png")
    sample.add_argument("--prompt", action="append", help="once for each picture; the run's if not given")
    sample.add_argument("--steps", type=int, default=20, help="denoising steps")
    estimate = commands.add_parser("estimate", help="memory, disk and time that a run will need")
    command.add_arguments(estimate)
    migrate = commands.add_parser("migrate", help="kohya's or accelerate's settings as a job of ours")
    migrate.add_argument("file", type=Path, help="shell script or text with the command, TOML, accelerate YAML")
    migrate.add_argument("-o", "--out", type=Path, help="job.yaml to write; to the terminal if not given")
    verbs.add(commands, typed)
    builtin = commands.add_parser("builtin", help="write the builtin model and pictures")
    builtin.add_argument("folder", type=Path)
    builtin.add_argument("--images", type=int, default=64, help="how many pictures to draw")
    return parser


def _choose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a run's folder (its newest), or one checkpoint's")
    parser.add_argument("--model", help="where the model lies that was trained, if it has moved")
    parser.add_argument("--weights", action="store_true", help="the weights themselves, not their running mean")


def _train(arguments: argparse.Namespace) -> object:
    path, run_dir = arguments.config, arguments.run_dir
    if os.environ.get("RANK", "0") == "0":
        metrics.phase("imports")
    from pydantic import ValidationError

    from clusterft_trainer import config, dist, imports

    try:
        settings = config.load(path)
    except (OSError, ValidationError, ValueError) as error:
        raise errors.ConfigError(f"{path}: {_first(error)}", command.remedy(path)) from error
    with imports.collector_at_rest():
        place = dist.settle()
        if place.device == "cpu" and (told := config.without_gpu(settings)):
            raise errors.ConfigError(". ".join(told) + ".", command.remedy(path), everywhere=True)
        from clusterft_trainer import train

    return train.run(settings, run_dir.absolute(), place)


def _export(arguments: argparse.Namespace) -> object:
    from clusterft_trainer import dist

    dist.settle()
    from clusterft_trainer import offline

    chosen = offline.read(arguments.checkpoint, mean=not arguments.weights, model=arguments.model)
    wanted = {"name": arguments.name, "dtype": arguments.dtype, "diffusers": arguments.diffusers or None}
    offline.export(chosen, arguments.out, {k: v for k, v in wanted.items() if v is not None})
    return chosen


def _sample(arguments: argparse.Namespace) -> object:
    from clusterft_trainer import dist

    place = dist.settle()
    from clusterft_trainer import offline
    from clusterft_trainer.config import Samples

    chosen = offline.read(arguments.checkpoint, mean=not arguments.weights, model=arguments.model)
    prompts = arguments.prompt or (chosen.config.samples.prompts if chosen.config.samples else None)
    if not prompts:
        raise errors.ConfigError("That run has no sample prompts.", "Give one with --prompt.")
    wanted = Samples(prompts=tuple(prompts), denoise_steps=arguments.steps)
    offline.draw(chosen, wanted, arguments.out.absolute(), place)
    return chosen


def _estimate(arguments: argparse.Namespace) -> object:
    command.main(arguments)
    return None


def _migrate(arguments: argparse.Namespace) -> object:
    from clusterft_trainer import migrate

    file: Path = arguments.file
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"{file} cannot be read: {error}.", "Give a text file.") from error
    found = migrate.run(text, file.name, migrate.Beside(file))
    if arguments.out is None:
        sys.stdout.write(found.yaml)
        sys.stderr.write(migrate.report(found))
        return None
    if arguments.out.exists():
        raise errors.ConfigError(f"{arguments.out} is there already.", "Give another name, or remove it.")
    with errors.storing("The job", arguments.out):
        arguments.out.write_text(found.yaml, encoding="utf-8")
    sys.stdout.write(migrate.report(found))
    return None


def _builtin(arguments: argparse.Namespace) -> object:
    from clusterft_trainer import dist

    dist.settle()
    from clusterft_trainer import builtin

    for kind, count in (("tiny", 0), ("shapes", arguments.images)):
        where = builtin.materialise(kind, count, arguments.folder.absolute())
        sys.stdout.write(f"{where}\n")
    return None


_COMMANDS: dict[str, Callable[[argparse.Namespace], object]] = {
    "train": _train,
    "export": _export,
    "sample": _sample,
    "estimate": _estimate,
    "migrate": _migrate,
    "builtin": _builtin,
}


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
    if type(error).__name__ == "DistBackendError" or any(sign in text for sign in _LOST):
        remedy = "Look for the first failure in the logs of the other ranks."
        return "peer-lost", f"Another rank is gone: {text.splitlines()[0]}", remedy
    if type(error).__name__ in ("DistNetworkError", "DistStoreError"):
        return "rendezvous", f"The ranks did not find each other: {text.splitlines()[0]}", _MEET
    return None


def _say(failure: str, message: str, remedy: str, *, by: int | None) -> None:
    """Two lines for a person: nobody watches these commands."""
    sys.stderr.write(f"{message}\n{remedy}\n")


def _fail(failure: str, message: str, remedy: str, *, by: int | None) -> None:
    """One line for the run: of an error that all ranks know of, the one that met it speaks, and so is named."""
    if by is None or os.environ.get("RANK", "0") == str(by):
        metrics.failed(failure, message, remedy)


if __name__ == "__main__":
    main(sys.argv[1:])
