"""What the kernel tells about memory without being root."""

from __future__ import annotations

from pathlib import Path

_VMSTAT = Path("/proc/vmstat")


def kills() -> int:
    """How often it has killed a process of this machine for memory, containers and their limits included."""
    for line in _VMSTAT.read_text(encoding="ascii").splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0
