"""kohya's TOML and JSON files, and accelerate's YAML -> flags with their places.

Owns both shapes of TOML: settings of the command line (whose sections kohya ignores), and data sets with
[general], [[datasets]] and [[datasets.subsets]]. Refuses a file that is neither, and a job of ours.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from clusterft_trainer.errors import ConfigError
from clusterft_trainer.migrate.found import DATASET, FILE, GENERAL, LAUNCH, SUBSET, Flag, Reading, Value
from clusterft_trainer.migrate.known import DATASET_NAMES, KOHYA, LAUNCH_NAMES, LAUNCHER, resolve

_SECTIONS = ("deepspeed_config", "fsdp_config", "dynamo_config", "megatron_lm_config", "fp8_config")
_HEADER = re.compile(r"\s*\[{1,2}\s*([\w.\-\"' ]+?)\s*\]{1,2}")
_KEY = re.compile(r"\s*[\"']?([\w.\-]+)[\"']?\s*=")
_DEEPEST = 200  # characters of a value that is a collection of its own


def toml(text: str, name: str) -> Reading:
    """A --config_file or a --dataset_config."""
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{name} is not TOML: {error}.", "Correct it there; kohya cannot read it either."
        ) from None
    return _kohya(values, name, _Lines(text))


def json_table(text: str, name: str) -> Reading:
    """The same settings, or data sets, in JSON."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not JSON: {error}.", "Correct it there.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name} holds no settings.", "Give a kohya command, TOML, or accelerate's YAML.")
    return _kohya(values, name, _Lines(""))


class _Lines:
    """Which line of a TOML file a key stands on, as far as a look at each line tells."""

    def __init__(self, text: str) -> None:
        self._found: dict[tuple[str, int, str], int] = {}
        table, counts = "", {"": 0}
        for number, line in enumerate(text.splitlines(), 1):
            if header := _HEADER.match(line):
                table = re.sub(r"[\"' ]", "", header[1])
                counts[table] = counts.get(table, -1) + 1
            elif key := _KEY.match(line):
                self._found.setdefault((table, counts[table], key[1]), number)

    def place(self, file: str, table: str, index: int, key: str) -> str:
        """FILE:LINE, or FILE alone."""
        line = self._found.get((table, index, key))
        return file if line is None else f"{file}:{line}"


def _kohya(values: Mapping[str, Any], name: str, lines: _Lines) -> Reading:
    data = isinstance(values.get("datasets"), list) or (
        isinstance(values.get("general"), dict) and len(values) == 1
    )
    flags = list(_dataset(values, name, lines) if data else _arguments(values, name, lines))
    return Reading("dataset" if data else "toml", tuple(flags))


def _arguments(values: Mapping[str, Any], file: str, lines: _Lines) -> Iterator[Flag]:
    for key, value in values.items():
        if isinstance(value, dict):
            for inner, settled in value.items():
                yield _flag(inner, settled, lines.place(file, key, 0, inner), inner, FILE)
        else:
            yield _flag(key, value, lines.place(file, "", 0, key), key, FILE)


def _dataset(values: Mapping[str, Any], file: str, lines: _Lines) -> Iterator[Flag]:
    subset = 0
    for key, value in values.items():
        if key == "general" and isinstance(value, dict):
            for inner, settled in value.items():
                yield _flag(inner, settled, lines.place(file, key, 0, inner), f"[general] {inner}", GENERAL)
        elif key != "datasets" or not isinstance(value, list):
            yield _flag(key, value, lines.place(file, "", 0, key), key, GENERAL)
    for index, table in enumerate(_tables(values.get("datasets"))):
        for inner, settled in table.items():
            if inner != "subsets":
                place = lines.place(file, "datasets", index, inner)
                yield _flag(inner, settled, place, f"[[datasets]] {inner}", DATASET, (index, -1))
        for part in _tables(table.get("subsets")):
            for inner, settled in part.items():
                place = lines.place(file, "datasets.subsets", subset, inner)
                yield _flag(inner, settled, place, f"[[datasets.subsets]] {inner}", SUBSET, (index, subset))
            subset += 1


def _tables(value: object) -> list[Mapping[str, Any]]:
    return [table for table in value if isinstance(table, dict)] if isinstance(value, list) else []


def _flag(key: str, value: object, place: str, shown: str, rank: int, part: tuple[int, int] = (-1, -1)) -> Flag:
    name = DATASET_NAMES.get(key, key) if rank > FILE else key
    return Flag(resolve(name) if rank == FILE else name, _plain(value), place, shown, rank, part=part)


def _plain(value: object) -> Value:
    """A value as a flag may have it; a table inside becomes text."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if value is None:
        return ""
    if isinstance(value, (list, tuple)) and not any(isinstance(one, (dict, list)) for one in value):
        return tuple(str(one) for one in value[:1000])
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (dict, list)) else str(value)[:_DEEPEST]


def accelerate(text: str, name: str) -> Reading:
    """The file that `accelerate config` writes."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name} is not YAML: {reason}.", "Correct it there.") from None
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{name} holds no settings.", "Give a kohya command, TOML, or accelerate's YAML.")
    if "train" in values and "shared" in values:
        raise ConfigError(f"{name} is a job of clusterft already.", "clusterft train takes it as it is.")
    return Reading("accelerate", tuple(_launch(values, node, name)))


def _launch(values: Mapping[Any, Any], node: yaml.MappingNode, file: str) -> Iterator[Flag]:
    for (key, value), (place, inside) in zip(values.items(), _unique(node), strict=False):
        if key in _SECTIONS and isinstance(value, dict) and isinstance(inside, yaml.MappingNode):
            for (inner, settled), (there, _) in zip(value.items(), _unique(inside), strict=False):
                yield _launch_flag(str(inner), settled, f"{file}:{there.start_mark.line + 1}", str(key))
        else:
            yield _launch_flag(str(key), value, f"{file}:{place.start_mark.line + 1}", "")


def _unique(node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
    """One pair for each key, as in the dictionary: first place, last value."""
    places: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        name = str(getattr(key, "value", key))
        places[name] = (places.get(name, (key, value))[0], value)
    return list(places.values())


def _launch_flag(key: str, value: object, place: str, section: str) -> Flag:
    name = LAUNCH_NAMES.get(key, key)
    plain = {True: "true", False: "false"}[value] if isinstance(value, bool) else _plain(value)
    shown = f"{section}.{key}" if section else key
    known = name in LAUNCHER or key in KOHYA
    return Flag(LAUNCH + (name if known else key), "" if plain == () else plain, place, shown, FILE)
