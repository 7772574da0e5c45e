"""Whether a record holds what its class says. Pure.

The streams' decoders trust their writer. A page is also made of what a dying disk left of a line, so that every
field is looked at once, here, and nothing behind this has to ask again.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from clusterft_trainer import stream

_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "End": (str,),
    "tuple[str, ...]": (tuple,),
    "tuple[Card, ...]": (tuple,),
    "None": (type(None),),
}
# A loss that is no number is told as null, and read as NaN.
_MAY_BE_NAN = frozenset({"loss", "first_loss", "last_loss", "images_per_second", "data_wait"})
_LARGEST = 1 << 63


def sound(line: stream.Line) -> bool:
    """Whether every field is of its type; types that this does not know are let through."""
    if isinstance(line, stream.Progress):
        return _fits(line.record) and type(line.rank) is int
    if isinstance(line, stream.Usage) and not all(map(_fits, line.cards)):
        return False
    return _fits(line)


def _fits(record: Any) -> bool:
    # A loop, not all(): a long run has millions of fields.
    for name, kinds in _expected(type(record)):
        if not _is(name, getattr(record, name), kinds):
            return False
    return True


def _is(name: str, value: Any, kinds: tuple[type, ...]) -> bool:
    kind = type(value)
    if kind not in kinds:
        return False
    if kind is float:
        return math.isfinite(value) or name in _MAY_BE_NAN
    if kind is int:
        return -_LARGEST < value < _LARGEST
    return kind is not tuple or all(isinstance(one, str | stream.Card) for one in value)


_KNOWN: dict[type, tuple[tuple[str, tuple[type, ...]], ...]] = {}


def _expected(kind: type) -> tuple[tuple[str, tuple[type, ...]], ...]:
    if kind not in _KNOWN:
        split = ((one.name, [part.strip() for part in str(one.type).split(" | ")]) for one in fields(kind))
        _KNOWN[kind] = tuple(
            (name, tuple(t for part in parts for t in _KINDS[part]))
            for name, parts in split
            if all(part in _KINDS for part in parts)
        )
    return _KNOWN[kind]
