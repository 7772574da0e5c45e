"""Whether every entry of a cache is what was written: shards of ours, and trees of kohya's .npz files.

Owns looking at each entry (readable, shape against its bucket, finite, checksum) in several processes, and moving
aside what is not whole: of a shard the good entries are written into a new one first, so that only the bad are
lost, and prep makes those again where their pictures are. What was moved is listed in `bad.jsonl` beside it.
Refuses to delete anything: a file that was moved aside ends in `.bad`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from clusterft_trainer import disk, kohya
from clusterft_trainer.errors import ConfigError, DataError, RunError, storing
from clusterft_trainer.latents import shard, tables
from clusterft_trainer.latents.catalogue import shard_names
from clusterft_trainer.latents.shard import Form, Handle, Shard
from clusterft_trainer.latents.spreading import spread

JOURNAL = "bad.jsonl"
ASIDE = ".bad"  # how names of files end that were moved aside
FOUND_BAD = 3  # the exit code: a check blocks
_SCHEMA = 1
_SHOWN = 5
_PER_TASK = 256  # .npz files
_FEW = 8192
_TELL_EVERY = 10.0  # seconds
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Bad:
    """One entry that is not whole; all of a file where `entry` is -1."""

    file: str  # relative to the folder
    entry: int
    why: str
    key: str = ""  # in hexadecimal, of an entry of a shard


@dataclass(frozen=True, slots=True)
class Looked:
    """What was seen in some files."""

    entries: int
    bytes: int
    bad: tuple[Bad, ...] = ()


@dataclass(slots=True)
class Report:
    """What there is in a folder, and what is wrong with it."""

    folder: str
    files: int = 0
    entries: int = 0
    bytes: int = 0
    bad: int = 0
    moved: int = 0  # files
    seconds: float = 0.0
    first: list[Bad] = field(default_factory=list)

    def add(self, files: int, looked: Looked) -> None:
        """Count what one task saw."""
        self.files += files
        self.entries += looked.entries
        self.bytes += looked.bytes
        self.bad += len(looked.bad)
        self.first += looked.bad[: _SHOWN - len(self.first)]

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"schema": _SCHEMA, **asdict(self)})

    def text(self) -> str:
        """For a person."""
        rate = self.bytes / 1e6 / self.seconds if self.seconds else 0.0
        lines = [
            f"{self.folder}: {self.entries} entries in {self.files} files, {self.bytes / 1e9:.2f} GB "
            f"in {self.seconds:.1f} s ({rate:.0f} MB/s), {self.bad} bad"
        ]
        for one in self.first:
            lines.append(f"  {one.file}{'' if one.entry < 0 else f' entry {one.entry}'}: {one.why}")
        if self.bad > len(self.first):
            lines.append(f"  and {self.bad - len(self.first)} more")
        if self.moved:
            lines.append(f"  {self.moved} files were moved aside, see {JOURNAL}; prep makes again what they held")
        return "\n".join(lines) + "\n"


def cache(folder: Path, *, processes: int = 1, move: bool = True) -> Report:
    """Look at all shards of a folder; move aside those that are not whole, after saving what is good of them."""
    _refuse_missing(folder)
    report, began = Report(str(folder)), time.monotonic()
    tasks = ((folder, name) for name in shard_names(folder))
    for (_, name), looked in spread(look_at_shard, tasks, processes):
        report.add(1, looked)
        if looked.bad and move:
            save_good(folder / name, looked.bad)
            set_aside(folder, name, looked.bad)
            report.moved += 1
        _tell(report, began)
    report.seconds = time.monotonic() - began
    return report


def npz(
    root: Path, *, processes: int = 1, move: bool = True, sizes: frozenset[tuple[int, int]] | None = None
) -> Report:
    """Look at all .npz files below a folder; `sizes` are those of the buckets, where they are known."""
    _refuse_missing(root)
    report, began = Report(str(root)), time.monotonic()
    tasks = ((root, names, sizes) for names in _portions(_walk(root, ""), _PER_TASK))
    for (_, names, _), looked in spread(_look_at_npz, tasks, processes):
        report.add(len(names), looked)
        if move:
            for bad in looked.bad:
                set_aside(root, bad.file, (bad,))
            report.moved += len(looked.bad)
        _tell(report, began)
    report.seconds = time.monotonic() - began
    return report


def _refuse_missing(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", "Give the folder of a cache, or of .npz files.")


def _tell(report: Report, began: float) -> None:
    passed = time.monotonic() - began
    if passed - report.seconds >= _TELL_EVERY:
        report.seconds = passed
        sys.stderr.write(f"{report.entries} entries, {report.bytes / 1e9:.1f} GB, {report.bad} bad\n")


# ---- shards


def look_at_shard(task: tuple[Path, str]) -> Looked:
    """All entries of a shard."""
    folder, name = task
    path = folder / name
    try:
        handle = Handle(path)
        found = Shard(path, handle)
        keys = found.tables()[2]
        _refuse_other_shape(path, found.form)
    except DataError as error:
        return Looked(0, path.stat().st_size, (Bad(name, -1, error.message),))
    except OSError as error:
        raise unread(path, error) from error
    room: np.ndarray = np.empty(found.form.size, np.uint8)
    bad = []
    for slot in range(found.count):
        try:
            found.into(handle, slot, room, check=True)
            _refuse_endless(path, slot, found.form, room)
        except DataError as error:
            bad.append(Bad(name, slot, error.message, keys[slot].tobytes().hex()))
        except OSError as error:
            raise unread(path, error) from error
    return Looked(found.count, os.fstat(handle.number).st_size, tuple(bad))


def unread(path: Path, error: OSError) -> RunError:
    """A file that storage does not give now may be whole."""
    return RunError(
        "storage", f"{path} could not be read: {error.strerror}.", "Check that storage, then verify again."
    )


def _refuse_other_shape(path: Path, form: Form) -> None:
    """Latents are an eighth of their bucket; text states belong to none."""
    wanted = (form.height // kohya.FACTOR, form.width // kohya.FACTOR)
    if form.width and any(array.shape[-2:] != wanted for array in form.arrays):
        raise tables.damaged(path, f"its arrays are not of its bucket, {form.width}x{form.height}")


def _refuse_endless(path: Path, slot: int, form: Form, raw: np.ndarray) -> None:
    at = 0
    for array in form.arrays:
        part = raw[at : at + array.size]
        if array.dtype == "BF16":
            whole = not ((part.view("<u2") & np.uint16(0x7F80)) == np.uint16(0x7F80)).any()
        else:
            whole = finite(part.view(tables.DTYPES[array.dtype]))
        if not whole:
            raise tables.damaged(path, f"{array.name} of entry {slot} holds numbers that are not finite")
        at += array.size


def finite(values: np.ndarray) -> bool:
    """Whether all numbers are."""
    # The sum of few squares tells it in half the time, unless it overflows; of many it would come from threads.
    if values.size <= _FEW and math.isfinite(np.vdot(values, values)):
        return True
    return bool(np.isfinite(values).all())


def save_good(path: Path, bad: tuple[Bad, ...]) -> None:
    """Write the entries that are whole into a shard of their own."""
    lost = {one.entry for one in bad}
    if -1 in lost:
        return
    handle = Handle(path)
    found = Shard(path, handle)
    kept = [slot for slot in range(found.count) if slot not in lost]
    if kept:
        payloads = [found.stored(handle, slot, check=True) for slot in kept]
        shard.save(path.parent, found.form, found.tables()[2][kept], payloads)


# ---- .npz files


def _walk(root: Path, below: str) -> Iterator[str]:
    """Relative names of all .npz files, folder by folder; links to folders are not followed."""
    folders = []
    with os.scandir(root / below) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{below}{entry.name}/")
            elif entry.name.endswith(kohya.SUFFIX):
                yield below + entry.name
    for folder in sorted(folders):
        yield from _walk(root, folder)


@lru_cache(maxsize=1)
def _reader() -> kohya.Reader:
    """One for each process: what it knows of the layout of files is worth keeping."""
    return kohya.Reader()


def _look_at_npz(task: tuple[Path, list[str], frozenset[tuple[int, int]] | None]) -> Looked:
    root, names, sizes = task
    reader, total, bad = _reader(), 0, []
    for name in names:
        try:
            values = _read_npz(reader, f"{root}/{name}", sizes)
            for one in values:
                total += one.nbytes
                if not finite(one):
                    raise kohya.damaged(root / name, "it holds numbers that are not finite")
        except DataError as error:
            bad.append(Bad(name, -1, error.message))
    return Looked(len(names), total, tuple(bad))


def _read_npz(reader: kohya.Reader, path: str, sizes: frozenset[tuple[int, int]] | None) -> list[np.ndarray]:
    """The arrays of a file, after comparing them with its name and its bucket."""
    own = path[path.rfind("/") + 1 :]
    known = kohya.parsed(own)
    if known is None:
        if not own.endswith(kohya.TEXT_SUFFIX):
            return [kohya.latents(Path(path))]
        states = kohya.read_text(Path(path), pooled=True)
        return [states.one, states.two, states.pooled]
    cached = reader.read(path)
    if known.size is not None and known.size != cached.original:
        raise kohya.damaged(Path(path), f"it is of a picture of {cached.original}, its name says {known.size}")
    if sizes is not None:
        height, width = cached.latents.shape[1:]
        if (width * kohya.FACTOR, height * kohya.FACTOR) not in sizes:
            size = f"{width * kohya.FACTOR}x{height * kohya.FACTOR}"
            raise kohya.damaged(Path(path), f"{size} is none of the buckets")
    return [cached.latents] if cached.flipped is None else [cached.latents, cached.flipped]


# ---- both


def set_aside(folder: Path, name: str, bad: tuple[Bad, ...]) -> None:
    """Note what was bad, then take the file's name away; the note comes first, so that none is moved unnoticed."""
    lines = "".join(json.dumps({"schema": _SCHEMA, **asdict(one)}) + "\n" for one in bad)
    with storing("The list of bad entries", folder / JOURNAL):
        handle = os.open(folder / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(handle, lines.encode("utf-8", "surrogateescape"))
            os.fsync(handle)
        finally:
            os.close(handle)
    path = folder / name
    with storing("The bad file", path):
        path.replace(path.with_name(path.name + ASIDE))
        disk.flush(path.parent)


def _portions(names: Iterable[_T], count: int) -> Iterator[list[_T]]:
    rest = iter(names)
    while portion := list(islice(rest, count)):
        yield portion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `verify` can be asked."""
    parser.add_argument("folder", type=Path, help="of a cache (latents/<recipe>), or of kohya's .npz files")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="how many look at once")
    parser.add_argument("--report-only", action="store_true", help="move nothing aside")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """Look at a folder, tell, and return the exit code: 0 if all is whole, 3 if something was not."""
    if arguments.processes < 1:
        raise ConfigError("--processes is at least 1.", "Leave it out for all cores.")
    folder: Path = arguments.folder
    _refuse_missing(folder)
    look = cache if shard_names(folder) else npz
    report = look(folder, processes=arguments.processes, move=not arguments.report_only)
    if not report.files:
        raise DataError(f"There is neither a shard nor an .npz file in {folder}.", "Give another folder.")
    sys.stdout.write(report.to_json() + "\n" if arguments.json else report.text())
    return FOUND_BAD if report.bad else 0
