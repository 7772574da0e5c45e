"""The subsets of a data set file, and whose word counts for one of them.

Owns kohya's order of looking: the subset, its data set, the general settings, the command line, its file. Refuses
to settle anything: a flag is honoured or left by who asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from clusterft_trainer.migrate.found import DATASET, GENERAL, SUBSET, Flag
from clusterft_trainer.migrate.sheet import Sheet

_NOT_SAID = ("", "None", "none", "null")


@dataclass(frozen=True, slots=True)
class Subset:
    """One [[datasets.subsets]], with what is said there or above it."""

    part: tuple[int, int]
    _said: Mapping[str, list[Flag]] = field(repr=False)  # in the whole file and the command

    def flag(self, name: str) -> Flag | None:
        """The flag that counts here."""
        said = [f for f in self._said.get(name, ()) if self._holds(f) and f.value not in _NOT_SAID]
        top = max((f.rank for f in said), default=0)
        return next((f for f in reversed(said) if f.rank == top), None)

    def own(self, names: Iterable[str]) -> list[Flag]:
        """What is said of these in the subset itself."""
        return [f for name in names for f in self._said.get(name, ()) if f.rank == SUBSET and f.part == self.part]

    def _holds(self, flag: Flag) -> bool:
        if flag.rank == SUBSET:
            return flag.part == self.part
        return flag.part[0] == self.part[0] if flag.rank == DATASET else flag.rank <= GENERAL


def subsets(sheet: Sheet) -> list[Subset]:
    """All subsets that say anything, in order."""
    parts = dict.fromkeys(flag.part for flag in sheet.flags if flag.rank == SUBSET)
    said: dict[str, list[Flag]] = {}
    for flag in sheet.flags if parts else ():
        said.setdefault(flag.name, []).append(flag)
    return [Subset(part, said) for part in parts]
