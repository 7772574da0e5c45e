"""What a rank does before its first step, but for what takes long: libraries, model files, pictures, the group.

Owns the stages by which one knows how far a rank came. Writes nothing; uses no card.
"""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import shlex
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusterft_trainer.config import BuiltinSource, FolderSource, TrainConfig, Zero
from clusterft_trainer.errors import DataError, TrainerError
from clusterft_trainer.proving import collective
from clusterft_trainer.proving.forks import Tell

if TYPE_CHECKING:
    from clusterft_trainer.corpus.look import Reader

_FIRST = 1 << 20  # bytes of the all-reduce: more than one packet, and soon over
_LISTED = 64  # names of a folder, of which a few pictures are taken
_TRIED = 4
_HELPER = 20.0  # seconds
_POINTER = b"version https://git-lfs"


def run(given: dict[str, Any], tell: Tell) -> None:
    """One rank; whoever fails says at which stage, and why in the trainer's own words."""
    config = None if given["config"] is None else TrainConfig.model_validate(given["config"])
    try:
        tell({"stage": "libraries"})
        for name in given["modules"]:
            importlib.import_module(name)
        if config is not None:
            _libraries(config)
            tell({"stage": "model"})
            tell({"model": _model(config)})
            tell({"stage": "pictures"})
            _pictures(config)
        tell({"stage": "processes"})
        _processes()
    except TrainerError as error:
        tell({"error": error.message, "remedy": error.remedy, "kind": error.failure})
        raise
    _meet(given, tell)
    tell({"stage": "done"})


def _meet(given: dict[str, Any], tell: Tell) -> None:
    """All ranks of the run, over gloo alone: cards are for a run."""
    import torch
    import torch.distributed as td

    collective.join({**given, "cuda": False}, tell)
    tell({"stage": "first"})
    data = torch.ones(_FIRST // 4)
    td.all_reduce(data)
    if float(data[0]) != td.get_world_size():
        raise RuntimeError(f"an all-reduce of ones over {td.get_world_size()} ranks gave {float(data[0])}")
    td.barrier()


def _libraries(config: TrainConfig) -> None:
    """In the order and the way in which a run imports them."""
    from clusterft_trainer import imports

    with imports.collector_at_rest():
        importlib.import_module("clusterft_trainer.train")
    imports.classes()
    if isinstance(config.engine, Zero):
        imports.deepspeed()


def _model(config: TrainConfig) -> str:
    """Judged from headers, as a run begins by doing; by its sign other nodes' models are told apart."""
    from clusterft_trainer import builtin
    from clusterft_trainer.model import files, stored

    if config.model == builtin.MODEL:
        if config.vae is not None:
            files.check_vae(config.vae)
        return ""
    files.check(config.model, config.tokenizers, config.vae)
    return stored.fingerprint(Path(config.model))


def _pictures(config: TrainConfig) -> None:
    """A few of each folder; what else a source names must at least be there."""
    for source in config.data.sources:
        if isinstance(source, BuiltinSource):
            continue
        for kind in ("folder", "kohya", "table", "tars", "tagged"):
            place = getattr(source, kind, None)
            if isinstance(place, str) and place.startswith("/") and not set("*?[") & set(place):
                _there(place)
        if isinstance(source, FolderSource) and source.folder.startswith("/"):
            _folder(source.folder)


def _there(place: str) -> None:
    try:
        if os.path.isdir(place):
            with os.scandir(place) as entries:
                next(entries, None)
        else:
            with open(place, "rb") as file:
                file.read(1)
    except PermissionError as error:
        raise DataError(
            f"{place}, which the job reads, cannot be read by the run's user, {os.geteuid()}:{os.getegid()}.",
            f"sudo chmod -R a+rX {shlex.quote(place)}",
        ) from error
    except OSError as error:
        raise DataError(
            f"{place}, which the job reads, cannot be read: {error.strerror or error}.",
            "Put it there on every node, readable for the run's user, or correct the path in job.yaml.",
        ) from error


def _folder(folder: str) -> None:
    """A picture that is broken is the job's own affair (data.problems); none that is well is not."""
    from clusterft_trainer import decoding
    from clusterft_trainer.corpus.look import Reader

    names = list(itertools.islice(_pictures_of(folder), _LISTED))
    if not names:
        return
    wrong: DataError | None = None
    reader = Reader(folder)  # which a run reads with as well
    try:
        for name in names[:: max(1, len(names) // _TRIED)]:
            try:
                fault = _led_astray(folder, name) or _decoded(reader, folder, name)
            except decoding.BROKEN as error:
                fault = _broken(folder, name, error)
            if fault is None:
                return
            wrong = wrong or fault
    finally:
        reader.close()
    if wrong is not None:
        raise wrong


def _decoded(reader: Reader, folder: str, name: str) -> DataError | None:
    from PIL import Image

    from clusterft_trainer import decoding

    try:
        with os.fdopen(reader.opened(os.path.relpath(name, folder)), "rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                return DataError(
                    f"{name} is a Git LFS pointer, and no picture.",
                    "`git lfs pull` where it was cloned, or copy the pictures again.",
                )
            file.seek(0)
            with Image.open(file) as picture:
                decoding.rgb(picture)
    except PermissionError as error:
        raise DataError(
            f"The picture {name} cannot be read: {error.strerror}.",
            f"sudo chmod -R a+rX {shlex.quote(os.path.dirname(name))}",
        ) from error
    return None


def _led_astray(folder: str, name: str) -> DataError | None:
    """A run reads no file outside of the folder, wherever a link may lead."""
    real = os.path.realpath(name)
    outside = not real.startswith(os.path.realpath(folder).rstrip("/") + "/")
    gone = os.path.islink(name) and not os.path.lexists(real)
    if not outside and not gone:
        return None
    why = "is not there for a rank" if gone else f"lies outside of {folder}: no run reads it"
    return DataError(
        f"{name} is a link to {real}, which {why}.",
        f"Real files in place of links, made where what they lead to is there: "
        f"rsync -aL {shlex.quote(folder.rstrip('/') + '/')} NEW/   and NEW in its place, or in job.yaml.",
    )


def _broken(folder: str, name: str, error: BaseException) -> DataError:
    return DataError(
        f"None of the pictures that were tried in {folder} can be decoded; {name}: {error}.",
        f"Look at one of them: ls -lL and file of {shlex.quote(name)}; copy them again, or name another folder.",
    )


def _pictures_of(folder: str) -> Iterator[str]:
    from clusterft_trainer.corpus.picture import SUFFIXES, suffix_of

    for place, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for name in files:
            if suffix_of(name) in SUFFIXES and not name.startswith("."):
                yield os.path.join(place, name)


def _processes() -> None:
    """A helper process as those that look at pictures, and a file for a moment."""
    with tempfile.TemporaryFile() as file:
        file.write(bytes(1 << 16))
        file.flush()
        os.fsync(file.fileno())
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        pool.submit(os.getpid).result(_HELPER)
