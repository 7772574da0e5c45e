"""What clusterft itself has on a node, as doctor finds it: runs that hold it, modes that keep ssh out. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from clusterft.facts.health.asked import Asked

_KEY = "relay_ed25519"
# The locks of nodes without an engine, each with the run that it names: those that a process holds open here. A
# lock that nobody holds was left by a run that is over. Needs no tool beyond /proc.
_RUNS = r"""
echo seen; cd -- "${CLUSTERFT_HOME:-$HOME/.clusterft}" 2>/dev/null || exit 0
for lock in */nodes/*/active.lock; do
    [ -s "$lock" ] || continue
    [ -n "$open" ] || open=$(ls -l /proc/[0-9]*/fd)
    at=$(cd -- "${lock%/*}" && pwd -P)/active.lock
    printf '%s
' "$open" | grep -qF -- " -> $at" && printf '%s %s
' "${lock%/active.lock}" "$(head -n 1 "$lock")"
done
"""


@dataclass(frozen=True, slots=True)
class Held:
    """A run that holds the node, by its lock."""

    cluster: str
    node: str  # as that cluster names it
    run: str


@dataclass(frozen=True, slots=True)
class OursHealth:
    """None where it could not be read; paths below the login directory."""

    open_keys: tuple[str, ...] | None = None  # private keys that others may read: ssh refuses them
    open_places: tuple[str, ...] | None = None  # directories that others may enter
    barred: tuple[str, ...] | None = None  # of those that clusterft and training write, what this user may not
    runs: tuple[Held, ...] | None = None  # that hold a lock here now


def sections(asked: Asked) -> dict[str, str]:
    """What ends soon."""
    barred = (
        'echo seen; for d in "$HOME" "$HOME/.clusterft" "$HOME/.clusterft"/* /dev/shm /var/tmp; do '
        '[ -d "$d" ] && ! { [ -w "$d" ] && [ -x "$d" ]; } && printf "%s\\n" "$d"; done'
    )
    if not asked.cluster:
        return {"ours": ":", "ours.barred": barred, "ours.runs": _RUNS}
    folder = shlex.quote(f".clusterft/{asked.cluster}/nodes")
    return {
        "ours.barred": barred,
        "ours.runs": _RUNS,
        "ours": f"cd && {{ [ -d {folder} ] || {{ echo seen; exit; }}; echo seen; find {folder} -maxdepth 2 "
        f"\\( -name {_KEY} -type f ! -perm 600 -o -type d ! -path {folder} ! -name runs ! -perm 700 \\) "
        "-exec ls -ld {} +; }",
    }


def stages(asked: Asked) -> dict[str, str]:
    """What may take seconds: nothing here."""
    return {}


def parse(said: Mapping[str, str], asked: Asked) -> OursHealth:
    """From the sections' texts."""
    seen, *shut = said["ours.barred"].splitlines() or [""]
    barred = tuple(shut) if seen == "seen" else None
    runs = _runs(said["ours.runs"])
    first, *rows = said["ours"].splitlines() or [""]
    if first != "seen":
        return OursHealth(barred=barred, runs=runs)
    keys, places = [], []
    for row in rows:
        mode, _, rest = row.partition(" ")
        path = rest[rest.index(".clusterft/") :] if ".clusterft/" in rest else ""
        if path and mode[:1] == "-":
            keys.append(path)
        elif path and mode[:1] == "d":
            places.append(path)
    return OursHealth(tuple(sorted(keys)), tuple(sorted(places)), barred, runs)


def _runs(text: str) -> tuple[Held, ...] | None:
    first, *rows = text.splitlines() or [""]
    found = (re.fullmatch(r"([^/\s]+)/nodes/([^/\s]+) (\S+)", row) for row in rows)
    return tuple(Held(*hit.groups()) for hit in found if hit) if first == "seen" else None
