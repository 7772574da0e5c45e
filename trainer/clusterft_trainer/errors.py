"""What the trainer raises when it must stop, and the exit code that follows.

    TrainerError            a cause that the user can act on: class, message, remedy
      ConfigError           the settings contradict each other or the machine   (exit code 2)
      DataError             the pictures, captions or model folder are not usable (exit code 2)
      RunError              training itself cannot go on: nan, resume, disk-full, rendezvous (exit code 5)

Also knows by which signs a disk refuses: `storing` stands around everything that a run writes. Refuses to print or
to exit: `__main__` does both, in one place.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USAGE = 2
RUN_FAILED = 5
FULL = (errno.ENOSPC, errno.EDQUOT)
MAKE_ROOM = "Make room there, then start again: the newest complete checkpoint is untouched."
# torch's writer of archives raises a RuntimeError that names no cause, with one of these in it
_TORCH_WRITER = ("inline_container.cc", "PytorchStreamWriter", "iostream error", "Parent directory")
_PROBE_BYTES = 1 << 20


class TrainerError(Exception):
    """A reason to stop, in the user's terms; `everywhere` tells that all ranks raise it together, by agreement.

    Then one of them tells it: the rank that met it, rank 0 where they met it together.
    """

    exit_code = RUN_FAILED
    met_by = 0

    def __init__(self, failure: str, message: str, remedy: str, *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = _placed(message)
        self.remedy = _placed(remedy)
        self.everywhere = everywhere

    def __reduce__(self) -> tuple[object, ...]:
        """Travel between ranks by pickle, keyword argument included."""
        return _restore, (type(self), self.failure, self.message, self.remedy, self.everywhere, self.met_by)

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


def _placed(words: str) -> str:
    """What is wrong here alone is told with the node's name, where the launcher has given one."""
    node = os.environ.get("CLUSTERFT_NODE")
    return words.replace("on this node", f"on {node}") if node else words


class ConfigError(TrainerError):
    """A setting that this trainer, model or machine cannot honour."""

    exit_code = USAGE

    def __init__(self, message: str, remedy: str, *, everywhere: bool = False) -> None:
        super().__init__("config", message, remedy, everywhere=everywhere)


class DataError(TrainerError):
    """Pictures, captions or a model folder that cannot be used as they are."""

    exit_code = USAGE

    def __init__(self, message: str, remedy: str, *, everywhere: bool = False) -> None:
        super().__init__("data", message, remedy, everywhere=everywhere)


class RunError(TrainerError):
    """Training started and cannot go on."""


@contextmanager
def storing(what: str, path: Path) -> Iterator[None]:
    """Tell a full or failing disk as one: it is the user's to mend, and no bug of the trainer."""
    try:
        yield
    except Exception as error:
        number = _disk_error(error, path)
        if number is None:
            raise
        named = str(error) if isinstance(error, OSError) or not number else os.strerror(number)
        raise RunError(
            "disk-full" if number in FULL else "storage",
            f"{what} {path} could not be written: {named}.",
            MAKE_ROOM if number in FULL else "Check that directory on this node, then start again.",
            everywhere=False,
        ) from error


def _disk_error(error: Exception, path: Path) -> int | None:
    """The errno behind an error of writing, 0 where it is unknown; None if no disk is to blame."""
    if isinstance(error, ConnectionError):
        return None
    if isinstance(error, OSError):
        return error.errno or 0
    text = str(error)
    if type(error).__name__ == "SafetensorError":
        found = re.search(r"os error (\d+)", text)
        return int(found[1]) if found else None
    if isinstance(error, RuntimeError) and any(sign in text for sign in _TORCH_WRITER):
        return _probe(path)
    return None


def _probe(path: Path) -> int:
    """Ask the disk itself, by writing a little where a library failed without giving a reason."""
    folder = next((p for p in (path, *path.parents) if p.is_dir()), Path("/"))
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno or 0
    return 0


def _restore(
    kind: type[TrainerError], failure: str, message: str, remedy: str, everywhere: bool, met_by: int
) -> TrainerError:
    error = kind.__new__(kind)
    TrainerError.__init__(error, failure, message, remedy, everywhere=everywhere)
    error.met_by = met_by
    return error
