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
_DEEPEST = 32  # levels; an alias to its own parent has no end
_MOST = 50_000  # values; aliases of aliases grow by powers
_YAML = "tag:yaml.org,2002:"
_PLAIN: dict[type[yaml.Node], tuple[str, ...]] = {
    yaml.ScalarNode: ("str", "int", "float", "bool", "null"),
    yaml.SequenceNode: ("seq",),
    yaml.MappingNode: ("map",),
}


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

    def is_scalar(self, path: Steps) -> bool:
        """Whether one word or number stands at a place."""
        return path in self.values and not any(other[:-1] == path for other in self.values if other)

    def problem(self, place: Place, what: str, hint: str = "", remedy: str = "") -> UsageError:
        """A UsageError that shows the line, the one before it, and a caret with the hint."""
        shown = [
            f"{number:5d} | {self.lines[number - 1].expandtabs(1)}"
            for number in (place.line - 1, place.line)
            if 0 < number <= len(self.lines)
        ]
        shown.append(f"      | {' ' * (place.column - 1)}^ {hint}".rstrip())
        where = f"{self.path}:{place.line}:{place.column}"
        return UsageError(what, where=where, remedy=remedy, excerpt="\n".join(shown), hint=hint)


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
            "the job file does not exist", where=str(path), remedy="clusterft init   writes a commented one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the job file cannot be read: {error}", where=str(path)) from None
    return parse(text, path)


def parse(text: str, path: Path) -> Document:
    """Turn YAML text into a Document."""
    document = Document(path, tuple(text.splitlines()), {}, {}, {})
    try:
        value = _value(text, document)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Place(before.count("\n") + 1, error.position - before.rfind("\n"))
        raise document.problem(place, f"not valid YAML: character {error.character:#06x} is not text") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
        tab = "\\t" in str(error.problem)
        remedy = "YAML indents with blanks: replace the tab" if tab else ""
        raise document.problem(place, f"not valid YAML: {error.problem or error}", "", remedy) from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"not valid YAML: {error}", where=str(path)) from None
    except RecursionError:
        raise UsageError("nested too deeply for a job file", where=str(path)) from None
    return Document(path, document.lines, value, document.keys, document.values)


def _value(text: str, document: Document) -> object:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return {}
        _index(root, (), document)
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _index(node: yaml.Node, path: Steps, document: Document) -> None:
    place = _place(node)
    _check(node, path, document)
    document.values[path] = place
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = _place(key)
            if key.tag != f"{_YAML}str":
                raise document.problem(place, "a key must be a word", "put it in quotes if it is one")
            _check(key, path, document)
            here = (*path, key.value)
            if here in document.keys:
                earlier = document.keys[here].line
                raise document.problem(place, f'"{key.value}" is given twice', f"first on line {earlier}")
            document.keys[here] = place
            _index(value, here, document)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _index(item, (*path, index), document)


def _place(node: yaml.Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


def _check(node: yaml.Node, path: Steps, document: Document) -> None:
    """Refuse what is not plain data, and what would never end."""
    if len(path) > _DEEPEST or len(document.values) > _MOST:
        raise document.problem(_place(node), "nested too deeply, or repeated too often, for a job file")
    kind = node.tag.removeprefix(_YAML)
    if kind not in _PLAIN[type(node)]:
        raise document.problem(_place(node), f"the tag {kind} is not plain data", "write the value without it")
    if not isinstance(node, yaml.ScalarNode):
        return
    if kind != "str" and not _fits(node):
        raise document.problem(_place(node), f'"{node.value[:60]}" cannot be read as {kind}')
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in node.value):
        raise document.problem(_place(node), "this text holds an escape that is no character")


def _fits(node: yaml.ScalarNode) -> bool:
    """Whether a number or word is one; a tag such as !!int may claim anything."""
    rules = (rule for listed in _Loader.yaml_implicit_resolvers.values() for rule in listed)
    return len(node.value) < 1000 and any(tag == node.tag and pattern.match(node.value) for tag, pattern in rules)
