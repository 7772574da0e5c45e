"""Becomes the trainer's own proving program, in a Python of this node that has torch.

proving [PYTHON...]    tried in that order, then the Python that runs this
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

_LOOK = (
    "import importlib.util as u\n"
    "for name in ('torch', 'clusterft_trainer.proving'):\n"
    "    if u.find_spec(name) is None: raise SystemExit('it has no ' + name)\n"
)
_SECONDS = 30  # on a cold disk


def main(*pythons: str) -> None:
    """Find one, and turn into it; else say why not."""
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ.setdefault("HOME", "/tmp")
    words = []
    for python in dict.fromkeys([*pythons, sys.executable]):
        path = shutil.which(python)
        why = _lacks(path) if path else "is not there"
        if path and not why:
            os.execv(path, [path, "-u", "-m", "clusterft_trainer.proving"])
        words.append(python + ": " + why)
    sys.stdout.write(json.dumps({"broken": "; ".join(words)}) + "\n")
    sys.stdout.flush()


def _lacks(path: str) -> str:
    try:
        null = subprocess.DEVNULL
        done = subprocess.run(
            [path, "-c", _LOOK], stdin=null, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    last = done.stderr.strip().splitlines()[-1:] or ["exit " + str(done.returncode)]
    return last[0] if done.returncode else ""


if __name__ == "__main__":
    main(*sys.argv[1:])
