"""The first thing a training process does: write into a log of its own. Torch-free, standard library only.

Owns the redirection of stdout and stderr (on the level of file descriptors, so that what C++ says while it dies is
kept too), the note of this process's id, stack dumps on SIGUSR2, its end when its supervisor is killed, the cores
that it runs on, and its turn when the ranks of a node start one after the other. Does nothing outside a clusterft
run. Also runs a user's own script in the same way: `python -m clusterft_trainer.rank SCRIPT ARGS`, before which
DeepSpeed's launcher may put its --local_rank=N.
"""

from __future__ import annotations

import builtins
import faulthandler
import io
import json
import os
import signal
import sys
import threading
import time
import types
from pathlib import Path

_LOOK = 2.0  # seconds between two looks at the supervisor
_SAVING = 60.0  # seconds that a rank without a supervisor gets for its checkpoint


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
    # Asked what it does, a rank answers into a file of its own: its log holds what it said, in order.
    stacks = os.open(Path(directory, f"rank{rank}.stacks"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True, chain=False)
    _note_process(Path(directory, f"rank{rank}.pid"))


def keep_near_card() -> None:
    """Run on the cores that are nearest to this rank's card: memory of the other socket is twice as far away."""
    cards, local = os.environ.get("CLUSTERFT_CARDS"), os.environ.get("LOCAL_RANK")
    if not cards or local is None:
        return
    bus = cards.split(";")[int(local)]
    try:
        near = _numbers(Path(f"/sys/bus/pci/devices/{bus}/local_cpulist").read_text(encoding="ascii"))
    except OSError as error:
        sys.stderr.write(f"clusterft: not kept near card {bus}: {error}\n")
        return
    allowed = near & os.sched_getaffinity(0)
    if allowed:
        os.sched_setaffinity(0, allowed)


def _numbers(text: str) -> set[int]:
    """The kernel's `0-3,8-11`."""
    ranges = [part.partition("-") for part in text.strip().split(",") if part]
    return {number for low, _, high in ranges for number in range(int(low), int(high or low) + 1)}


def end_with_supervisor() -> None:
    """A rank whose supervisor was killed ends too: not every launcher sees to that, and nobody would know."""
    name, _, began = os.environ.get("CLUSTERFT_SUPERVISOR", "").partition(":")
    if not name:
        return
    if str(start_time(int(name))) != began:
        sys.exit("the supervisor of this rank is gone")
    threading.Thread(target=_outlive, args=(int(name), began), name="clusterft", daemon=True).start()


def _outlive(supervisor: int, began: str) -> None:
    while str(start_time(supervisor)) == began:
        time.sleep(_LOOK)
    os.kill(os.getpid(), signal.SIGTERM)  # a checkpoint, if the others can still take part
    time.sleep(_SAVING)
    os.kill(os.getpid(), signal.SIGKILL)


def begin() -> None:
    """All of it, in the order in which it must happen."""
    claim_log()
    end_with_supervisor()
    keep_near_card()
    # One card of a node after the other: some power supplies trip when all of them wake at once.
    time.sleep(float(os.environ.get("CLUSTERFT_STAGGER") or 0) * int(os.environ.get("LOCAL_RANK") or 0))


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
    words = sys.argv[1:]
    own = [words.pop(0)] if words and words[0].startswith("--local_rank=") else []
    if not words:
        sys.exit("usage: python -m clusterft_trainer.rank SCRIPT [ARGS...]")
    begin()
    script = words.pop(0)
    sys.argv = [script, *own, *words]
    # The launcher was kept from taking modules out of the working directory; the script has its own folder first.
    os.environ.pop("PYTHONSAFEPATH", None)
    del sys.path[0 : not sys.flags.safe_path]
    sys.path.insert(0, str(Path(script).resolve().parent))
    _run(script)


def _run(script: str) -> None:
    """In a module that is __main__ to the very end: what is pickled, or runs at exit, finds its names there."""
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=script, __builtins__=builtins, __spec__=None)
    sys.modules["__main__"] = module
    tell = sys.excepthook
    sys.excepthook = lambda kind, error, trace: tell(kind, error.with_traceback(_own(trace)), _own(trace))
    try:
        with io.open_code(str(Path(script).resolve())) as file:
            text = file.read()
    except OSError as error:
        sys.exit(f"{script} cannot be read: {error.strerror}")
    code = compile(text, script, "exec", dont_inherit=True)
    exec(code, module.__dict__)


def _own(trace: types.TracebackType | None) -> types.TracebackType | None:
    """A traceback from the script's first line on, without those of this file and of the import system."""
    inner = trace
    while inner is not None:
        if inner.tb_frame.f_globals.get("__file__") == sys.modules["__main__"].__dict__.get("__file__"):
            return inner
        inner = inner.tb_next
    return trace


if __name__ == "__main__":
    main()
