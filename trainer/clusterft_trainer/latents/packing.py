"""A tree of files as a row of tar files, and back: pictures with texts, .npz caches, or a cache of ours.

Files of one stem stay together, as webdataset wants it. Two layouts: by number of files in the order of names, or
a thousand tars by the last three digits of the stem (0042.tar holds 7042.webp and 7042.txt). Each tar has a list
beside it that tells where every file's bytes begin. Owns which file goes where, writing (the same files give the
same tars, each whole or not there, a rerun goes on) and unpacking. Refuses links, devices, names that lead out of
the folder, and to write over another file unless asked.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from clusterft_trainer import disk
from clusterft_trainer.errors import ConfigError, DataError, storing
from clusterft_trainer.latents import layout, tables, tarball
from clusterft_trainer.latents.landing import Landing
from clusterft_trainer.latents.layout import File
from clusterft_trainer.latents.spreading import spread
from clusterft_trainer.latents.tarball import BLOCK, END

_SCHEMA = 1
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_PIECES = 512  # buffers of one write; the system takes 1,024
_WAITING = 4 << 20  # bytes of one write
_SMALL = 1 << 20  # larger files are copied within the kernel
_CHUNK = 1 << 24
_JOBS, _FLUSHERS = 64, 8  # the most tars that a process does in a row, and that wait for the disk at once


@dataclass(frozen=True, slots=True)
class Job:
    """One tar to be written."""

    root: Path
    path: Path
    files: tuple[File, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What was packed or unpacked."""

    tars: int
    files: int
    bytes: int
    there: int  # tars or files that were there already
    links: int
    others: int
    aside: int
    seconds: float

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"schema": _SCHEMA, **asdict(self)})


def pack(root: Path, out: Path, *, files: int = 10_000, by_id: bool = False, processes: int = 1) -> Report:
    """Write the tree as tars into `out`; those that are there and as they should be stay."""
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.", "Give the folder whose files are to be packed.")
    if out.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"{out} lies in {root}, and would be packed itself.", "Give a folder beside it.")
    began = time.monotonic()
    tree = layout.survey(root)
    plan = layout.by_digits(tree.files) if by_id else layout.by_number(tree.files, files)
    with storing("The folder", out):
        out.mkdir(parents=True, exist_ok=True)
        for left in out.glob(f"{tables.DRAFT}*"):
            left.unlink()  # of a run that was killed
        _refuse_strangers(out, plan)
        jobs = [Job(root, out / name, group) for name, group in plan.items()]
        some = max(1, min(_JOBS, len(jobs) // (4 * processes)))
        there = sum(
            n for _, n in spread(_write, (jobs[k : k + some] for k in range(0, len(jobs), some)), processes)
        )
        disk.flush(out)
    total = sum(one.size for one in tree.files)
    passed = time.monotonic() - began
    return Report(len(plan), len(tree.files), total, there, tree.links, tree.others, tree.aside, passed)


def _refuse_strangers(out: Path, plan: dict[str, Any]) -> None:
    """Tars of an earlier, other tree would be read as part of this one."""
    strange = sorted(p.name for p in out.glob("*.tar") if p.name not in plan)
    if strange:
        raise DataError(
            f"{out} holds {len(strange)} tars that are no part of this tree, such as {strange[0]}.",
            "Give an empty folder, or remove them.",
        )


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def _write(jobs: Sequence[Job]) -> int:
    """Write some tars and their lists; how many were there already. The disk flushes some beside the next."""
    there, waiting = 0, deque[Future[None]]()
    with ThreadPoolExecutor(_FLUSHERS) as pool:
        for job in jobs:
            total, text = _listed(job)
            if _is_there(job, total, text):
                there += 1
                continue
            draft = tables.draft_of(job.path)
            with storing("The tar", job.path):
                handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                try:
                    _fill(handle, job)
                except BaseException:
                    os.close(handle)
                    draft.unlink()
                    raise
            waiting.append(pool.submit(_finish, handle, draft, job.path, text))
            if len(waiting) > _FLUSHERS:
                waiting.popleft().result()
        for finished in waiting:
            finished.result()
    return there


def _listed(job: Job) -> tuple[int, str]:
    """Bytes that a tar will have, and the list that goes beside it."""
    places, at = {}, 0
    for name, size, _ in job.files:
        if size > tarball.LARGEST:
            raise DataError(f"{job.root / name} has {size} bytes, too many for a tar.", "Leave it out.")
        at += len(tarball.header(name, size))
        places[os.fsencode(name).decode("utf-8", "replace")] = {"offset": at, "size": size}
        at += size + tarball.padding(size)
    total = at + len(END)
    return total, json.dumps(contents(total, places), ensure_ascii=False)


def contents(total: int, places: dict[str, dict[str, int]]) -> dict[str, Any]:
    """What a tar holds, in the order in which it lies there."""
    return {
        "schema": _SCHEMA,
        "filesize": total,  # bytes of the tar
        "files": places,  # name -> offset of its first byte in the tar, and size
    }


def _finish(handle: int, draft: Path, path: Path, text: str) -> None:
    with storing("The tar", path):
        try:
            os.fsync(handle)
            _beside(path).unlink(missing_ok=True)  # the list of another tar must not stand beside this one
            draft.replace(path)
            _put(_beside(path), text)
        finally:
            os.close(handle)
            draft.unlink(missing_ok=True)


def _is_there(job: Job, total: int, text: str) -> bool:
    """Whether a tar of these files was written after the last change of any of them."""
    try:
        stat = job.path.stat()
        if stat.st_size != total or _beside(job.path).read_text(encoding="utf-8") != text:
            return False
    except (FileNotFoundError, UnicodeDecodeError):
        return False
    return stat.st_mtime_ns > max(one.changed for one in job.files)


def _put(path: Path, text: str) -> None:
    """Not flushed: a list that a power cut tore is another one than is expected, so a rerun writes it."""
    draft = tables.draft_of(path)
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _fill(out: int, job: Job) -> None:
    """Headers and files, gathered into large writes."""
    pieces: list[bytes] = []
    waiting = 0
    root = os.open(job.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name, size, _ in job.files:
            source = os.open(name, _OPEN, dir_fd=root)
            try:
                if os.fstat(source).st_size != size:
                    raise _changed(job.root / name)
                pieces.append(tarball.header(name, size))
                if size > _SMALL:
                    _write_out(out, pieces)
                    waiting = 0
                    _copy(source, out, size, job.root / name)
                else:
                    body = os.read(source, size)
                    if len(body) != size:
                        raise _changed(job.root / name)
                    pieces.append(body)
                    waiting += size
            finally:
                os.close(source)
            if size % BLOCK:
                pieces.append(_ZEROS[: tarball.padding(size)])
            if len(pieces) >= _PIECES or waiting >= _WAITING:
                _write_out(out, pieces)
                waiting = 0
        pieces.append(END)
        _write_out(out, pieces)
    finally:
        os.close(root)


_ZEROS = bytes(BLOCK)


def _write_out(out: int, pieces: list[bytes]) -> None:
    total = sum(map(len, pieces))
    done = os.writev(out, pieces)
    if done < total:  # rare: a signal, or a disk that is nearly full
        rest = memoryview(b"".join(pieces))[done:]
        while rest:
            rest = rest[os.write(out, rest) :]
    pieces.clear()


def _copy(source: int, out: int, size: int, path: Path) -> None:
    left = size
    while left:
        done = os.sendfile(out, source, None, min(left, _CHUNK))
        if not done:
            raise _changed(path)
        left -= done


def _changed(path: Path) -> DataError:
    return DataError(f"{path} changed while it was packed.", "Run pack again when nobody writes there.")


def unpack(tars: Sequence[Path], out: Path, *, overwrite: bool = False) -> Report:
    """The files of all tars below `out`; none is written before every name of its tar has been looked at."""
    began = time.monotonic()
    total = 0
    with Landing(out, overwrite=overwrite) as landing:
        for path in tars:
            try:
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise DataError(f"{path} cannot be opened ({error.strerror}).", "Give a tar file.") from error
            try:
                for member in list(tarball.members(path, handle)):
                    landing.put(member.name, member.size, partial(_chunks, handle, member))
                    total += member.size
            finally:
                os.close(handle)
    files = landing.written + landing.there
    return Report(len(tars), files, total, landing.there, 0, 0, 0, time.monotonic() - began)


def _chunks(handle: int, member: tarball.Member) -> Iterator[bytes]:
    for at in range(0, member.size, _CHUNK):
        yield os.pread(handle, min(_CHUNK, member.size - at), member.offset + at)


def add_pack_arguments(parser: argparse.ArgumentParser) -> None:
    """What `pack` can be asked."""
    parser.add_argument("folder", type=Path, help="whose files are packed: pictures with texts, or a cache")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tars")
    parser.add_argument("--files", type=int, default=10_000, help="the most in a tar")
    parser.add_argument("--by-digits", action="store_true", help="a thousand tars, by the last digits of names")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="how many tars at once")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run_pack(arguments: argparse.Namespace) -> int:
    """Pack, and tell."""
    if arguments.files < 1 or arguments.processes < 1:
        raise ConfigError("--files and --processes are at least 1.", "Leave them out for the usual.")
    report = pack(
        arguments.folder,
        arguments.out,
        files=arguments.files,
        by_id=arguments.by_digits,
        processes=arguments.processes,
    )
    _say(report, f"tars in {arguments.out}, {report.there} of them as they were", json_wanted=arguments.json)
    return 0


def add_unpack_arguments(parser: argparse.ArgumentParser) -> None:
    """What `unpack` can be asked."""
    parser.add_argument("tars", type=Path, nargs="+", help="tar files, or folders with them")
    parser.add_argument("--out", type=Path, required=True, help="folder for their files")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there and differ")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run_unpack(arguments: argparse.Namespace) -> int:
    """Unpack, and tell."""
    tars: list[Path] = []
    for path in arguments.tars:
        found = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        if not found:
            raise DataError(f"There is no .tar file in {path}.", "Give tar files, or folders with them.")
        tars += found
    report = unpack(tars, arguments.out, overwrite=arguments.overwrite)
    _say(report, f"tars, {report.there} of the files were there", json_wanted=arguments.json)
    return 0


def _say(report: Report, rest: str, *, json_wanted: bool) -> None:
    if json_wanted:
        sys.stdout.write(report.to_json() + "\n")
        return
    rate = report.files / report.seconds if report.seconds else 0.0
    passed = [f"{report.links} links", f"{report.others} special files", f"{report.aside} drafts and .bad files"]
    left = ", ".join(word for word in passed if not word.startswith("0 "))
    sys.stdout.write(
        f"{report.files} files, {report.bytes / 1e9:.2f} GB in {report.seconds:.1f} s ({rate:.0f}/s): "
        f"{report.tars} {rest}{'; left out: ' + left if left else ''}\n"
    )
