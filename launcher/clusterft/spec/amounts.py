"""Lengths of time and sizes of memory as people write them: '10min', '16 GB'. Pure.

Refuses a size without a unit, of which nobody can tell whether bytes or gigabytes were meant.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")
_TIMES = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1),
    **dict.fromkeys(("min", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
}
_SIZES = {"mb": 10**6, "gb": 10**9, "tb": 10**12, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def seconds(value: object) -> object:
    """'10min' -> 600.0; what is no text is left as it is."""
    if not isinstance(value, str):
        return value
    found = _AMOUNT.fullmatch(value)
    if found is None or found[2].lower() not in _TIMES:
        raise ValueError("write it as '10min', '90 s', '1.5 h', or as a number of seconds")
    return float(found[1]) * _TIMES[found[2].lower()]


def size(value: object) -> object:
    """'16 GB' -> 16000000000."""
    found = _AMOUNT.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[2].lower() not in _SIZES:
        raise ValueError("write it with its unit, as '16GB' or '512 MiB'")
    return int(float(found[1]) * _SIZES[found[2].lower()])


def told(value: float) -> str:
    """Seconds as a person would write them."""
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= length and value % length == 0:
            return f"{value // length:.0f} {name}"
    return f"{value:.12g} s"


_TIME_FORMS = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "string", "examples": ["10min", "90 s", "1.5 h"]},
    ]
}
Seconds = Annotated[
    float,
    Field(gt=0, allow_inf_nan=False),
    BeforeValidator(seconds),
    WithJsonSchema(_TIME_FORMS, mode="validation"),
]
Bytes = Annotated[
    int,
    Field(gt=0),
    BeforeValidator(size),
    WithJsonSchema({"type": "string", "examples": ["16GB", "512 MiB"]}, mode="validation"),
]
