"""What a node's own disk holds of the paths that a job reads: files, bytes, of weights samples of them. Pure.

Files whose names begin with a dot are nobody's pictures and do not count. A walk ends at a number of files and
after some seconds, and says so: what is not whole must not be compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
_SUMMING = 12  # seconds, for all paths whose content is sampled
# A digest of each path: of a file up to 4 MiB all of it, of a larger one 64 blocks from its head to its tail.
# It is printed only when the end was reached: of what was cut short it would be another one than elsewhere.
_SUM = """
if [ -d "$1" ]; then cd -- "$1" && names=$(find -L . -mindepth 1 -name '.*' -prune -o -type f -print)
else cd -- "$(dirname -- "$1")" && names=./$(basename -- "$1"); fi || exit
names=$(printf '%s\n' "$names" | LC_ALL=C sort | head -n 64)
printf '%s\n' "$names" | while IFS= read -r f; do [ -r "$f" ] || exit 1; done || exit
printf '%s\n' "$names" | while IFS= read -r f; do
  s=$(stat -L -c %s -- "$f"); echo "$f $s"
  if [ "$s" -le 4194304 ]; then cat -- "$f"; continue; fi
  i=0; while [ "$i" -lt 64 ]; do
    dd if="$f" bs=65536 skip=$((s / 65536 * i / 63)) count=1 2>/dev/null; i=$((i + 1))
  done
  tail -c 65536 -- "$f"
done | sha256sum
"""
_SUMS = """
each=$1; inner=$2; shift 2; k=0
for p; do echo "sum $k $(timeout -k 1 "$each" sh -c "$inner" sh "$p" 2>/dev/null)"; k=$((k + 1)); done
"""


@dataclass(frozen=True, slots=True)
class Holding:
    """One path on one node."""

    state: (
        State  # full: there are more files than were counted; cut: the time was up; closed: not all was readable
    )
    files: int
    bytes: int
    sum: str = ""  # of samples of its content, where these were taken


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


def sums_argv(paths: Sequence[str]) -> tuple[str, ...]:
    """The command for one node that samples the content of what must be the same everywhere."""
    each = max(2, _SUMMING // max(1, len(paths)))
    return ("sh", "-c", _SUMS, "sh", str(each), _SUM, *paths)


def with_sums(held: Mapping[str, Holding], text: str, paths: Sequence[str]) -> Mapping[str, Holding]:
    """What is held, with the digests that it printed."""
    found = {int(number): digest for number, digest in re.findall(r"^sum (\d{1,4}) ([0-9a-f]{64})\b", text, re.M)}
    sums = {path: found[number] for number, path in enumerate(paths) if number in found}
    return {
        path: replace(one, sum=sums.get(path, "")) if one.state == "whole" else one for path, one in held.items()
    }
