"""Reading documents that may be of any shape: what is not there, or is something else, is None. Pure.

Owns nothing. A run directory may be written by another version, or cut short: no look into it may raise.
"""

from __future__ import annotations

import math


def at(body: object, *path: str) -> object:
    """What lies at a path of keys."""
    for key in path:
        if not isinstance(body, dict):
            return None
        body = body.get(key)
    return body


def words(body: object, *path: str) -> str:
    """A text, or nothing; numbers are text too."""
    found = at(body, *path)
    return str(found) if isinstance(found, str | int | float) and not isinstance(found, bool) else ""


def number(body: object, *path: str) -> float | None:
    """A finite number."""
    found = at(body, *path)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    try:
        value = float(found)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def whole(body: object, *path: str) -> int | None:
    """A whole number."""
    value = number(body, *path)
    return None if value is None else int(value)


def many(body: object, *path: str) -> list[object]:
    """A list."""
    found = at(body, *path)
    return list(found) if isinstance(found, list | tuple) else []


def texts(body: object, *path: str) -> list[str]:
    """The texts of a list."""
    return [one for one in many(body, *path) if isinstance(one, str)]


def pairs(body: object, *path: str) -> dict[str, object]:
    """An object."""
    found = at(body, *path)
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}
