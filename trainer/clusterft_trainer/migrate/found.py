"""The nouns of a migration: a flag with its place, what became of it, and the result.

Owns no knowledge about kohya. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Value = bool | int | float | str | tuple[str, ...]
Why = Literal["unknown", "not needed", "not possible", "by design", "overruled", "unreadable"]
Kind = Literal["command", "toml", "dataset", "accelerate"]

LAUNCH = "launch."  # prefix of the names of a launcher's own flags: accelerate, torchrun, deepspeed
SECRET = ("api_key", "token", "password", "secret")  # endings of names whose value is never repeated

# What wins over what, weakest first: accelerate's file, its flags; kohya's file, its flags, the dataset file.
FILE, ARGV, GENERAL, DATASET, SUBSET = range(5)


@dataclass(frozen=True, slots=True)
class Flag:
    """One setting as it was found."""

    name: str
    value: Value
    place: str  # train.sh:12
    shown: str  # --flip_aug, [general] flip_aug, zero_stage
    rank: int = ARGV
    variable: str = ""  # a shell variable in the value that nothing here assigns
    part: tuple[int, int] = (-1, -1)  # which [[datasets]], and which subset of all, it stands in

    @property
    def secret(self) -> bool:
        """Whether its value must not be repeated anywhere."""
        return self.name.endswith(SECRET)

    @property
    def text(self) -> str:
        """The value, to be shown to people."""
        if self.secret:
            return "***"
        if isinstance(self.value, tuple):
            return " ".join(self.value)
        return "" if self.value is True else str(self.value)


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A flag that the written job does not honour, and why."""

    flag: str  # as it was written
    value: str
    place: str
    why: Why
    reason: str

    def __str__(self) -> str:
        """One line, without the place."""
        value = f" {self.value}" if self.value else ""
        return f"{self.flag}{value if len(value) <= 40 else value[:39] + '…'}: {self.why}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file says, before anything is decided."""

    kind: Kind
    flags: tuple[Flag, ...]
    script: str = ""  # sdxl_train.py
    launcher: str = ""  # accelerate, torchrun, deepspeed
    env: tuple[Flag, ...] = ()  # set in the shell for the training processes
    stray: tuple[Unmatched, ...] = ()  # words that belong to no flag
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Migration:
    """A job of ours, and what of the other's does not come along."""

    yaml: str
    unknown: tuple[Unmatched, ...]
    notes: tuple[str, ...]
    kind: Kind
    source: str  # train.sh
    script: str
    carried: tuple[str, ...]  # flags that are honoured, as they were written
    settings: Mapping[str, object] = field(repr=False)  # the job as plain values
    blanks: tuple[str, ...] = ()  # settings that are the user's to fill in
