"""docs/settings.md: every setting of job.yaml, from the JSON Schema that `clusterft schema` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

INTRO = """\
# Settings of job.yaml

Written by `tools/write_docs.py` from the code; do not edit. `clusterft init` writes a commented job with all of
them, `clusterft schema` prints this as a JSON Schema for editors, [trainer.md](trainer.md) says what goes with
what. A job with an unknown key, or with two settings that do not go together, is refused before any node is
touched. Every path is relative to job.yaml, and is then the same path on every node.
"""
# Words that YAML would not read as words, and numbers that only say how much fits into a machine's integer.
_QUOTED = frozenset({"true", "false", "null", ""})
_BOUNDLESS = 1e15

Schema = dict[str, Any]


def page(schema: Schema) -> str:
    """The whole page."""
    sections = list(_sections(schema, schema, "", "job.yaml"))
    return "\n".join([INTRO, *(_section(*found) for found in sections)])


def _sections(node: Schema, root: Schema, path: str, title: str) -> Iterator[tuple[str, str, Schema, Schema]]:
    """(heading, path of its keys, the section, the whole schema), a section before those inside of it."""
    yield title, path, node, root
    for name, inner in node.get("properties", {}).items():
        here = f"{path}{name}"
        for kind, found in _inside(inner, root):
            yield from _sections(found, root, f"{here}.", f"{here}, {kind}" if kind else here)


def _inside(node: Schema, root: Schema) -> list[tuple[str, Schema]]:
    """The sections that may stand for a setting, each with what tells it from the others."""
    refs = [one["$ref"] for one in _options(node) if "$ref" in one]
    found = [root["$defs"][ref.rpartition("/")[2]] for ref in refs]
    return [(_kind(one) if len(found) > 1 else "", one) for one in found]


def _options(node: Schema) -> list[Schema]:
    if "items" in node:
        return _options(node["items"])
    return [node, *(one for key in ("anyOf", "oneOf") for inner in node.get(key, ()) for one in _options(inner))]


def _kind(section: Schema) -> str:
    """What marks one of several sections: kind: zero, or the key that it alone has."""
    kind = section["properties"].get("kind", {}).get("const")
    return f"kind: {kind}" if kind else f"with {next(iter(section['properties']))}"


def _section(title: str, path: str, node: Schema, root: Schema) -> str:
    rows = [
        f"| `{path}{name}` | {_cell(_type(inner))} | {_default(name, inner, node)} | {_cell(_told(inner, root))} |"
        for name, inner in node["properties"].items()
    ]
    about = node.get("description", "")
    return f"## {title}\n\n{about}\n\n| setting | type | default | |\n|-|-|-|-|\n" + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _told(node: Schema, root: Schema) -> str:
    """Its own description; what a section is for stands with the section."""
    return str(node.get("description", "")) or ("see below" if _inside(node, root) else "")


def _default(name: str, node: Schema, section: Schema) -> str:
    if name in section.get("required", ()):
        return "**needed**"
    value = node.get("default")
    if node.get("type") == "object":
        return "`{}`"
    if isinstance(value, dict) or "default" not in node:
        return "its own"
    shown = {True: "true", False: "false", None: "null"}.get(value) if isinstance(value, bool | None) else None
    return f"`{shown or _plain(value)}`"


def _plain(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return f'"{value}"' if value in _QUOTED else str(value)


def _type(node: Schema) -> str:
    options = [one for key in ("anyOf", "oneOf") for one in node.get(key, ())]
    if options and _shorter(options):
        return "section, or its `name` alone"
    if options:
        return " or ".join(dict.fromkeys(_type(one) for one in options))
    if "$ref" in node:
        return "section"
    if "const" in node:
        return f"`{_plain(node['const'])}`"
    if "enum" in node:
        return ", ".join(f"`{_plain(word)}`" for word in node["enum"])
    return _TYPES[node["type"]](node)


def _shorter(options: list[Schema]) -> bool:
    return any("$ref" in one for one in options) and any("enum" in one for one in options)


def _number(word: str, node: Schema) -> str:
    words = [word]
    for kinds in (
        (("exclusiveMinimum", "above"), ("minimum", "from")),
        (("exclusiveMaximum", "below"), ("maximum", "to")),
    ):
        told = [f"{say} {node[key]:g}" for key, say in kinds if key in node and abs(node[key]) < _BOUNDLESS]
        words += told[:1]
    return " ".join(words) + (f", a multiple of {node['multipleOf']}" if "multipleOf" in node else "")


def _text(node: Schema) -> str:
    if "examples" in node:
        return "such as " + ", ".join(f"`{one}`" for one in node["examples"])
    return {"path": "path"}.get(node.get("format", ""), "plain name" if "pattern" in node else "text")


def _list(node: Schema) -> str:
    if "prefixItems" in node:
        return f"list of {len(node['prefixItems'])}: " + ", ".join(_type(one) for one in node["prefixItems"])
    most = f", at most {node['maxItems']}" if "maxItems" in node else ""
    return f"list of {_type(node['items'])}{most}"


_TYPES = {
    "integer": lambda node: _number("whole number", node),
    "number": lambda node: _number("number", node),
    "string": _text,
    "boolean": lambda node: "`true`, `false`",
    "null": lambda node: "`null`",
    "array": _list,
    "object": lambda node: "mapping of names to text",
}
