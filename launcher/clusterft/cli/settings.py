"""`clusterft settings`: the `train:` block of a job as the trainer gets it, for the trainer's own commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from clusterft import spec
from clusterft.errors import UsageError


def run(job: Path) -> int:
    """Checked and complete, every path whole; asks no node."""
    train = spec.load(job).train
    if train is None:
        raise UsageError("the job runs a script, which has no such settings", where=str(job))
    sys.stdout.write(json.dumps(train.model_dump(mode="json"), indent=2) + "\n")
    return 0
