"""Makes the log bundles of tests/bundles by really failing runs: on CPUs, with gloo, on "nodes" of this machine.

    python tests/bundles/make.py            those that are missing
    python tests/bundles/make.py NAME ...   these, anew
    python tests/bundles/make.py --notes    their note.json alone

A node is a UTS and mount namespace, so each has its hostname and its own /dev/shm; root on Linux is needed. Paths
of this machine are written as /opt/venv, /opt/python and /data. What takes hardware that is not here is
transcribed in transcribed.py from texts that their authors or users have published.

Each bundle is a folder: logs, and note.json with how it came about and what doctor must say of it.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

import first  # noqa: F401 - registers its scenarios
import later  # noqa: F401 - registers its scenarios
from nodes import HERE, ROOT, SCENARIOS, Run

_MOST = 28_000  # bytes of a bundle
_HEAD, _TAIL = 40, 140  # lines that are kept of a longer log


def main() -> int:
    """Make what is asked for."""
    if sys.argv[1:] == ["--notes"]:
        for name in SCENARIOS:
            if (HERE / name).exists():
                write_note(name)
        return 0
    names = sys.argv[1:] or [name for name in SCENARIOS if not (HERE / name).exists()]
    for name in names:
        began = time.monotonic()
        try:
            kept = make(name)
        except Exception as error:  # noqa: BLE001 - the others are made all the same
            print(f"{name}: {error!r}", flush=True)
            continue
        print(f"{name}: {kept} bytes, {time.monotonic() - began:.0f} s", flush=True)
    return 0


def make(name: str) -> int:
    """One bundle, in place of what was there; its size."""
    one = SCENARIOS[name]
    place = Path(tempfile.mkdtemp(prefix="clusterft-bundle-"))
    run = Run(place, free_port())
    try:
        one.make(run)
    finally:
        run.end()
    for gone in ("hosts", "hostfile", "one"):
        (place / gone).unlink(missing_ok=True)
    target = HERE / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    size = 0
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        kept = cut(scrub(path.read_bytes().decode("utf-8", errors="backslashreplace"), place))
        if kept.strip() and path.suffix in (".log", ".txt", ".json", ".jsonl"):
            to = target / path.relative_to(place)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_text(kept)
            size += len(kept)
    write_note(name)
    shutil.rmtree(place)
    if size > _MOST:
        print(f"{name} is too large: {size} bytes")
    return size


def write_note(name: str) -> None:
    """How it was made, and what doctor must say."""
    one = SCENARIOS[name]
    expect = {"verdict": one.verdict, "id": one.id, "node": one.node, "rank": one.rank}
    note = {"made": "by a run that failed", "how": one.how, "expect": expect}
    (HERE / name / "note.json").write_text(json.dumps(note, indent=2) + "\n")


def scrub(text: str, place: Path) -> str:
    """Without this machine's paths and name."""
    paths = {
        str(place): "/data/run",
        str(HERE): "/data/code",
        str(ROOT / ".venv"): "/opt/venv",
        sys.base_prefix: "/opt/python",
        str(ROOT): "/opt/clusterft",
        str(Path.home()): "/home/me",
    }
    for path, name in paths.items():
        text = text.replace(path, name)
    return re.sub(rf"\b{re.escape(socket.gethostname())}\b", "ctl", text)


def cut(text: str) -> str:
    """The beginning and the end of a long log."""
    lines = text.splitlines()
    if len(lines) <= _HEAD + _TAIL:
        return text
    left_out = f"[... {len(lines) - _HEAD - _TAIL} lines left out ...]"
    return "\n".join([*lines[:_HEAD], left_out, *lines[-_TAIL:]]) + "\n"


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
