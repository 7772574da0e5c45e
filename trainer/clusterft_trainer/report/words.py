"""Numbers as people read them: durations, sizes, shares, moments, and ticks of an axis. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Literal

Unit = Literal["number", "count", "share", "bytes", "rate", "degrees", "watts", "seconds", "small"]

_NARROW = "\u202f"  # no-break, narrow
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
_CLOCK = (
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    10800,
    21600,
    43200,
    86400,
    172800,
    604800,
)
NONE = "–"


def duration(seconds: float | None) -> str:
    """At most two units: 41 s, 3 min 20 s, 2 h 05 min, 3 d 4 h."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 0:
        return "-" + duration(-seconds)
    if seconds < 9.95:
        return _gap(f"{seconds:.1f}", "s")
    whole = round(seconds)
    if whole < _MINUTE:
        return _gap(f"{whole}", "s")
    if whole < _HOUR:
        return _two(whole // 60, "min", whole % 60, "s")
    if whole < _DAY:
        return _two(whole // 3600, "h", whole % 3600 // 60, "min")
    return _two(whole // 86400, "d", whole % 86400 // 3600, "h")


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    first = _gap(f"{large}", large_unit)
    return f"{first} {_gap(f'{small:02d}' if large_unit == 'h' else str(small), small_unit)}" if small else first


def _gap(value: str, unit: str) -> str:
    return f"{value}{_NARROW}{unit}"


def size(count: float | None) -> str:
    """Bytes in decimal units."""
    if count is None or not math.isfinite(count):
        return NONE
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 999.5 or unit == "TB":
            return _gap(f"{count:.0f}" if unit == "B" or abs(count) >= 99.95 else f"{count:.3g}", unit)
        count /= 1000
    raise AssertionError("unreachable")


def count(value: float | None) -> str:
    """Whole numbers, in groups of three."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:,.0f}".replace(",", _NARROW)


def number(value: float | None, digits: int = 4) -> str:
    """Significant digits; powers of ten only where nothing else is readable."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        mantissa, power = f"{value:.{max(0, digits - 2)}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(power)}"
    if abs(value) >= 1000:
        return count(value)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def share(value: float | None) -> str:
    """Per cent, one decimal below ten."""
    if value is None or not math.isfinite(value):
        return NONE
    percent = value * 100
    return _gap(f"{percent:.0f}" if percent >= 9.95 or percent == 0 else f"{percent:.1f}", "%")


def moment(at: float | None) -> str:
    """A time of day in UTC: readers sit in other places than the nodes."""
    if at is None or not math.isfinite(at):
        return NONE
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, OSError, ValueError):  # a clock that was never set, or a file that lies
        return NONE


def period(begin: float | None, end: float | None) -> str:
    """From one moment to another; the day of both is said once."""
    first, last = moment(begin), moment(end)
    if NONE in (first, last):
        return ""
    return f"{first[:-4]} to {last[11:] if last[:10] == first[:10] else last}"


def clock(at: float | None) -> str:
    """The same with seconds, without the date."""
    whole = moment(at)
    if at is None or whole == NONE:
        return NONE
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


def plural(many: int, one: str, more: str | None = None) -> str:
    """1 restart, 2 restarts."""
    return f"{count(many)} {one if many == 1 else more or one + 's'}"


def spell(value: float, unit: Unit) -> str:
    """A value in the words of its unit."""
    if unit == "share":
        return share(value)
    if unit == "bytes":
        return size(value)
    if unit == "rate":
        return f"{size(value)}/s"
    if unit == "count":
        return count(value)
    if unit == "seconds":
        return duration(value)
    suffix = {"degrees": "°C", "watts": "W"}.get(unit)
    return _gap(f"{value:.0f}", suffix) if suffix else number(value)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between two ends."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    # As near to `about` of them as round numbers come, rather than never more.
    step = min((power * m for m in (1, 2, 2.5, 5, 10)), key=lambda size: abs(math.log(size / raw)))
    first = math.ceil(low / step - 1e-9)
    found = [i * step for i in range(first, first + 4 * about + 2)]
    return [value for value in found if value <= high * (1 + 1e-9) + 1e-300]


def clock_ticks(high: float, about: int) -> list[float]:
    """Round spans of time from 0 up."""
    raw = max(high, 1e-9) / max(1, about)
    step = next((float(s) for s in _CLOCK if s >= raw), None)
    if step is None:
        step = math.ceil(raw / _CLOCK[-1]) * float(_CLOCK[-1])
    return [i * step for i in range(int(high / step) + 1)]


def tick_label(value: float, unit: Unit, spread: float) -> str:
    """Short, and with as many decimals as its neighbours need."""
    if unit == "share":
        return f"{value * 100:g}{_NARROW}%"
    if unit in ("bytes", "rate"):
        return size(value) if value else "0"
    if unit == "seconds":
        return duration(value) if value else "0"
    if unit == "small" or (unit == "number" and value and spread < 2e-2):
        return f"{value:.3g}".replace("e-0", "e-")
    return count(value) if abs(value) >= 1000 else f"{value:.6g}"
