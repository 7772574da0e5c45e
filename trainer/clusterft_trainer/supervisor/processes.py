"""Starting the launcher, and making sure that nothing of it outlives the supervisor.

Linux only. Processes are ended by id and only while the id still names the process that was meant.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from clusterft_trainer.rank import start_time

Launcher = subprocess.Popen[bytes]
PIPE = subprocess.PIPE
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)  # opened here: nothing may be loaded between a fork and its exec


def become_reaper() -> None:
    """Orphans of the launcher become our children, so that they can be found and ended."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def start(
    argv: tuple[str, ...], env: dict[str, str], cwd: str, log: Path, stdin: int = subprocess.DEVNULL
) -> Launcher:
    """Start the launcher in a session of its own, with its output in `log`."""
    with log.open("ab") as out:
        return subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=stdin,
            stdout=out,
            stderr=out,
            start_new_session=True,
            # If the supervisor is killed, the launcher is told to end, and it ends its ranks.
            preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509
        )


class Child:
    """A short-lived process of ours whose answer may never come: nobody waits for it longer than they like."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._rest = b""
        self.ended = False  # it will say no more
        if self._process.stdin is None or self._process.stdout is None:
            raise OSError("no pipes were made")
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._out, False)

    def say(self, text: str) -> None:
        """A line for its stdin; one that has ended hears nothing."""
        try:
            os.write(self._in, text.encode() + b"\n")
        except BrokenPipeError:
            self.ended = True

    def lines(self) -> list[str]:
        """Whole lines that it has said since."""
        while not self.ended:
            try:
                chunk = os.read(self._out, 1 << 16)
            except BlockingIOError:
                break
            self.ended = not chunk
            self._rest += chunk
        *whole, self._rest = self._rest.split(b"\n")
        return [line.decode(errors="replace") for line in whole]

    def code(self) -> int | None:
        """Its exit code, once it has one."""
        return self._process.poll()

    def close(self) -> None:
        """Its stdin ends, which tells it to tidy up; nobody listens any more."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self.ended = True

    def kill(self) -> None:
        """End it, if it can be ended: one that waits for a dead server cannot."""
        if self._process.poll() is None:
            self._process.kill()
        self.close()


def signal_ranks(log_dir: Path, number: int) -> int:
    """Send a signal to the ranks that noted their process; the count of those reached."""
    reached = 0
    for note in sorted(log_dir.glob("rank*.pid")):
        pid, began = read_note(note)
        if pid and start_time(pid) == began:
            reached += _send(pid, number)
    return reached


def gone_ranks(log_dir: Path) -> list[int]:
    """The ranks that noted their process, and whose process is no more."""
    gone = []
    for note in log_dir.glob("rank*.pid"):
        pid, began = read_note(note)
        if pid and start_time(pid) != began:
            gone.append(int(note.stem.removeprefix("rank")))
    return sorted(gone)


def rank_of(log_dir: Path, pid: int) -> int | None:
    """Which rank a process was."""
    for note in log_dir.glob("rank*.pid"):
        if read_note(note)[0] == pid:
            return int(note.stem.removeprefix("rank"))
    return None


def read_note(path: Path) -> tuple[int, int | None]:
    """The pid and start time in a note; pid 0 when there is none."""
    try:
        body = json.loads(path.read_text(encoding="ascii"))
        return int(body["pid"]), body["start"]
    except (OSError, ValueError, KeyError):
        return 0, None


def end_descendants(deadline: float, but: int = 0) -> None:
    """SIGKILL everything below this process and reap it, until nothing is left or the deadline passes.

    `but` is the pid of one that stays: it has no children.
    """
    while time.monotonic() < deadline:
        pids = [pid for pid in _descendants(os.getpid()) if pid != but]
        for pid in pids:
            _send(pid, signal.SIGKILL)
        reap()
        if not pids:
            return
        time.sleep(0.02)


def reap() -> None:
    """Collect dead orphans. The launcher itself may be among them: poll it first."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def _descendants(root: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text(encoding="ascii", errors="replace")
            except OSError:
                continue  # gone since the listing
            state, parent = stat.rpartition(")")[2].split()[:2]
            if state != "Z" or int(parent) == root:
                children.setdefault(int(parent), []).append(int(entry))
    queue = list(children.get(root, ()))
    while queue:
        pid = queue.pop()
        queue.extend(children.get(pid, ()))
        yield pid


def _send(pid: int, number: int) -> int:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return 0
    return 1


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
