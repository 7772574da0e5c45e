"""What kind of migration it is: which script, with a LoRA or without, on how many processes.

Owns the few questions that several rules ask. Refuses to settle anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from clusterft_trainer.migrate.found import LAUNCH, Kind
from clusterft_trainer.migrate.here import AtHand
from clusterft_trainer.migrate.sheet import Sheet

_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\|.*\\")


@dataclass(frozen=True)
class Case:
    """One migration."""

    kind: Kind
    source: str  # name of the file
    script: str  # as it was written
    launcher: str
    lora: bool
    kohya: bool  # whether it says anything of a training, and not only of machines
    processes: int | None  # of all machines together, where it is said
    here: AtHand


def positive(sheet: Sheet, name: str) -> int | None:
    """A whole number above 0; 0 is kohya's way to say no."""
    value = sheet.whole(name)
    if value is not None and value < 0:
        sheet.leave(name, "unreadable", "is below 0")
        return None
    return value or None


def processes(sheet: Sheet) -> int | None:
    """How many processes train together."""
    every = positive(sheet, LAUNCH + "num_processes")
    machines = sheet.text(LAUNCH + "num_machines") or "1"
    each = positive(sheet, LAUNCH + "nproc_per_node")
    if every is None and each is not None and machines.isdigit():
        return each * max(int(machines), 1)
    return every


def path(sheet: Sheet, value: str, setting: str) -> str:
    """A path as it was, with a word on what cannot be right on the nodes."""
    if _WINDOWS.match(value):
        sheet.note(f"{setting}: {value} is a path of Windows: write where it lies on the nodes")
    return value
