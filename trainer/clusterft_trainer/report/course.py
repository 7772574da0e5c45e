"""The steps of a run as columns of numbers: 200,000 of them take some twenty megabytes. Pure.

Owns the order of steps: a step that comes again, because a checkpoint was gone back to, replaces all from there
on.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Sequence

from clusterft_trainer.progress import Step

COLUMNS = (
    "step",
    "epoch",
    "loss",
    "rate",
    "grad_norm",
    "images_per_second",
    "data_wait",
    "peer_wait",
    "communication",
    "mfu",
    "memory",
    "skipped",
    "at",
)


class Course:
    """One number of each kind for each step, in order."""

    __slots__ = ("_columns", "repeated", "steps")

    def __init__(self) -> None:
        self._columns: dict[str, array[float]] = {name: array("d") for name in COLUMNS}
        self.steps = 0  # how many there shall be
        self.repeated = 0  # trained again after a checkpoint was gone back to

    def __len__(self) -> int:
        return len(self._columns["step"])

    def column(self, name: str) -> array[float]:
        """All values of one kind; not a number where a step did not tell."""
        return self._columns[name]

    def add(self, record: Step) -> None:
        """Take in the next step."""
        values = [getattr(record, name) for name in COLUMNS]
        self._put([math.nan if value is None else float(value) for value in values])
        self.steps = record.steps

    def _put(self, values: Sequence[float]) -> None:
        known = self._columns["step"]
        if known and values[0] <= known[-1]:
            place = bisect_left(known, values[0])
            self.repeated += len(known) - place
            for column in self._columns.values():
                del column[place:]
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)

    def follow(self, other: Course) -> None:
        """Go on with the steps of a later part."""
        if not len(other):
            return
        for i in range(len(other)):
            self._put([column[i] for column in other._columns.values()])
        self.steps = other.steps
        self.repeated += other.repeated

    @property
    def last(self) -> int:
        """The last step; 0 if there is none."""
        return int(self._columns["step"][-1]) if len(self) else 0

    def has(self, name: str) -> bool:
        """Whether any step told a value of this kind."""
        return any(map(math.isfinite, self._columns[name]))


def joined(parts: Sequence[Course]) -> Course:
    """Parts of several writers (the head may have been replaced) as one, in the order of their clocks."""
    whole = Course()
    for part in sorted((p for p in parts if len(p)), key=lambda p: p.column("at")[0]):
        whole.follow(part)
    return whole
