"""What filesystem lies under a path, from lines of /proc/PID/mountinfo. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue   (proc_pid_mountinfo(5))
_LINE = re.compile(r"\d+ \d+ (\d+:\d+) (\S+) (/\S*) \S+ (?:\S+ )*?- (\S+) (\S+) ")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mount: the same filesystem has the same device number in every container of a machine."""

    device: str  # major:minor
    target: str
    fstype: str
    source: str

    def __str__(self) -> str:
        return f"{self.fstype} {self.source} (device {self.device}, mounted on {self.target})"


def over(lines: Iterable[str]) -> Mounted | None:
    """The nearest of the mounts that a path lies on, given only these; the last one on a place is on top."""
    nearest: Mounted | None = None
    for line in lines:
        match = _LINE.match(f"{line} ")
        if match and (nearest is None or len(match.group(3)) >= len(nearest.target)):
            nearest = Mounted(match.group(1), match.group(3), match.group(4), match.group(5))
    return nearest
