"""What filesystem lies under a path, from lines of /proc/PID/mountinfo. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from clusterft.facts.storage import Mount, plain

# 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue   (proc_pid_mountinfo(5))
_LINE = re.compile(r"\d+ \d+ (\d+:\d+) (\S+) (/\S*) (\S+) (?:\S+ )*?- (\S+) (\S+) (\S+)")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mount: the same filesystem has the same device number in every container of a machine."""

    device: str  # major:minor
    mount: Mount
    root: str = "/"  # the directory of the filesystem that is mounted: another one of a bind, or of a subvolume

    def __str__(self) -> str:
        mount = self.mount
        return f"{mount.fstype} {mount.source} (device {self.device}, mounted on {mount.target})"


def over(lines: object) -> Mounted | None:
    """The nearest of the mounts that a path lies on, given only these; the last one on a place is on top."""
    nearest: Mounted | None = None
    for line in lines if isinstance(lines, list) else ():
        match = _LINE.match(str(line))
        if match:
            device, root, target, own, fstype, source, whole = map(plain, match.groups())
            if nearest is None or len(target) >= len(nearest.mount.target):
                nearest = Mounted(device, Mount(source, target, fstype, f"{own},{whole}"), root)
    return nearest
