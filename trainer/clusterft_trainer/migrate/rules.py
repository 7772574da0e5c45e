"""The order of the rules, from a file to a migration.

Owns which reader a file gets and what is read along with it. Refuses commands that train something else than
SDXL, and text in which there is nothing to migrate.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath

from clusterft_trainer.errors import ConfigError
from clusterft_trainer.migrate import (
    aim,
    cache,
    command,
    conflicts,
    course,
    learning,
    machine,
    optimizers,
    page,
    sources,
    tables,
    what,
)
from clusterft_trainer.migrate.case import Case, processes
from clusterft_trainer.migrate.found import LAUNCH, Flag, Migration, Reading
from clusterft_trainer.migrate.here import LARGEST, AtHand
from clusterft_trainer.migrate.known import SCRIPTS
from clusterft_trainer.migrate.sheet import Sheet

_RULES: tuple[Callable[[Sheet, Case], None], ...] = (
    what.model,
    what.output,
    sources.sources,
    what.data,
    what.captions,
    learning.rates,
    learning.lora,
    optimizers.optimizer,
    learning.schedule,
    learning.clipping,
    aim.prediction,
    aim.loss,
    aim.noise,
    machine.batch,
    machine.precision,
    machine.engine,
    machine.compute,
    course.length,
    course.checkpoints,
    course.samples,
    course.held_out,
    course.trackers,
    cache.cache,
    machine.place,
    conflicts.resolve,
)
_NOTHING = AtHand()
_REMEDY = "Give a shell command that runs sdxl_train.py, kohya's TOML, or the YAML of `accelerate config`."


def run(text: str, name: str, here: AtHand = _NOTHING) -> Migration:
    """Migrate one file, with what it names, as far as that is at hand."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if "\0" in text or len(text) > LARGEST:
        raise ConfigError(f"{name} is not a text of settings.", _REMEDY)
    first = _read(text, name)
    script = command.stem(first.script)
    other = SCRIPTS.get(script, "")
    if other:
        raise ConfigError(
            f"{name} runs {PurePosixPath(first.script).name}, which trains {other}.", "This trainer is for SDXL."
        )
    readings = [first, *_along(first, here)]
    sheet = Sheet(readings)
    case = _case(sheet, first, script, name, here)
    for rule in _RULES:
        rule(sheet, case)
    machine.environment(sheet, first.env)
    sheet.leave_the_rest()
    sheet.settle()
    sheet.tell_variables()
    unmatched, notes = sheet.unmatched(), tuple(sheet.notes)
    head = page.head(name, case.script, unmatched, notes, len(sheet.blanks))
    return Migration(
        yaml=page.write(sheet.job, sheet.comments, head),
        unknown=unmatched,
        notes=notes,
        kind=first.kind,
        source=name,
        script=case.script,
        carried=sheet.carried(),
        settings=sheet.job,
        blanks=tuple(sheet.blanks),
    )


def _read(text: str, name: str) -> Reading:
    ending = PurePosixPath(name).suffix.lower()
    if ending == ".toml":
        return tables.toml(text, name)
    if ending == ".json" or text.lstrip().startswith("{"):
        return tables.json_table(text, name)
    if ending in (".yaml", ".yml"):
        return tables.accelerate(text, name)
    found = command.read(text, name)
    if found is not None:
        return found
    if re.search(r"(?m)^\s*\[", text) or re.search(r"(?m)^\s*\w+\s*=", text):
        return tables.toml(text, name)
    if re.search(r"(?m)^\w+:", text):
        return tables.accelerate(text, name)
    raise ConfigError(f"{name} holds no training command.", _REMEDY)


def _along(first: Reading, here: AtHand) -> list[Reading]:
    """What the files say that a command or a TOML names."""
    found: list[Reading] = []
    for name, reader in (
        ("config_file", tables.toml),
        ("dataset_config", tables.toml),
        (LAUNCH + "config_file", tables.accelerate),
    ):
        flag = next(
            (f for f in reversed([*first.flags, *(f for r in found for f in r.flags)]) if f.name == name), None
        )
        text = None if flag is None or not isinstance(flag.value, str) else _text(here, flag.value, name)
        if flag is not None and text is not None:
            reads = tables.json_table if str(flag.value).endswith(".json") else reader
            found.append(reads(text, PurePosixPath(str(flag.value)).name))
    return found


def _text(here: AtHand, path: str, name: str) -> str | None:
    # kohya adds the ending by itself
    text = here.text(path)
    return here.text(f"{path}.toml") if text is None and name == "config_file" else text


def _case(sheet: Sheet, first: Reading, script: str, name: str, here: AtHand) -> Case:
    for flag in ("config_file", "dataset_config", LAUNCH + "config_file"):
        _included(sheet, flag, here)
    ours = [flag for flag in sheet.flags if not flag.name.startswith(LAUNCH)]
    return Case(
        kind=first.kind,
        source=name,
        script=PurePosixPath(first.script.replace("\\", "/")).name,
        launcher=first.launcher,
        lora=script == "sdxl_train_network" or (not script and _is_lora(ours)),
        kohya=bool(ours) or bool(script),
        processes=processes(sheet),
        here=here,
    )


def _included(sheet: Sheet, name: str, here: AtHand) -> None:
    path = sheet.text(name)
    if path is not None and _text(here, path, name) is None:
        sheet.leave(name, "unreadable", "the file is not at hand: put it beside this one, or migrate it by itself")


def _is_lora(flags: list[Flag]) -> bool:
    return any(flag.name in ("network_module", "network_dim", "unet_lr") and flag.value for flag in flags)
