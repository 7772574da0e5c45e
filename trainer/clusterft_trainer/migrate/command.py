"""The words of a shell text -> the training command among them, and its flags.

Owns where a command begins and ends, also where its line continuations were lost and a line begins with a flag,
and which flags belong to the launcher before the script. Refuses to choose between two trainings: the first one
counts, the others are told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from clusterft_trainer.migrate.found import LAUNCH, Flag, Reading, Unmatched, Value
from clusterft_trainer.migrate.known import (
    KOHYA,
    LAUNCH_NAMES,
    LAUNCH_SWITCHES,
    LAUNCHER,
    MANY,
    SCRIPTS,
    SWITCHES,
    resolve,
)
from clusterft_trainer.migrate.shell import ASSIGNED, Scanner, Stop, Word

_LOST_CONTINUATION = re.compile(r"--?[A-Za-z_]")
_LAUNCHERS = {
    "accelerate": "accelerate",
    "accelerate-launch": "accelerate",
    "accelerate.commands.launch": "accelerate",
    "torchrun": "torchrun",
    "torch.distributed.run": "torchrun",
    "torch.distributed.launch": "torchrun",
    "deepspeed": "deepspeed",
}


@dataclass(frozen=True, slots=True)
class _Command:
    words: tuple[Word, ...]
    script: int | None  # index of the word that names it
    launcher: str
    start: int | None  # index of the word that names the launcher

    @property
    def known(self) -> bool:
        """Whether the script is one of kohya's, by its name."""
        return self.script is not None and stem(self.words[self.script].text) in SCRIPTS


def stem(script: str) -> str:
    """Name of a script without its folder, ending and version: ../sd/sdxl_train_v2.py -> sdxl_train."""
    name = PurePosixPath(script.replace("\\", "/")).name
    return re.sub(r"(_v\d+)?\.py$", "", name, flags=re.IGNORECASE)


def read(text: str, name: str) -> Reading | None:
    """The training command of a shell text; None if there is none."""
    scanner = Scanner(text, name)
    commands = [_understood(words) for words in _commands(scanner.words())]
    training = [c for c in commands if c.known] or [c for c in commands if c.script is not None and _flags_in(c)]
    training = (
        training or [c for c in commands if c.launcher and _flags_in(c)] or [c for c in commands if _flags_in(c)]
    )
    if not training:
        return None
    chosen = training[0]
    notes = [
        f"{name}:{other.words[0].line} is another training command: migrate it by itself" for other in training[1:]
    ]
    before = commands[: next(i for i, c in enumerate(commands) if c is chosen)]
    script = "" if chosen.script is None else chosen.words[chosen.script].text
    flags, stray = _flags(chosen, name)
    env = (*(w for c in before for w in _exported(c)), *_leading(chosen))
    return Reading(
        "command",
        tuple(flags),
        script=script,
        launcher=chosen.launcher,
        env=tuple(_assignment(word, name) for word in env),
        stray=tuple(stray),
        notes=tuple(notes),
    )


def _commands(words: Iterator[Word | Stop]) -> Iterator[list[Word]]:
    """Cut at stops; a line that begins with a flag, or a script that a launcher waits for, goes with the last."""
    command: list[Word] = []
    ended = False
    for word in words:
        if isinstance(word, Stop):
            ended = True
            if word.hard and command:
                yield command
                command = []
            continue
        if ended and command and not (_continues(word) or _waits(command)):
            yield command
            command = []
        ended = False
        command.append(word)
    if command:
        yield command


def _continues(word: Word) -> bool:
    return not word.quoted and _LOST_CONTINUATION.match(word.text) is not None


def _waits(command: Sequence[Word]) -> bool:
    """A launcher still without its script."""
    heads = {PurePosixPath(word.text).name for word in command[:4]}
    return bool(heads & _LAUNCHERS.keys()) and not any(word.text.lower().endswith(".py") for word in command)


def _understood(words: list[Word]) -> _Command:
    scripts = [i for i, word in enumerate(words) if word.text.lower().endswith(".py") and not word.option]
    known = [i for i in scripts if stem(words[i].text) in SCRIPTS]
    script = next(iter(known or scripts), None)
    launchers = [i for i, word in enumerate(words[:script]) if _launcher(word)]
    start = launchers[0] if launchers else None
    return _Command(tuple(words), script, "" if start is None else _launcher(words[start]), start)


def _launcher(word: Word) -> str:
    return _LAUNCHERS.get(PurePosixPath(word.text).name, "")


def _flags_in(command: _Command) -> bool:
    after = command.words if command.script is None else command.words[command.script + 1 :]
    return any(w.option and resolve(_split(w)[0]) in KOHYA for w in after)


def _leading(command: _Command) -> list[Word]:
    """NAME=value before the command itself."""
    found = []
    for word in command.words:
        if word.text == "env":
            continue
        if not ASSIGNED.fullmatch(word.text):
            break
        found.append(word)
    return found


def _exported(command: _Command) -> list[Word]:
    words = command.words
    if words[0].text not in ("export", "set", "setx"):
        return []
    return [word for word in words[1:] if ASSIGNED.fullmatch(word.text)]


def _assignment(word: Word, file: str) -> Flag:
    name, _, value = word.text.partition("=")
    return Flag(name, value, f"{file}:{word.line}", name, variable=word.variable)


def _split(word: Word) -> tuple[str, str | None]:
    name, equals, value = word.text.lstrip("-").partition("=")
    return name.replace("-", "_"), value if equals else None


def _flags(command: _Command, file: str) -> tuple[list[Flag], list[Unmatched]]:
    """Flags before the script belong to the launcher, those behind it to kohya; python's own to nobody."""
    begin = len(_leading(command)) if command.start is None else command.start + 1
    if command.script is None:
        flags, stray = _options(command.words[begin:], file, kohya=True)
        return [_whose(flag) for flag in flags], [word for word in stray if word.flag != "launch"]
    front: list[Flag] = []
    if command.start is not None:
        front, _ = _options(command.words[begin : command.script], file, kohya=False)
    back, stray = _options(command.words[command.script + 1 :], file, kohya=True)
    return [*front, *back], stray


def _whose(flag: Flag) -> Flag:
    """Without a script between them, what kohya does not know may be the launcher's."""
    name = LAUNCH_NAMES.get(flag.name, flag.name)
    if flag.name in KOHYA or name not in LAUNCHER:
        return flag
    return Flag(LAUNCH + name, flag.value, flag.place, flag.shown, variable=flag.variable)


def _options(words: Sequence[Word], file: str, *, kohya: bool) -> tuple[list[Flag], list[Unmatched]]:
    flags, stray = [], []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not word.option:
            stray.append(
                Unmatched(word.text[:60], "", f"{file}:{word.line}", "unknown", "a word that belongs to no flag")
            )
            continue
        name, value = _split(word)
        name = resolve(name) if kohya else LAUNCH_NAMES.get(name, name)
        end = at + (_takes(name, value, kohya=kohya))
        taken: list[Word] = []
        while at < min(end, len(words)) and not words[at].option:
            taken.append(words[at])
            at += 1
        values = ([] if value is None else [value]) + [w.text for w in taken]
        variable = next((w.variable for w in (word, *taken) if w.variable), "")
        shown = "-" * (len(word.text) - len(word.text.lstrip("-"))) + word.text.lstrip("-").partition("=")[0]
        full = name if kohya else LAUNCH + name
        flags.append(Flag(full, _value(name, values), f"{file}:{word.line}", shown, variable=variable))
    return flags, stray


def _takes(name: str, value: str | None, *, kohya: bool) -> int:
    """How many of the words behind a flag are its values."""
    if name in MANY and kohya:
        return 1_000_000
    return 0 if value is not None or name in (SWITCHES if kohya else LAUNCH_SWITCHES) else 1


def _value(name: str, values: list[str]) -> Value:
    if name in MANY:
        return tuple(values)
    return values[0] if values else True
