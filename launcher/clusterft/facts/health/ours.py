"""What clusterft itself has put on a node, as doctor finds it: modes that keep ssh from using it. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from clusterft.facts.health.asked import Asked

_KEY = "relay_ed25519"


@dataclass(frozen=True, slots=True)
class OursHealth:
    """None where it could not be read; paths below the login directory."""

    open_keys: tuple[str, ...] | None = None  # private keys that others may read: ssh refuses them
    open_places: tuple[str, ...] | None = None  # directories that others may enter
    barred: tuple[str, ...] | None = None  # of those that clusterft and training write, what this user may not


def sections(asked: Asked) -> dict[str, str]:
    """What ends soon."""
    barred = (
        'echo seen; for d in "$HOME" "$HOME/.clusterft" "$HOME/.clusterft"/* /dev/shm /var/tmp; do '
        '[ -d "$d" ] && ! { [ -w "$d" ] && [ -x "$d" ]; } && printf "%s\\n" "$d"; done'
    )
    if not asked.cluster:
        return {"ours": ":", "ours.barred": barred}
    folder = shlex.quote(f".clusterft/{asked.cluster}/nodes")
    return {
        "ours.barred": barred,
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
    first, *rows = said["ours"].splitlines() or [""]
    if first != "seen":
        return OursHealth(barred=barred)
    keys, places = [], []
    for row in rows:
        mode, _, rest = row.partition(" ")
        path = rest[rest.index(".clusterft/") :] if ".clusterft/" in rest else ""
        if path and mode[:1] == "-":
            keys.append(path)
        elif path and mode[:1] == "d":
            places.append(path)
    return OursHealth(tuple(sorted(keys)), tuple(sorted(places)), barred)
