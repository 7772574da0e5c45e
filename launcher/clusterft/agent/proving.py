"""Becomes the trainer's own proving program, in a Python of this node that has torch.

proving [env=JSON] [PYTHON...]    tried in that order, then the Python that runs this; with `env=` it gets these
                                  variables and no others
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


_GIVEN = "env="


def main(*words: str) -> None:
    """Find one, and turn into it; else say why not."""
    given = [json.loads(word[len(_GIVEN) :]) for word in words if word.startswith(_GIVEN)]
    _become([word for word in words if not word.startswith(_GIVEN)], dict(given[0] if given else os.environ))


def _become(pythons: list[str], env: dict[str, str]) -> None:
    env["PYTHONSAFEPATH"] = "1"
    env.setdefault("HOME", "/tmp")
    words = []
    for python in dict.fromkeys([*pythons, sys.executable]):
        path = shutil.which(python)
        why = _lacks(path, env) if path else "is not there"
        if path and not why:
            os.execve(path, [path, "-u", "-m", "clusterft_trainer.proving"], env)
        words.append(python + ": " + why)
    sys.stdout.write(json.dumps({"broken": "; ".join(words)}) + "\n")
    sys.stdout.flush()


def _lacks(path: str, env: dict[str, str]) -> str:
    look = [path, "-c", _LOOK]
    try:
        null = subprocess.DEVNULL
        done = subprocess.run(
            look, stdin=null, capture_output=True, text=True, timeout=_SECONDS, check=False, env=env
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    last = done.stderr.strip().splitlines()[-1:] or ["exit " + str(done.returncode)]
    return last[0] if done.returncode else ""


if __name__ == "__main__":
    main(*sys.argv[3:])  # behind the program's length and name
