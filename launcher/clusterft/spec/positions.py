"""YAML text -> plain values, with the line and column of every key and value.

Scalars follow YAML 1.2, so `4e-7` is a number and `no` is a word. Refuses duplicate keys, several documents and
anything that is not plain data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from clusterft.errors import UsageError

Steps = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands, counted from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML file as plain values, and where each of them stands."""

    path: Path
    lines: tuple[str, ...]
    value: object
    keys: dict[Steps, Place] = field(repr=False)
    values: dict[Steps, Place] = field(repr=False)

    def where(self, path: Steps, *, key: bool = False) -> Place:
        """The place of a value (or of its key); of the nearest parent when it is not in the file."""
        table = self.keys if key else self.values
        while path and path not in table:
            path = path[:-1]
            table = self.keys or self.values
        return table.get(path, Place(1, 1))

    def problem(self, place: Place, what: str, hint: str = "", remedy: str = "") -> UsageError:
        """A UsageError that shows the line, the one before it, and a caret with the hint."""
        shown = [
            f"{number:5d} | {self.lines[number - 1].expandtabs(1)}"
            for number in (place.line - 1, place.line)
            if 0 < number <= len(self.lines)
        ]
        shown.append(f"      | {' ' * (place.column - 1)}^ {hint}".rstrip())
        where = f"{self.path}:{place.line}:{place.column}"
        return UsageError(what, where=where, remedy=remedy, excerpt="\n".join(shown))


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2; the tables are its own, not PyYAML's shared ones."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, _pattern, _first in (
    ("bool", r"^(?:true|false)$", "tf"),
    ("null", r"^(?:null|~|)$", "n~\0"),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("float", r"^[-+]?\.(?:inf|nan)$", "-+."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^$"), [""])
# PyYAML reads 0123 as octal and 1:30 as base 60 even when the resolver above found an int; plain int() does not.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(str(node.value)))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: _float(str(node.value)))


def _float(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def read(path: Path) -> Document:
    """Read one YAML file; the result of an empty file is an empty mapping."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(
            "the job file does not exist", where=str(path), remedy="clusterft init writes a commented one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the job file cannot be read: {error}", where=str(path)) from None
    return parse(text, path)


def parse(text: str, path: Path) -> Document:
    """Turn YAML text into a Document."""
    document = Document(path, tuple(text.splitlines()), {}, {}, {})
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return document
        _index(root, (), document)
        value = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
        raise document.problem(place, f"not valid YAML: {error.problem or error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"not valid YAML: {error}", where=str(path)) from None
    finally:
        loader.dispose()
    return Document(path, document.lines, value, document.keys, document.values)


def _index(node: yaml.Node, path: Steps, document: Document) -> None:
    document.values[path] = Place(node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = Place(key.start_mark.line + 1, key.start_mark.column + 1)
            name = key.value if isinstance(key, yaml.ScalarNode) else str(key.tag)
            here = (*path, name)
            if here in document.keys:
                earlier = document.keys[here].line
                raise document.problem(place, f'"{name}" is given twice', f"first on line {earlier}")
            document.keys[here] = place
            _index(value, here, document)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _index(item, (*path, index), document)
