"""Fork: one task in a process of its own, from a process in which torch is imported and nothing of it was used.

Owns its deadline, and that it ends with its parent. One that sleeps in the kernel is left behind, and called late.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any

Tell = Callable[[dict[str, Any]], None]
Task = Callable[[dict[str, Any], Tell], None]

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_KEPT = 3000  # bytes of what it says on stderr
_STUCK = 2.0  # seconds that a killed process gets to be gone
FAILED = 70  # the exit code of a task that told its error itself


class Fork:
    """A running task; `code` is None until it ended, or for good if it could not be ended."""

    def __init__(
        self, group: str, slot: int, task: Task, given: dict[str, Any], env: dict[str, str], seconds: float
    ) -> None:
        self.group, self.slot = group, slot
        self.code: int | None = None
        self.late = False
        self._until = time.monotonic() + seconds
        self._killed: float | None = None
        self._said, self._errors = b"", b""
        answers, complaints = os.pipe(), os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            _work(task, given, env, parent, answers[1], complaints[1])
        os.close(answers[1])
        os.close(complaints[1])
        self._answers, self._complaints = answers[0], complaints[0]
        self.pipes: tuple[int, ...] = (answers[0], complaints[0])
        for pipe in self.pipes:
            os.set_blocking(pipe, False)

    @property
    def words(self) -> str:
        """The end of what it said on stderr."""
        return self._errors.decode(errors="replace").strip()

    def read(self) -> list[dict[str, Any]]:
        """What it has told since the last time."""
        for pipe in self.pipes:
            self._drain(pipe)
        *lines, self._said = self._said.split(b"\n")
        return [json.loads(line) for line in lines]

    def over(self) -> bool:
        """Whether it ended: what is read now is all. Past its deadline it is killed."""
        now = time.monotonic()
        if self._killed is None and now > self._until:
            self.late = True
            self.kill()
        if self.code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None or (self._killed is not None and now > self._killed + _STUCK)

    def kill(self) -> None:
        """It and what it started."""
        if self._killed is None:
            self._killed = time.monotonic()
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of its pipes."""
        for pipe in self.pipes:
            os.close(pipe)
        self.pipes = ()

    def _drain(self, pipe: int) -> None:
        while True:
            try:
                data = os.read(pipe, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                os.close(pipe)
                self.pipes = tuple(one for one in self.pipes if one != pipe)
                return
            if pipe == self._answers:
                self._said += data
            else:
                self._errors = (self._errors + data)[-_KEPT:]


def _work(task: Task, given: dict[str, Any], env: dict[str, str], parent: int, out: int, err: int) -> None:
    """In the child; never returns."""
    code = FAILED
    try:
        os.setsid()
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(FAILED)
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, null), (1, err), (2, err)):
            os.dup2(source, target)
        os.environ.update(env)
        task(given, lambda body: _tell(out, body))
        code = 0
    except BaseException as error:  # noqa: BLE001 - told to the controller, which knows what to make of it
        with contextlib.suppress(OSError):
            _tell(out, wrong(error))
            os.write(2, "".join(traceback.format_exception(error)).encode()[-_KEPT:])
    finally:
        os._exit(code)  # gloo's and NCCL's threads may wait for peers that are gone


def wrong(error: BaseException) -> dict[str, Any]:
    """An exception in its own words."""
    number = error.errno if isinstance(error, OSError) else None
    words = f"{type(error).__name__}: {error}".strip()
    return {"error": words[:1500], "kind": type(error).__name__, "errno": number}


def _tell(out: int, body: dict[str, Any]) -> None:
    left = memoryview(json.dumps(body).encode() + b"\n")
    while left:
        left = left[os.write(out, left) :]
