"""The tree of settings, walked by the names that stand in a file. Pure.

Owns what lies between a file and pydantic's view of it: pydantic puts the member of a union into a path, a file
does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from clusterft.spec.positions import Steps


@dataclass(frozen=True, slots=True)
class Spot:
    """Where pydantic's path leads."""

    path: Steps  # the steps that stand in the file
    models: tuple[type[BaseModel], ...]  # what may lie there; none where it is a plain value
    member: bool  # the path ends at a member of a union of plain values


def walk(loc: Steps, root: type[BaseModel]) -> Spot:
    """Follow pydantic's path from the root."""
    path: Steps = ()
    models, kinds, member = (root,), (), False  # type: tuple[type[BaseModel], ...], tuple[Any, ...], bool
    for step in loc:
        member = False
        if isinstance(step, str) and len(models) > 1:
            models = tuple(model for model in models if _is_member(model, step))
            continue
        if isinstance(step, str) and not models and not any(get_origin(kind) is dict for kind in kinds):
            member = True
            continue
        path = (*path, step)
        if isinstance(step, str):
            kinds = tuple(m.model_fields[step].annotation for m in models if step in m.model_fields)
            models = tuple(m for kind in kinds for m in models_in(kind))
    return Spot(path, models, member)


def holds(models: tuple[type[BaseModel], ...], path: Steps) -> bool:
    """Whether a path as a file would have it names a setting under these models."""
    for step in path:
        kinds = [m.model_fields[step].annotation for m in models if step in m.model_fields]
        if not kinds:
            return False
        models = tuple(m for kind in kinds for m in models_in(kind))
    return bool(path)


def keys(models: tuple[type[BaseModel], ...]) -> tuple[str, ...]:
    """All keys that may stand under these models."""
    return tuple(dict.fromkeys(key for model in models for key in model.model_fields))


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models inside an annotation such as Annotated[tuple[A | B, ...], ...] | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def _is_member(model: type[BaseModel], tag: str) -> bool:
    """A union's members are told apart by a key that each must have, or by the word that one key holds."""
    words = (word for field in model.model_fields.values() for word in get_args(field.annotation))
    own = model.model_fields.get(tag)
    return tag in words if own is None else own.is_required()
