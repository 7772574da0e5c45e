"""What the kernel tells of a rank that does not write down its own stack: stopped, or waiting in the kernel.

The signal for a dump does not reach a rank that is stopped or waits for a dead server. Reads nothing of /proc that
could itself wait for that process.
"""

from __future__ import annotations

from pathlib import Path

from clusterft_trainer.rank import start_time
from clusterft_trainer.supervisor.processes import read_note


def testify(log_dir: Path) -> int:
    """Write it where their stacks should be; how many ranks are accounted for."""
    told = 0
    for note in sorted(log_dir.glob("rank*.pid")):
        stacks = note.with_suffix(".stacks")
        if not stacks.exists() or not stacks.stat().st_size:
            pid, began = read_note(note)
            if not pid or start_time(pid) != began:
                continue  # it is no more
            with stacks.open("a", encoding="utf-8") as out:  # it may still answer, behind this
                out.write(account(pid))
        told += 1
    return told


def account(pid: int) -> str:
    """A line for each thread: its name, its state, and where in the kernel it waits."""
    lines = [f"process {pid} did not answer; the kernel says of its threads:"]
    for task in sorted(Path(f"/proc/{pid}/task").glob("*"), key=lambda path: int(path.name)):
        status = _fields(task / "status")
        waits = _text(task / "wchan").strip("0")
        where = f", waits in {waits}" if waits else ""
        lines.append(f"  {task.name} {status.get('Name', '?')}: {status.get('State', 'gone')}{where}")
    return "\n".join(lines) + "\n"


def _fields(path: Path) -> dict[str, str]:
    pairs = (line.partition(":") for line in _text(path).splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # the thread has ended, or that is not for us to know
        return ""
