"""Commands with deadlines, and processes that are known by more than a number.

Owns every call of another program that the lab makes, and the identity of the
processes it starts: a pid together with the start time the kernel gives it. What a
process has begun is known by a mark that outlives it.
Refuses to signal anything whose start time differs, because pids are reused,
and never looks a process up by its name.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .errors import LabError

# Users' shells often lack the administrator's directories, where ip, tc and sshd live.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def which(program: str) -> str | None:
    """Absolute path of a program, looked for in the administrator's directories too."""
    return shutil.which(program, path=_PATH)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for our commands: this one, a full PATH, and messages in English."""
    return {**os.environ, "PATH": _PATH, "LC_ALL": "C", **(extra or {})}


def run(
    argv: Sequence[str],
    *,
    timeout: float = 30,
    check: bool = True,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; a failure or an overrun names the command and its last words."""
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment(env),
            check=False,
            # A Ctrl-C in the terminal is for us: it must not cut our clean-up commands short.
            start_new_session=True,
            pass_fds=(_mark(os.getpid()),),
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"no end after {timeout:.0f} s: {shlex.join(argv)}") from error
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not installed") from error
    if check and done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise LabError(f"exit {done.returncode}: {shlex.join(argv)}\n{words}")
    return done


def start(
    argv: Sequence[str], note: Callable[[ProcessId], None], log: IO[bytes], env: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a program that stays; it waits until `note` has written it down, and ends if we die before."""
    child = subprocess.Popen(
        ["sh", "-c", 'read -r _ && exec "$@" </dev/null', "sh", *argv],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        start_new_session=True,
        env=env,
        cwd="/",
    )
    process = ProcessId.of(child.pid)
    assert process is not None and child.stdin is not None, "a child that nobody has waited for"
    with contextlib.suppress(BrokenPipeError), child.stdin as gate:
        note(process)
        gate.write(b"go\n")
    return child


def until(met: Callable[[], bool], timeout: float, what: str) -> None:
    """Wait for a condition; an overrun says what was waited for."""
    deadline = time.monotonic() + timeout
    pause = 0.01
    while not met():
        if time.monotonic() > deadline:
            raise LabError(f"waited {timeout:.0f} s for {what}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name sits in parentheses and may hold blanks and parentheses itself.
    return text.rpartition(")")[2].split()


@dataclass(frozen=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same pid."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has this pid now."""
        fields = _stat(pid)
        return cls(pid, int(fields[19])) if fields else None

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        fields = _stat(self.pid)
        return fields is not None and int(fields[19]) == self.start and fields[0] not in "ZX"

    def state(self) -> str:
        """The kernel's state letter, or an empty string when it is gone."""
        fields = _stat(self.pid)
        return fields[0] if fields and int(fields[19]) == self.start else ""

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process is gone."""
        if self.alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def end(self, grace: float = 0) -> None:
        """Ask it to end if there is a grace period, then kill it, and wait until it is gone."""
        if grace > 0:
            self.signal(signal.SIGTERM)
            deadline = time.monotonic() + grace
            while self.alive() and time.monotonic() < deadline:
                time.sleep(0.02)
        self.signal(signal.SIGKILL)
        until(lambda: not self.alive(), 10, f"process {self.pid} to die")


def all_processes() -> Iterable[ProcessId]:
    """Every process of this machine that we can see."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := ProcessId.of(int(entry))):
            yield found


def children_of(pid: int) -> list[ProcessId]:
    """The processes that this one started and that still run."""
    return [one for one in all_processes() if (_stat(one.pid) or ["", "0"])[1] == str(pid)]


@functools.cache
def _mark(pid: int) -> int:
    """A file in memory that each command of this process holds open from its very first instant."""
    mine = ProcessId.of(pid)
    assert mine is not None
    return os.memfd_create(_mark_of(mine))


def _mark_of(owner: ProcessId) -> str:
    return f"clusterft-lab-{owner.pid}-{owner.start}"


def begun_by(owner: ProcessId) -> list[ProcessId]:
    """The commands of a process that has died, which go on without it."""
    held = f"/memfd:{_mark_of(owner)} (deleted)"

    def holds(process: ProcessId) -> bool:
        place = f"/proc/{process.pid}/fd"
        try:
            return any(os.readlink(f"{place}/{number}") == held for number in os.listdir(place))
        except OSError:  # it has ended, or closed that file, or belongs to somebody else
            return False

    return [process for process in all_processes() if process.pid != os.getpid() and holds(process)]


def in_namespace(kind: str, inode: int) -> list[ProcessId]:
    """The processes inside one namespace, which is known by its inode."""

    def inside(process: ProcessId) -> bool:
        try:
            return os.stat(f"/proc/{process.pid}/ns/{kind}").st_ino == inode
        except OSError:
            return False

    return [process for process in all_processes() if inside(process)]
