"""Makes every rank of a run a witness: it notes which samples it really computes, and takes its time over a step.

Python reads a module of this name by itself; a job's `env` puts this folder on the path. WITNESS is the folder of
the notes, WITNESS_PAUSE the least seconds of a step, while there is no file `hurry` in that folder. Does nothing
outside a rank.
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
import time

_STEP = "clusterft_trainer.step"


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the trainer's module of one step be loaded as ever, then puts the witness around it."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        """The module as it lies, with another way to run it."""
        if name != _STEP:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        real = spec.loader.exec_module

        def load(module):  # type: ignore[no-untyped-def]
            real(module)
            module.take = _witnessed(module.take)

        spec.loader.exec_module = load
        return spec


def _witnessed(real):  # type: ignore[no-untyped-def]
    rank = os.environ["RANK"]
    folder, pause = os.environ["WITNESS"], float(os.environ.get("WITNESS_PAUSE", "0"))
    about = {
        "run": os.environ["CLUSTERFT_RUN"],
        "attempt": int(os.environ["CLUSTERFT_ATTEMPT"]),
        "rank": int(rank),
        "world": int(os.environ["WORLD_SIZE"]),
        "pid": os.getpid(),
    }

    def take(learner, work, number):  # type: ignore[no-untyped-def]
        """The step, then one line about it, written at once."""
        began = time.monotonic()
        outcome = real(learner, work, number)
        seen = [i for b in work.micro for i, w in zip(b.indices, b.weights.tolist(), strict=True) if w]
        line = {**about, "step": number, "epoch": work.position.epoch, "seen": seen, "at": time.time()}
        out = os.open(f"{folder}/{about['run']}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.write(out, (json.dumps(line) + "\n").encode())
        os.close(out)
        if not os.path.exists(f"{folder}/hurry"):
            time.sleep(max(0.0, began + pause - time.monotonic()))
        return outcome

    return take


if os.environ.get("WITNESS") and "RANK" in os.environ:
    sys.meta_path.insert(0, _Finder())
