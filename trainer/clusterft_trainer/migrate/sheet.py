"""What a migration has decided so far: which flags were understood, which settings follow, what is said of it.

Owns the conversion of values, who wins where a flag is given twice, and the promise that no flag is dropped
silently. Refuses settings that our own validation refuses: each is taken back with the reason.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterator
from typing import Any, TypeVar

from pydantic import ValidationError

from clusterft_trainer.config import TrainConfig
from clusterft_trainer.errors import ConfigError
from clusterft_trainer.migrate.found import DATASET, LAUNCH, Flag, Reading, Unmatched, Value, Why
from clusterft_trainer.migrate.known import HARMLESS, LEFT, nearest

_T = TypeVar("_T")
_TRUE, _FALSE = ("true", "yes", "1", "on"), ("false", "no", "0", "off")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
_NOTHING = ("", "None", "none", "null")
_MOST_ROUNDS = 60  # of taking back; each takes at least one setting


class Sheet:
    """Flags in, settings out; rules write into it one after the other."""

    def __init__(self, readings: list[Reading]) -> None:
        self.flags = [flag for reading in readings for flag in reading.flags]
        self.job: dict[str, Any] = {}
        self.comments: dict[str, str] = {}
        self.blanks: list[str] = []
        self.notes: list[str] = [note for reading in readings for note in reading.notes]
        self._left: dict[int, Unmatched] = {}  # by the flag's place in the list
        self._seen: set[int] = set()
        self._because: dict[str, tuple[str, ...]] = {}  # setting -> names of flags
        self._stray = [stray for reading in readings for stray in reading.stray]

    # Flags

    def _every(self, name: str) -> list[int]:
        return [i for i, flag in enumerate(self.flags) if flag.name == name]

    def _winner(self, name: str) -> Flag | None:
        """The flag that counts; all of its name are settled by asking."""
        every = [i for i in self._every(name) if i not in self._left]
        if not every:
            return None
        top = max(self.flags[i].rank for i in every)
        first = [i for i in every if self.flags[i].rank == top]
        chosen = first[0] if top >= DATASET else first[-1]
        winner = self.flags[chosen]
        for i in every:
            self._seen.add(i)
            if self.flags[i].value == winner.value:
                continue
            reason = f"{winner.shown} at {winner.place} wins"
            if self.flags[i].rank == winner.rank >= DATASET:
                reason = f"one value holds for all pictures: that of {winner.place}"
            self._leave_one(i, "overruled", reason)
        return winner

    def given(self, name: str) -> bool:
        """Whether a flag is there and asks for something."""
        flag = self._winner(name)
        return flag is not None and flag.value not in _NOTHING and flag.value is not False

    def _converted(self, name: str, kind: type[_T], what: str) -> _T | None:
        flag = self._winner(name)
        if flag is None or flag.value in _NOTHING or flag.value is False:
            return None
        try:
            return _as(kind, flag.value)
        except ValueError:
            self.leave(name, "unreadable", _unreadable(flag, what))
            return None

    def number(self, name: str) -> float | None:
        """The value as a finite number."""
        return self._converted(name, float, "a number")

    def whole(self, name: str) -> int | None:
        """The value as an integer."""
        return self._converted(name, int, "a whole number")

    def text(self, name: str) -> str | None:
        """The value as text without control characters; a variable in it is kept."""
        return self._converted(name, str, "text that a job can hold") or None

    def words(self, name: str) -> tuple[str, ...]:
        """The value as several words."""
        flag = self._winner(name)
        if flag is None or flag.value in _NOTHING or isinstance(flag.value, bool):
            return ()
        values = flag.value if isinstance(flag.value, tuple) else str(flag.value).split()
        return tuple(word for value in values for word in value.split())

    def switch(self, name: str) -> bool:
        """Whether a switch is on."""
        flag = self._winner(name)
        if flag is None or flag.value is False or str(flag.value).lower() in (*_FALSE, "", "none"):
            return False
        if flag.value is not True and str(flag.value).lower() not in _TRUE:
            self.leave(name, "unreadable", "is neither on nor off")
            return False
        return True

    def every(self, name: str) -> list[Flag]:
        """All flags of a name, none of them overruled; for what may be given often."""
        found = self._every(name)
        self._seen.update(found)
        return [self.flags[i] for i in found]

    def of(self, flag: Flag, kind: type[_T]) -> _T | None:
        """The value of one flag out of several that count, as text or as an integer."""
        if flag.value in _NOTHING or flag.value is False:
            return None
        try:
            return _as(kind, flag.value)
        except ValueError:
            what = "text that a job can hold" if kind is str else "a whole number"
            self.leave_flag(flag, "unreadable", _unreadable(flag, what))
            return None

    def names(self) -> Iterator[str]:
        """Names of all flags, in order."""
        return iter(dict.fromkeys(flag.name for flag in self.flags))

    # What becomes of them

    def put(self, path: str, value: object, *by: str, say: str = "") -> None:
        """Settle one setting of the job; `by` names the flags that it follows from."""
        *parents, leaf = path.split(".")
        table = self.job
        for parent in parents:
            table = table.setdefault(parent, {})
        table[leaf] = value
        self._because[path] = by
        if say:
            self.comments[path] = say

    def get(self, path: str, default: Any = None) -> Any:
        """A setting that was put before."""
        table: Any = self.job
        for name in path.split("."):
            if not isinstance(table, dict) or name not in table:
                return default
            table = table[name]
        return table

    def drop(self, path: str) -> None:
        """Take a setting back, and what became empty by that."""
        *parents, leaf = path.split(".")
        table = self.get(".".join(parents)) if parents else self.job
        if isinstance(table, dict):
            table.pop(leaf, None)
            if parents and not table:
                self.drop(".".join(parents))
        self._because.pop(path, None)
        self.comments.pop(path, None)

    def blank(self, path: str, value: object, why: str) -> None:
        """A setting that only the user knows."""
        self.put(path, value, say=f"FILL IN: {why}")
        self.blanks.append(f"{path}: {why}")

    def note(self, text: str) -> None:
        """Something to know, told once."""
        if text not in self.notes:
            self.notes.append(text)

    def leave(self, name: str, why: Why, reason: str) -> None:
        """Report all flags of a name as not honoured."""
        for i in self._every(name):
            if i not in self._left:
                self._leave_one(i, why, reason)

    def leave_flag(self, flag: Flag, why: Why, reason: str) -> None:
        """Report one flag of several that count."""
        self._leave_one(next(i for i, other in enumerate(self.flags) if other is flag), why, reason)

    def leave_others(self, name: str, heeded: Container[Flag], why: Why, reason: str) -> None:
        """Report all flags of a name but those that are honoured."""
        for i in self._every(name):
            if i not in self._left and self.flags[i] not in heeded:
                self._leave_one(i, why, reason)

    def _leave_one(self, index: int, why: Why, reason: str) -> None:
        flag = self.flags[index]
        self._seen.add(index)
        if _asks_for_nothing(flag):
            return
        self._left[index] = Unmatched(flag.shown, flag.text, flag.place, why, reason)

    def leave_word(self, name: str, word: str, why: Why, reason: str) -> None:
        """Report one of several words of a flag; the others are honoured."""
        flag = self._winner(name)
        if flag is not None:
            self._stray.append(Unmatched(flag.shown, word[:60], flag.place, why, reason))

    # At the end

    def leave_the_rest(self) -> None:
        """Every flag that no rule asked for has a known reason, asks for nothing, or is unknown."""
        for index, flag in enumerate(self.flags):
            if index in self._seen:
                continue
            if flag.name in LEFT or _asks_for_nothing(flag):
                self._leave_one(index, *LEFT.get(flag.name, ("not needed", "it asks for nothing")))
            else:
                near = nearest(flag.name)
                hint = f"did you mean {near}?" if near else "neither kohya's scripts nor the launchers have it"
                self._leave_one(index, "unknown", hint)

    def tell_variables(self) -> None:
        """A setting that holds a variable of the shell is the user's to fill in."""
        for index, flag in enumerate(self.flags):
            if not flag.variable or index in self._left or flag.name.startswith(LAUNCH):
                continue
            for path, names in self._because.items():
                if flag.name in names and flag.variable in json.dumps(self.get(path)):
                    self.comments[path] = f"FILL IN: the value of {flag.variable}"
                    self.blanks.append(f"{path}: the value of {flag.variable}")

    def settle(self) -> None:
        """Take back what our own validation refuses, until nothing is."""
        for _ in range(_MOST_ROUNDS):
            try:
                # As the launcher does: strict about numbers and words, but lists are tuples.
                TrainConfig.model_validate_json(json.dumps(self.job["train"]), strict=True)
                return
            except ValidationError as error:
                first = error.errors()[0]
                self._take_back([str(step) for step in first["loc"]], str(first["msg"]))
        raise ConfigError("No job could be made of these flags.", "Please report it, with the command.")

    def _take_back(self, where: list[str], message: str) -> None:
        message = message.removeprefix("Value error, ")
        blamed = {p: _blame(p, where, message) for p in self._because if p.startswith("train.")}
        found = [(place, -len(path), path) for path, place in blamed.items() if place is not None]
        if not found:
            raise ConfigError(
                f"No job could be made of these flags: {'.'.join(where)}: {message}.", "Please report it."
            )
        path = min(found)[2]
        for name in self._because[path]:
            self.leave(name, "not possible", message)
        self.note(f"{path.removeprefix('train.')}: {message}: left out")
        self.drop(path)

    def unmatched(self) -> tuple[Unmatched, ...]:
        """All that is not honoured, in the order in which it was found."""
        return (*(self._left[i] for i in sorted(self._left)), *self._stray)

    def carried(self) -> tuple[str, ...]:
        """Flags that are honoured, as they were written."""
        return tuple(flag.shown for i, flag in enumerate(self.flags) if i in self._seen and i not in self._left)


def _as(kind: type[Any], value: Value) -> Any:
    if kind is str:
        text = " ".join(value) if isinstance(value, tuple) else str(value)
        if value is True or _CONTROL.search(text):
            raise ValueError
        return text
    if isinstance(value, (bool, tuple)):
        raise ValueError
    try:
        number = float(value)
    except OverflowError:
        raise ValueError from None
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        raise ValueError
    return int(value if isinstance(value, int) else number) if kind is int else number


def _unreadable(flag: Flag, what: str) -> str:
    if flag.variable:
        return f"{flag.variable} is a shell variable: write its value into the job"
    return "has no value" if flag.value is True else f"is not {what}"


def _asks_for_nothing(flag: Flag) -> bool:
    if flag.value is False or flag.value == "" or (isinstance(flag.value, tuple) and not any(flag.value)):
        return True
    harmless = HARMLESS.get(flag.name, ())
    if str(flag.value).lower() in ("false", "none") and (flag.name in LEFT):
        return True
    try:
        return flag.value in harmless or float(str(flag.value)) in harmless
    except ValueError:
        return False


def _blame(path: str, where: list[str], message: str) -> int | None:
    """How directly a refusal is about this setting, least is most; None if it is not.

    It lies where the refusal points, or the sentence names it: the sooner, the more.
    """
    steps = path.removeprefix("train.").split(".")
    rest = iter(where)
    if where and all(step in rest for step in steps):
        return -1
    below = ".".join(steps[len(where) :]) if steps[: len(where)] == where else ""
    found = re.search(rf"\b{re.escape(below)}\b", message) if below else None
    return None if found is None else found.start()
