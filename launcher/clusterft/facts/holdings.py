"""What a node's own disk holds of the paths that a job reads: how many files, how many bytes. Pure.

Files whose names begin with a dot are nobody's pictures and do not count. A walk ends at a number of files and
after some seconds, and says so: what is not whole must not be compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["whole", "absent", "full", "cut", "closed"]
MOST = 200_000  # files of one path; some seconds on a disk that has not seen them lately
SECONDS = 20.0  # for all paths of a node
_WALKING = 12  # of these, for the walks
# The size of each file, then how the walk ended; awk ends it by going away.
_SCRIPT = """
most=$1; each=$2; shift 2
for p; do
  [ -e "$p" ] || { echo "absent 0 0"; continue; }
  if [ -d "$p" ]; then
    ( cd -- "$p" || exit
      timeout -k 1 "$each" find -L . -mindepth 1 -name '.*' -prune -o -type f -printf '%s\\n' 2>/dev/null
      echo "end $?" )
  else stat -L -c %s -- "$p"; echo "end $?"
  fi | awk -v most="$most" '
    BEGIN { end = 1 }
    $1 == "end" { end = $2; next }
    { files++; bytes += $1; if (files >= most) { full = 1; exit } }
    END { state = full ? "full" : end == 124 ? "cut" : end ? "closed" : "whole"
          printf "%s %d %.0f\\n", state, files, bytes }'
done
"""


@dataclass(frozen=True, slots=True)
class Holding:
    """One path on one node."""

    state: (
        State  # full: there are more files than were counted; cut: the time was up; closed: not all was readable
    )
    files: int
    bytes: int


def argv(paths: Sequence[str]) -> tuple[str, ...]:
    """The command for one node."""
    each = max(2, _WALKING // max(1, len(paths)))
    return ("sh", "-c", _SCRIPT, "sh", str(MOST), str(each), *paths)


def parse(text: str, paths: Sequence[str]) -> Mapping[str, Holding] | None:
    """What it printed, a line a path; None where that is not all of it."""
    lines = re.findall(r"^(whole|absent|full|cut|closed) (\d{1,9}) (\d{1,18})$", text, re.MULTILINE)
    if len(lines) != len(paths):
        return None
    return {
        path: Holding(state, int(files), int(size))
        for path, (state, files, size) in zip(paths, lines, strict=True)
    }
