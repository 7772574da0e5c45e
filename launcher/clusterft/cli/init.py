"""`clusterft init`: a commented job.yaml to start from; a test loads it and demands every key."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from clusterft import commands
from clusterft.errors import UsageError


def run(path: Path) -> int:
    """Write the example; an existing file is never overwritten."""
    text = files("clusterft.spec").joinpath("example.yaml").read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError("the file exists already", where=str(path), remedy="name another one") from None
    except OSError as error:
        raise UsageError(f"the file cannot be written: {error.strerror}", where=str(path)) from None
    sys.stdout.write(commands.shown(f"{path} is written; edit it, then: clusterft train {path} --dry-run\n"))
    return 0
