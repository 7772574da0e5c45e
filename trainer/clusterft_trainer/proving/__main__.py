"""One node's part of doctor's trials: torch is imported once, and each task is a fork of this process.

Speaks JSON lines: a task in, what its process says and how it ended out. A process past its deadline is killed and
left behind if it cannot be killed. When stdin ends, all of them end.

    {"do": "start", "group": "g1", "slot": 0, "task": "collective", "env": {}, "given": {}, "seconds": 30}
    {"do": "stop", "group": "g1"}
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import sys
import time
from typing import Any

from clusterft_trainer.proving import cards, checkpointing, collective, rehearsal
from clusterft_trainer.proving.forks import Fork

TASKS = {
    "collective": collective.run,
    "card": cards.run,
    "checkpoint": checkpointing.run,
    "sweep": checkpointing.sweep,
    "rehearse": rehearsal.run,
}
_LOOK = 0.2  # seconds between two looks at deadlines
_SWEEP = 4.0  # seconds for files that an interrupted task has left


class Bench:
    """The processes of one node."""

    def __init__(self, out: int) -> None:
        self._out = out
        self._forks: list[Fork] = []
        self._litter: set[str] = set()
        self._heard = b""

    def serve(self) -> None:
        """Until stdin ends."""
        with selectors.DefaultSelector() as ears:
            ears.register(0, selectors.EVENT_READ)
            while self._listen(ears):
                for fork in list(self._forks):
                    self._hear(fork, ears)
        for fork in self._forks:
            fork.kill()
        for path in sorted(self._litter):
            fork = Fork("", 0, checkpointing.sweep, {"path": path}, {}, _SWEEP)
            while not fork.over():
                fork.read()
                time.sleep(0.01)

    def _listen(self, ears: selectors.BaseSelector) -> bool:
        """Wait a little; whether there may be more to do."""
        ready = {key.fd for key, _ in ears.select(_LOOK)}
        if 0 not in ready:
            return True
        data = os.read(0, 1 << 16)
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line), ears)
        return bool(data)

    def _obey(self, asked: dict[str, Any], ears: selectors.BaseSelector) -> None:
        if asked["do"] == "stop":
            for fork in self._forks:
                if fork.group == asked["group"]:
                    fork.kill()
            return
        given = asked["given"]
        if "litter" in given:
            self._litter.add(given["litter"])
        task = TASKS[asked["task"]]
        fork = Fork(asked["group"], asked["slot"], task, given, asked["env"], asked["seconds"])
        if asked["task"] == "sweep":
            self._litter.discard(given["path"])
        self._forks.append(fork)
        for pipe in fork.pipes:
            ears.register(pipe, selectors.EVENT_READ)

    def _hear(self, fork: Fork, ears: selectors.BaseSelector) -> None:
        """Pass on what a process has said, and its end."""
        where = {"group": fork.group, "slot": fork.slot}
        before, over = fork.pipes, fork.over()
        for body in fork.read():
            self._tell({**where, "said": body})
        for pipe in before:
            if over or pipe not in fork.pipes:
                ears.unregister(pipe)
        if over:
            fork.close()
            self._forks.remove(fork)
            self._tell({**where, "ended": fork.code, "late": fork.late, "words": fork.words})

    def _tell(self, body: dict[str, Any]) -> None:
        left = memoryview(json.dumps(body).encode() + b"\n")
        while left:
            left = left[os.write(self._out, left) :]


def main() -> None:
    """Import, say so, and work."""
    out = os.dup(1)
    os.dup2(2, 1)  # libraries greet on stdout; the answers must stand alone there
    bench = Bench(out)
    try:
        import torch
        import torch.distributed
    except Exception as error:  # noqa: BLE001 - a broken library may raise anything, and that is the answer
        bench._tell({"broken": f"torch cannot be imported: {type(error).__name__}: {error}"[:500]})
        return
    gc.freeze()  # what is imported is shared with all forks, and the collector would copy it
    bench._tell({"ready": str(torch.__version__), "cuda": torch.version.cuda})
    bench.serve()


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        sys.stderr.write("nobody listens\n")
    os._exit(0)  # a process that cannot be killed must not be waited for
