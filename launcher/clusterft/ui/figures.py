"""Numbers as a reader wants them: spans of time, counts, sizes, shares. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def span(seconds: float) -> str:
    """How long: 41 s, 4 m 03 s, 9 h 41 m, 3 d 04 h."""
    whole = max(0, int(seconds))
    if whole >= 86_400:
        return f"{whole // 86_400} d {whole % 86_400 // 3600:02d} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 60} m {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def count(number: int) -> str:
    """Thousands apart: 15 560."""
    return f"{number:,}".replace(",", " ")


def size(number: float) -> str:
    """Bytes: 23.1 GB."""
    for unit, factor in _UNITS:
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number:.0f} B"


def of(part: float, whole: float) -> str:
    """Bytes of bytes, in the unit of the whole: 23.1/23.7 GB."""
    for unit, factor in _UNITS:
        if whole >= factor:
            return f"{part / factor:.1f}/{whole / factor:.1f} {unit}"
    return f"{part:.0f}/{whole:.0f} B"


def between(values: Sequence[float], unit: str) -> str:
    """The least and the most of some values: 269–283 W."""
    low, high = round(min(values)), round(max(values))
    return f"{low} {unit}" if low == high else f"{low}–{high} {unit}"


def percent(share: float) -> str:
    """A share of one."""
    return f"{share:.0%}"


def shortened(text: str, width: int) -> str:
    """At most so many characters, an ellipsis where there were more."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"
