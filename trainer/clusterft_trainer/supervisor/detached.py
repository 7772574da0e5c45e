"""Running a supervisor as a detached process of a plain node: start it, follow what it says, stop it.

The directory of a run on a node holds `assignment.json`, `supervisor.json` (who runs it) and `stream.jsonl` (what
it said). The node's lock file is held for as long as the supervisor lives, so a second run cannot start there.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn, TextIO

from clusterft_trainer import assignment as assignments
from clusterft_trainer import stream
from clusterft_trainer.assignment import Assignment
from clusterft_trainer.rank import start_time
from clusterft_trainer.supervisor import processes
from clusterft_trainer.supervisor.part import TOMBSTONE, Part, stops_asked
from clusterft_trainer.supervisor.tails import Tail

_TICK = 0.05
_HEARTBEAT = 10.0  # seconds; a blank line, so that a follower whose reader is gone notices and ends
_DIES = 5.0  # seconds from SIGKILL to the end
_PARTS = 12.0  # from a part's last word to its end, while its logs are copied
_LINE = 1 << 16  # bytes that hold a last word
BUSY = 3
_ENDED = stream.encode(stream.Ended("ok", 0, 0.0)).partition(', "end"')[0]


def start(directory: Path) -> int:
    """Start the supervisor of a run directory, detached; prints one JSON line: its pid, or who is in the way."""
    assignment = assignments.parse((directory / "assignment.json").read_text(encoding="utf-8"))
    if assignment.lock_file is None:
        raise ValueError("this part has no lock file: it belongs into a container")
    lock = _lock(Path(assignment.lock_file), assignment.run)
    if isinstance(lock, str):
        if assignment.secrets_file:
            Path(assignment.secrets_file).unlink(missing_ok=True)  # nobody will read them
        _print({"busy": lock})
        return BUSY
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        _become_detached(directory, assignment, lock, writer)
    os.close(writer)
    lock.close()  # the child holds it now
    with os.fdopen(reader, encoding="utf-8") as answer:
        pid = answer.read()
    if not pid:
        _print({"error": (directory / "supervisor.log").read_text(encoding="utf-8", errors="replace")})
        return 1
    _print({"pid": int(pid)})
    return 0


def follow(directory: Path, skip: int = 0) -> int:
    """Print the stream from line `skip` on until the run is over on this node."""
    tail, quiet_since = Tail(directory / "stream.jsonl"), time.monotonic()
    tail.skip(skip)
    caught_up = False
    while True:
        alive = _alive(directory)  # asked before reading: what was said before the end is still read
        lines = list(tail.lines(final=not alive))
        if lines:
            quiet_since = time.monotonic()
            sys.stdout.write("\n".join(lines) + "\n")
        if any(text.startswith(_ENDED) for text in lines):
            sys.stdout.flush()
            return 0
        if alive and time.monotonic() - quiet_since > (_HEARTBEAT if caught_up else 0.0) and not tail.behind:
            # The first one says that this was all so far: who only wants to look need not wait for more. Of one
            # that has ended, the last line says it.
            quiet_since, caught_up = time.monotonic(), True
            sys.stdout.write("\n")
        if not alive and not tail.behind:
            sys.stdout.write(stream.encode(stream.Vanished(time.time())) + "\n")
            sys.stdout.flush()
            return 1
        sys.stdout.flush()
        if not tail.behind:
            time.sleep(_TICK)


def stop(directory: Path, times: int = 1) -> int:
    """Ask the supervisor to stop: once, after its ranks have saved; twice, at once.

    The tombstone comes first: a start that is still under way (its caller gave up on it) finds it and ends. To ask
    again for what was asked already changes nothing: whoever types a stop twice still wants the checkpoint.
    """
    new = _leave_word(directory, times)
    pid, began = processes.read_note(directory / "supervisor.json")
    alive = bool(pid) and start_time(pid) == began
    if alive and new:
        os.kill(pid, signal.SIGTERM)
    _print({"told": alive})
    return 0


def end(directory: Path) -> int:
    """End a part of a run that is over, or that never began: at once, and without a word of its own.

    One that waits for a head which it cannot reach would hold its node for as long as its patience lasts.
    """
    _leave_word(directory, stops_asked(directory) + 1)  # a start that is still under way ends by itself
    pid, began = processes.read_note(directory / "supervisor.json")
    alive = bool(pid) and start_time(pid) == began
    if alive and not _saying_farewell(directory, pid, began):
        os.kill(pid, signal.SIGKILL)
    for logs in (directory / "logs").glob("attempt-*"):
        processes.signal_ranks(logs, signal.SIGKILL)
    _await_end(pid, began, _DIES)
    _print({"ended": alive})
    return 0


def _saying_farewell(directory: Path, pid: int, began: int | None) -> bool:
    """Whether it has said its last word, and ends by itself once the shared dir has all of it."""
    try:
        with (directory / "stream.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LINE))
            last = file.read().rstrip(b"\n").rpartition(b"\n")[2]
    except FileNotFoundError:
        return False
    return last.startswith(_ENDED.encode()) and _await_end(pid, began, _PARTS)


def _await_end(pid: int, began: int | None, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while pid and start_time(pid) == began:
        if time.monotonic() > deadline:
            return False
        time.sleep(_TICK)
    return True


def _leave_word(directory: Path, times: int) -> bool:
    """A line for each time that a stop is asked for; whether that is news."""
    missing = times - stops_asked(directory)
    if missing > 0 and directory.is_dir():
        with (directory / TOMBSTONE).open("a", encoding="ascii") as stone:
            stone.write("asked\n" * missing)
    return missing > 0


def note_process(directory: Path) -> None:
    """Leave word of who supervises here: for those who follow, and those who stop."""
    note = directory / "supervisor.json"
    draft = note.with_suffix(".new")
    draft.write_text(json.dumps({"pid": os.getpid(), "start": start_time(os.getpid())}), encoding="ascii")
    draft.replace(note)


def _alive(directory: Path) -> bool:
    pid, began = processes.read_note(directory / "supervisor.json")
    return bool(pid) and start_time(pid) == began


def _lock(path: Path, run: str) -> TextIO | str:
    """The open lock file, or the name of the run that holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another run"
        lock.close()
        return holder
    lock.truncate(0)
    lock.write(run + "\n")
    lock.flush()
    return lock


def _become_detached(directory: Path, assignment: Assignment, lock: TextIO, writer: int) -> NoReturn:
    """In the child: leave the caller's session, say who we are, run to the end."""
    os.setsid()
    log = os.open(directory / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    part = Part(assignment, directory)
    note_process(directory)
    if stops_asked(directory):
        sys.stderr.write("the run was stopped before it started here\n")
        sys.stderr.flush()
        os._exit(1)
    os.write(writer, str(os.getpid()).encode())
    os.close(writer)
    code = part.run()
    lock.close()
    os._exit(code)


def _print(body: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(body) + "\n")
    sys.stdout.flush()
