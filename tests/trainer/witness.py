"""A trainer that notes which samples each rank really computes, and can be made to fail at a step.

Run like `python -m clusterft_trainer`; WITNESS is the folder of the notes, WITNESS_FAIL "RANK:STEP" is where a
picture turns out to be broken: on that rank, among the data of that step.
"""

from clusterft_trainer import rank

rank.claim_log()

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from clusterft_trainer import __main__ as command  # noqa: E402
from clusterft_trainer import dist  # noqa: E402

dist.settle()

from clusterft_trainer import dataset, step  # noqa: E402
from clusterft_trainer.errors import DataError  # noqa: E402

folder, me = Path(os.environ["WITNESS"]), os.environ["RANK"]
real_take, real_batch = step.take, dataset.Pictures.batch


def take(learner, work, number):  # type: ignore[no-untyped-def]
    """The step, then a line about it."""
    outcome = real_take(learner, work, number)
    seen = [i for b in work.micro for i, w in zip(b.indices, b.weights.tolist(), strict=True) if w]
    with (folder / f"rank{me}.jsonl").open("a") as file:
        file.write(json.dumps({"step": number, "epoch": work.position.epoch, "seen": seen}) + "\n")
    return outcome


step.take = take
if os.environ.get("WITNESS_FAIL", "").split(":")[0] == me:
    left = int(os.environ["WITNESS_FAIL"].split(":")[1])

    def batch(self, slots, epoch, known, *, plain=False, step=None):  # type: ignore[no-untyped-def]
        """Broken from some micro-batch on."""
        global left
        left -= 0 if plain else 1
        if left <= 0:
            raise DataError("The picture x.png cannot be decoded (truncated).", "Replace it.", everywhere=False)
        return real_batch(self, slots, epoch, known, plain=plain, step=step)

    dataset.Pictures.batch = batch  # type: ignore[method-assign]

command.main(sys.argv[1:])
