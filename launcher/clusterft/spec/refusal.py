"""pydantic's validation errors -> sentences with file, line, column and a did-you-mean.

Pure. The words are for someone who has never heard of pydantic.
"""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from clusterft.errors import UsageError
from clusterft.spec.positions import Document, Steps

# Keys that belong to the job format but that this version does not do yet: a plain "unknown key" would mislead.
PLANNED = {
    ("script",): "running your own script",
    ("restarts",): "restarting a failed run by itself",
    ("mounts",): "containers",
    ("user",): "containers",
    ("min_nodes",): "continuing on fewer nodes",
    ("hang_after",): "the hang verdict",
    ("stagger_seconds",): "staggered start",
}

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
}
PLANNED_VALUES = {("runtime", "docker"), ("launcher", "deepspeed"), ("rendezvous", "elastic")}


def explain(document: Document, error: ValidationError, root: type[BaseModel]) -> tuple[UsageError, ...]:
    """One UsageError per mistake, in the order of the file."""
    items = error.errors()
    misspelt = {_meant(tuple(item["loc"]), root) for item in items if item["type"] == "extra_forbidden"}
    found = [_one(document, item, root) for item in items if not _follows(item, items, misspelt)]
    found.sort(key=lambda pair: pair[0])
    return tuple(problem for _, problem in found)


def _follows(item: Any, items: Any, misspelt: set[Steps]) -> bool:
    """Whether a complaint only repeats another: a key missing as it is misspelt, a list short of a bad item."""
    loc = tuple(item["loc"])
    if item["type"] == "missing":
        return loc in misspelt
    inner = (tuple(other["loc"]) for other in items)
    return item["type"] == "too_short" and any(place[: len(loc)] == loc != place for place in inner)


def _meant(loc: Steps, root: type[BaseModel]) -> Steps:
    """The place that a misspelt key was meant for, as pydantic would name it."""
    near = _nearest(str(loc[-1]), _keys(_walk(loc[:-1], root)[1]))
    return (*loc[:-1], near) if near else loc


def _one(document: Document, item: Any, root: type[BaseModel]) -> tuple[tuple[int, int], UsageError]:
    loc = tuple(item["loc"])
    path = _walk(loc, root)[0]
    kind = str(item["type"])
    unknown = kind == "extra_forbidden"
    place = document.where(path, key=unknown or kind == "missing")
    what, hint, remedy = _unknown(path, _keys(_walk(loc[:-1], root)[1])) if unknown else _words(kind, path, item)
    return (place.line, place.column), document.problem(place, what, hint, remedy)


def _walk(loc: Steps, root: type[BaseModel]) -> tuple[Steps, list[type[BaseModel]]]:
    """(the steps that stand in the file, the models at their end); pydantic adds one for a union's member."""
    path: Steps = ()
    models = [root]
    for step in loc:
        if len(models) > 1 and isinstance(step, str):
            models = [model for model in models if _is_member(model, step)]
            continue
        path = (*path, step)
        if isinstance(step, str):
            fields = [m.model_fields[step].annotation for m in models if step in m.model_fields]
            models = [m for annotation in fields for m in _models(annotation)]
    return path, models


def _is_member(model: type[BaseModel], tag: str) -> bool:
    """A union's members are told apart by a key of their own, or by the word that one key holds."""
    words = (word for field in model.model_fields.values() for word in get_args(field.annotation))
    return tag in model.model_fields or tag in words


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
    "too_long": ("{name} must have at most {max_length} items", ""),
}


def _words(kind: str, path: Steps, item: Any) -> tuple[str, str, str]:
    name, given, context = dotted(path), _short(item["input"]), item.get("ctx", {})
    if kind == "missing":
        under = dotted(path[:-1])
        return f'"{path[-1]}" is missing' + (f" under {under}" if under else ""), "", ""
    if kind == "value_error":
        return f"{name}: {context['error']}" if name else str(context["error"]), "", ""
    if (name, str(item["input"])) in PLANNED_VALUES:
        return f"{name}: {given} is not possible yet in this version", "", f"possible: {context['expected']}"
    if kind in _WORDS:
        what, remedy = _WORDS[kind]
        known = {"name": name, "given": given, **context}
        return what.format_map(known), "", remedy.format_map(known)
    if kind in _SHAPES:
        return f"{name} must be {_SHAPES[kind]}, not {given}", "", ""
    message = str(item["msg"]).replace("Input should be", "must be", 1)
    return f"{name} {message}, not {given}", "", ""


def _unknown(path: Steps, known: tuple[str, ...]) -> tuple[str, str, str]:
    key, under = str(path[-1]), dotted(path[:-1])
    if path in PLANNED:
        return f'"{key}" is not possible yet: this version cannot do {PLANNED[path]}', "", "remove the key"
    near = _nearest(key, known)
    hint = f'did you mean "{near}"?' if near else ""
    remedy = "" if near or not known else "known keys here: " + ", ".join(known)
    return f'unknown key "{key}"' + (f" under {under}" if under else ""), hint, remedy


def _nearest(key: str, known: tuple[str, ...]) -> str | None:
    """The key that was meant; `learning_rate` is far from `rate` in letters, and still means it."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    near = near or [name for name in known if name in key.split("_")]
    return near[0] if near else None


def _keys(models: list[type[BaseModel]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for model in models for key in model.model_fields))


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models inside an annotation such as Annotated[tuple[A | B, ...], ...] | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def dotted(path: Steps) -> str:
    """train.data.sources[0].folder"""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
