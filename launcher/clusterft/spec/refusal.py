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
    ("image",): "containers",
    ("mounts",): "containers",
    ("user",): "containers",
    ("min_nodes",): "continuing on fewer nodes",
    ("hang_after",): "the hang verdict",
    ("stagger_seconds",): "staggered start",
}


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
    near = _nearest(str(loc[-1]), _known_keys(root, loc[:-1]))
    return (*loc[:-1], near) if near else loc


def _one(document: Document, item: Any, root: type[BaseModel]) -> tuple[tuple[int, int], UsageError]:
    path = _in_file(document, tuple(item["loc"]))
    kind = str(item["type"])
    unknown = kind == "extra_forbidden"
    place = document.where(path, key=unknown or kind == "missing")
    what, hint, remedy = _words(kind, path, item, root)
    return (place.line, place.column), document.problem(place, what, hint, remedy)


def _in_file(document: Document, loc: Steps) -> Steps:
    """pydantic puts the tags of unions into a location; keep only the steps that stand in the file."""
    path: Steps = ()
    for index, step in enumerate(loc):
        here = (*path, step)
        if here in document.values or index == len(loc) - 1:
            path = here
    return path


def _words(kind: str, path: Steps, item: Any, root: type[BaseModel]) -> tuple[str, str, str]:
    name = dotted(path)
    if kind == "extra_forbidden":
        return _unknown(path, root)
    if kind == "missing":
        under = dotted(path[:-1])
        return f'"{path[-1]}" is missing' + (f" under {under}" if under else ""), "", ""
    if kind == "value_error":
        return f"{name}: {item['ctx']['error']}" if name else str(item["ctx"]["error"]), "", ""
    if kind == "literal_error":
        return f"{name} must be {item['ctx']['expected']}, not {item['input']!r}", "", ""
    if kind == "union_tag_invalid":
        return f"{name}: {item['ctx']['tag']!r} is not a known kind", "", f"known: {item['ctx']['expected_tags']}"
    if kind == "string_pattern_mismatch":
        return f"{name}: {item['input']!r} does not fit {item['ctx']['pattern']}", "", ""
    message = str(item["msg"]).replace("Input should be", "must be", 1)
    return f"{name} {message}, not {_short(item['input'])}", "", ""


def _unknown(path: Steps, root: type[BaseModel]) -> tuple[str, str, str]:
    key, under = str(path[-1]), dotted(path[:-1])
    if path in PLANNED:
        return f'"{key}" is not possible yet: this version cannot do {PLANNED[path]}', "", "remove the key"
    known = _known_keys(root, path[:-1])
    near = _nearest(key, known)
    hint = f'did you mean "{near}"?' if near else ""
    remedy = "" if near or not known else "known keys here: " + ", ".join(known)
    return f'unknown key "{key}"' + (f" under {under}" if under else ""), hint, remedy


def _nearest(key: str, known: tuple[str, ...]) -> str | None:
    """The key that was meant; `learning_rate` is far from `rate` in letters, and still means it."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    near = near or [name for name in known if name in key.split("_")]
    return near[0] if near else None


def _known_keys(root: type[BaseModel], path: Steps) -> tuple[str, ...]:
    models = _models(root)
    for step in path:
        if isinstance(step, int):
            continue
        fields = [m.model_fields[step].annotation for m in models if step in m.model_fields]
        models = [m for annotation in fields for m in _models(annotation)]
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
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
