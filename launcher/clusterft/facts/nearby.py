"""A folder of a node's own disk that a run keeps copies in: what is asked, and what the answer says. Pure.

What is not there yet is told of by the nearest directory above it, in which it would be made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from clusterft.facts.frames import whole
from clusterft.facts.storage import Mount

_SCRIPT = """
d=$1; echo "there $([ -e "$d" ] && echo yes || echo no)"
while [ ! -e "$d" ] && [ "$d" != / ]; do d=$(dirname -- "$d"); done
[ -w "$d" ] && [ -x "$d" ] && echo writable
echo "above $d"
ls -ldn -- "$d"
df -Pk -- "$d" | tail -n 1
[ ! -d "$1" ] || echo "used $(du -sk -- "$1" | cut -f 1)"
"""
SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Nearby:
    """The folder on one node."""

    there: bool
    above: str  # itself, or the nearest directory above it that is there
    directory: bool  # and not a file
    writable: bool  # by the SSH user
    mode: str  # drwxr-xr-x
    owner: tuple[int, int]
    mounted_on: str
    free_bytes: int
    used_bytes: int  # by what is in it already

    def open_to(self, uid: int, gid: int) -> bool:
        """Whether the mode lets this user make something there; lists of further rights are not looked at."""
        if uid == 0:
            return True
        first = 1 if uid == self.owner[0] else 4 if gid == self.owner[1] else 7
        return self.mode[first + 1] == "w" and self.mode[first + 2] in "xst"

    def mount(self, mounts: Iterable[Mount]) -> Mount | None:
        """What lies there; of several on one place the last."""
        return next((one for one in reversed(tuple(mounts)) if one.target == self.mounted_on), None)


def argv(path: str) -> tuple[str, ...]:
    """The command for one node."""
    return ("sh", "-c", _SCRIPT, "sh", path)


def parse(text: str) -> Nearby | None:
    """What it printed; None where that is not all of it."""
    there = re.search(r"^there (yes|no)$", text, re.MULTILINE)
    above = re.search(r"^above (/.*)$", text, re.MULTILINE)
    entry = re.search(r"^([a-z-][rwxsStT-]{9})\S* +\d+ +(\d{1,10}) +(\d{1,10}) ", text, re.MULTILINE)
    room = re.search(r"^.+?\s+\d+\s+\d+\s+(-?\d{1,18})\s+\S+\s+(/.*)$", text, re.MULTILINE)
    used = re.search(r"^used (\d{1,18})$", text, re.MULTILINE)
    if not (there and above and entry and room):
        return None
    return Nearby(
        there=there.group(1) == "yes",
        above=above.group(1),
        directory=entry.group(1)[0] == "d",
        writable="writable" in text.splitlines(),
        mode=entry.group(1),
        owner=(int(entry.group(2)), int(entry.group(3))),
        mounted_on=room.group(2),
        free_bytes=int(room.group(1)) * 1024,
        used_bytes=(whole(used.group(1)) or 0) * 1024 if used else 0,
    )
