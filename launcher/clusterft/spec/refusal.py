"""pydantic's validation errors -> sentences with file, line, column and a did-you-mean.

Pure. The words are for someone who has never heard of pydantic.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from clusterft.errors import UsageError
from clusterft.spec import combination, fields
from clusterft.spec.fields import Spot
from clusterft.spec.positions import Document, Place, Steps
from clusterft_trainer.config import Optimizer
from clusterft_trainer.config.base import Span

# pydantic's names of Python types, in the words of a YAML file.
_SHAPES = {
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
    "tuple_type": "a list",
    "list_type": "a list",
    "string_type": "text (in quotes, if it looks like a number)",
    "path_type": "a path",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
}
# Mappings that are written shorter, as one word.
_SHORTER = {Span: "such as '15min', '200 steps' or '1 epoch'", Optimizer: "a name or a mapping of keys"}
_MANY = 4  # words that fit into a sentence
_WORD = re.compile(r"'([^']*)'")


@dataclass(frozen=True, slots=True)
class _Mistake:
    """One of pydantic's complaints, and the spot in the file that it is about."""

    item: Any
    spot: Spot

    @property
    def loc(self) -> Steps:
        return tuple(self.item["loc"])

    @property
    def kind(self) -> str:
        return str(self.item["type"])

    @property
    def shape(self) -> str:
        """What should be there, if it is of another shape altogether."""
        usual = _SHAPES.get(self.kind, "")
        shorter = [_SHORTER[model] for model in self.spot.models if model in _SHORTER]
        return shorter[0] if shorter and usual else usual


def explain(document: Document, error: ValidationError, root: type[BaseModel]) -> tuple[UsageError, ...]:
    """One UsageError per mistake, in the order of the file."""
    mistakes = [_Mistake(item, fields.walk(tuple(item["loc"]), root)) for item in error.errors()]
    misspelt = {_meant(one, root) for one in mistakes if one.kind == "extra_forbidden"}
    left = [one for one in mistakes if not _follows(one, mistakes, misspelt)]
    found = [pair for one in left for pair in _problems(document, one, mistakes, root)]
    found.sort(key=lambda pair: (pair[0].line, pair[0].column))
    return tuple(problem for _, problem in found)


def _follows(one: _Mistake, mistakes: Sequence[_Mistake], misspelt: set[Steps]) -> bool:
    """Whether a complaint only repeats another: a key missing as it is misspelt, a list short of a bad item."""
    if one.kind == "missing":
        return one.loc in misspelt
    if one.kind == "too_short":
        return any(other.loc[: len(one.loc)] == one.loc != other.loc for other in mistakes)
    return one.spot.member and bool(one.shape) and not _speaks_for_all(one, mistakes)


def _speaks_for_all(one: _Mistake, mistakes: Sequence[_Mistake]) -> bool:
    """Where a value may have several shapes, each shape has complained; the one that was given says most."""
    path = one.spot.path
    same = [other for other in mistakes if other.spot.path[: len(path)] == path]
    return one is same[0] and all(other.spot.member and other.shape for other in same)


def _meant(one: _Mistake, root: type[BaseModel]) -> Steps:
    """The place that a misspelt key was meant for, as pydantic would name it."""
    near = _nearest(str(one.loc[-1]), fields.keys(fields.walk(one.loc[:-1], root).models))
    return (*one.loc[:-1], near) if near else one.loc


def _problems(
    document: Document, one: _Mistake, mistakes: Sequence[_Mistake], root: type[BaseModel]
) -> Iterator[tuple[Place, UsageError]]:
    """A complaint as one problem, or as several where the trainer has joined several sentences."""
    if one.kind == "value_error":
        for place, what in _sentences(document, one):
            yield place, document.problem(place, what)
        return
    path, absent = one.spot.path, one.kind in ("extra_forbidden", "missing")
    if not absent and path not in document.values and document.is_scalar(path[:-1]):
        path = path[:-1]  # a bare name stands for a mapping with that name
    place = document.where(path, key=absent)
    if one.kind == "extra_forbidden":
        what, hint, remedy = _unknown(path, fields.keys(fields.walk(one.loc[:-1], root).models))
    else:
        what, hint, remedy = _words(one, path, mistakes)
    yield place, document.problem(place, what, hint, remedy)


def _sentences(document: Document, one: _Mistake) -> Iterator[tuple[Place, str]]:
    """Each sentence of a validator, at the setting that it begins with."""
    at, models = one.spot.path, one.spot.models
    name = dotted(at)
    for sentence in combination.apart(str(one.item["ctx"]["error"]), models):
        named = [(*at, *path) for path in combination.named(sentence, models)]
        given = [path for path in named if path in document.values]
        place = document.where((given or named or [at])[0])
        yield place, f"{name}.{sentence}" if named and name else f"{name}: {sentence}" if name else sentence


# pydantic's kind of mistake -> (what is wrong, what mends it), with the fields of its context filled in.
_WORDS = {
    "literal_error": ("{name} must be {expected}, not {given}", ""),
    "union_tag_not_found": ("{discriminator} is missing under {name}", ""),
    "union_tag_invalid": ("{name}: {tag!r} is not a known kind", "known: {expected_tags}"),
    # The only patterns are those of names that become files, labels and directories.
    "string_pattern_mismatch": (
        "{name}: {given} is no plain name",
        "at most 41 of a-z, A-Z, 0-9, dot, dash, underscore",
    ),
    "too_short": ("{name} must not be empty", ""),
    "no_program": ('"train" is missing', "or script:, for a training program of your own"),
    "too_long": ("{name} must have at most {max_length} items", ""),
}


def _words(one: _Mistake, path: Steps, mistakes: Sequence[_Mistake]) -> tuple[str, str, str]:
    kind, item = one.kind, one.item
    name, given, context = dotted(path), _short(item["input"]), item.get("ctx", {})
    if kind == "missing":
        under = dotted(path[:-1])
        return f'"{path[-1]}" is missing' + (f" under {under}" if under else ""), "", ""
    if kind == "literal_error":
        known = tuple(_WORD.findall(str(context["expected"])))
        if len(known) > _MANY:
            near = difflib.get_close_matches(str(item["input"]), known, n=1, cutoff=0.5)
            hint = f'did you mean "{near[0]}"?' if near else ""
            return f"{name}: {given} is not known", hint, "known: " + ", ".join(known)
    if kind in _WORDS:
        what, remedy = _WORDS[kind]
        filled = {"name": name, "given": given, **context}
        return what.format_map(filled), "", remedy.format_map(filled)
    if one.shape:
        shapes = [other.shape for other in mistakes if other.spot.path == one.spot.path and other.shape]
        return f"{name} must be {' or '.join(dict.fromkeys(shapes))}, not {given}", "", ""
    message = str(item["msg"]).replace("Input should be", "must be", 1)
    return f"{name} {message}, not {given}", "", ""


def _unknown(path: Steps, known: tuple[str, ...]) -> tuple[str, str, str]:
    key, under = str(path[-1]), dotted(path[:-1])
    near = _nearest(key, known)
    hint = f'did you mean "{near}"?' if near else ""
    remedy = "" if near or not known else "known keys here: " + ", ".join(known)
    return f'unknown key "{key}"' + (f" under {under}" if under else ""), hint, remedy


def _nearest(key: str, known: tuple[str, ...]) -> str | None:
    """The key that was meant; `learning_rate` is far from `rate` in letters, and still means it."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    near = near or [name for name in known if name in key.split("_")]
    return near[0] if near else None


def dotted(path: Steps) -> str:
    """train.data.sources[0].folder"""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
