"""A launcher whose libraries are imported before it is needed.

Launchers import torch before they look at what they were asked: seconds in which no rank has begun. So a process
does that while the nodes still talk to each other, and again while an attempt trains, for the next one; what it
shall be is told to it on its stdin. Owns both sides of that. Refuses other programs than the launchers of torch,
accelerate and DeepSpeed: a user's script may do anything while it is imported.

`python -m clusterft_trainer.supervisor.standby MODULE` is the process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from clusterft_trainer.supervisor import processes

_LAUNCHERS = ("accelerate.commands.launch", "torch.distributed.run", "deepspeed.launcher.runner")
_HERE = "clusterft_trainer.supervisor.standby"


class Standby:
    """One process that waits to become a launcher, or none where the command is none of theirs."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self._process: processes.Launcher | None = None
        self._base = tuple(argv[:3])
        if tuple(argv[1:2]) == ("-m",) and argv[2] in _LAUNCHERS:
            asked = (argv[0], "-P", "-m", _HERE, argv[2])
            # Without it the launcher is started as usual, and what is wrong is told there.
            with contextlib.suppress(OSError):
                self._process = processes.start(asked, dict(env), "/", Path(os.devnull), stdin=processes.PIPE)

    @property
    def pid(self) -> int:
        """Of the process, while it waits; 0 for none."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def become(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: str, log: Path
    ) -> processes.Launcher | None:
        """The launcher that was asked for, or None: then it has to be started as usual."""
        if tuple(argv[:3]) != self._base:
            self.close()  # a script's is wrapped into a shell, since its directory lies in the shared dir
        process, self._process = self._process, None
        if process is None or process.poll() is not None or process.stdin is None:
            return None
        told = json.dumps({"args": list(argv[3:]), "env": dict(env), "cwd": cwd, "log": str(log)})
        try:
            with process.stdin as pipe:
                pipe.write(told.encode() + b"\n")
        except BrokenPipeError:
            return None
        return process

    def close(self) -> None:
        """It is not needed."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()  # at which it ends
            process.kill()
            process.wait()


def main(module: str) -> None:
    """Import, wait, become the launcher."""
    warnings.filterwarnings("ignore", message=".*found in sys.modules after import.*", category=RuntimeWarning)
    importlib.import_module(module)
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)  # the supervisor has no use for it, or is gone
    told = json.loads(line)
    log = os.open(told["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(told["env"])
    os.chdir(told["cwd"])
    sys.argv = [module, *told["args"]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1])
