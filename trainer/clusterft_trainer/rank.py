"""The first thing a training process does: write into a log of its own. Torch-free, standard library only.

Owns the redirection of stdout and stderr (on the level of file descriptors, so that what C++ says while it dies is
kept too), the note of this process's id, and stack dumps on SIGUSR2. Does nothing outside a clusterft run. Also
runs a user's own script in the same way: `python -m clusterft_trainer.rank SCRIPT ARGS`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import runpy
import signal
import sys
from pathlib import Path


def claim_log() -> None:
    """Point this rank's output at its own file, when the environment names a directory for it."""
    directory, rank = os.environ.get("CLUSTERFT_LOG_DIR"), os.environ.get("RANK")
    if not directory or rank is None:
        return
    log = os.open(Path(directory, f"rank{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    # A watcher reads the file while it grows, so a line must not wait for a full buffer.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True, chain=False)
    _note_process(Path(directory, f"rank{rank}.pid"))


def start_time(pid: int) -> int | None:
    """Kernel ticks at which a process began: with the pid it names one process for good. None if it is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The command name in parentheses may hold spaces; field 22 is counted from behind it.
    fields = stat.rpartition(")")[2].split()
    # A zombie has ended; only its parent has not looked yet.
    return None if fields[0] in "ZX" else int(fields[19])


def _note_process(path: Path) -> None:
    body = {"pid": os.getpid(), "start": start_time(os.getpid())}
    draft = path.with_suffix(".pid.new")
    draft.write_text(json.dumps(body), encoding="ascii")
    draft.replace(path)


def main() -> None:
    """Run a script as `python SCRIPT ARGS` would, with its output in this rank's log."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m clusterft_trainer.rank SCRIPT [ARGS...]")
    claim_log()
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
