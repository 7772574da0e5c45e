"""What a killed ingest has left half written, and that nobody writes any more.

Owns the lock of a draft, which ends with its writer, and the age after which one that is not locked is deleted:
some file systems have no locks, or keep them from other nodes. Age is told by the clock that stamps files there,
so nodes' clocks do not matter. Refuses to guess: what is young, locked or cannot be looked at stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from pathlib import Path
from typing import IO, Any

from clusterft_trainer.disk import DRAFT

OLD = 3600.0  # seconds without a byte written; publishing writes all the time, and takes minutes at most
LOCKED = "sizes.int32"  # of a generation's files the one that its writer holds


def hold(file: IO[Any]) -> None:
    """Keep a draft's file locked as long as it is open."""
    with contextlib.suppress(OSError):  # some file systems know no locks: age has to do
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def clear(home: Path) -> int:
    """Delete drafts in the folders of a home that were left behind; how many."""
    found = list(home.glob(f"*/{DRAFT}*"))
    if not found:
        return 0
    now = _now(found[0].parent)
    return 0 if now is None else sum(_cleared(path, now) for path in found)


def _now(folder: Path) -> float | None:
    """The time there, by a file that is made for it; None where none can be made."""
    path = folder / f"{DRAFT}clock-{secrets.token_hex(4)}"
    try:
        path.touch()
        try:
            return path.stat().st_mtime
        finally:
            path.unlink(missing_ok=True)
    except OSError:
        return None


def _cleared(path: Path, now: float) -> bool:
    try:
        if now - _written(path) < OLD:
            return False
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return True
        with contextlib.ExitStack() as held:
            lock = path / LOCKED
            if lock.exists() and not _free(held.enter_context(lock.open("r+b"))):
                return False
            shutil.rmtree(path, ignore_errors=True)  # another node may be at it too
        return True
    except OSError:
        return False  # the next ingest looks again


def _written(path: Path) -> float:
    """When something of it was written last."""
    times = [path.stat().st_mtime]
    if path.is_dir():
        with os.scandir(path) as entries:
            times += [entry.stat().st_mtime for entry in entries]
    return max(times)


def _free(file: IO[bytes]) -> bool:
    """Whether nobody holds it, as far as this file system tells."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # it knows no locks
    return True
