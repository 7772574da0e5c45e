"""As many points as a chart can show, of any number: lowest and highest of each stretch stay. Pure.

Owns `Span` and `Row`, what charts are drawn from, and `Trace`, which takes a series in as it comes within a
bounded memory. A stretch without values is a gap, which no line may bridge.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple


class Span(NamedTuple):
    """What a series was like around x."""

    x: float
    mean: float
    low: float
    high: float


Row = list[Span | None]  # None: a gap
_CAPACITY = 960  # buckets of a Trace, before they are joined two by two
_FIRST_WIDTH = 1.0  # seconds


def thin(xs: Sequence[float], ys: Sequence[float], columns: int) -> Row:
    """A series by ascending x, in at most `columns` stretches; values that are no numbers leave a gap."""
    if not len(xs):
        return []
    width = (xs[-1] - xs[0]) / columns
    dense = len(xs) > columns and width > 0
    row: Row = []
    gap = 3 * max(_usual(xs), width if dense else 0.0)
    begin = 0
    while begin < len(xs):
        end = begin + 1
        if dense:
            column = int((xs[begin] - xs[0]) / width)
            end = max(end, bisect_right(xs, xs[0] + (column + 1) * width, begin))
        span = _span(xs, ys, begin, end)
        if span is None or (begin and xs[begin] - xs[begin - 1] > gap):
            row.append(None)
        if span is not None:
            row.append(span)
        begin = end
    return row


def _usual(xs: Sequence[float]) -> float:
    """The usual distance; a few hundred pairs tell."""
    stride = max(1, len(xs) // 500)
    found = [xs[i + 1] - xs[i] for i in range(0, len(xs) - 1, stride)]
    return median(found) if found else 0.0


def _span(xs: Sequence[float], ys: Sequence[float], begin: int, end: int) -> Span | None:
    values = [y for y in ys[begin:end] if math.isfinite(y)]
    if not values:
        return None
    x = xs[begin] if end == begin + 1 else (xs[begin] + xs[end - 1]) / 2
    return Span(x, math.fsum(values) / len(values), min(values), max(values))


def smooth(ys: Sequence[float], share: float = 0.05) -> array[float]:
    """Mean of a window around each point, a twentieth of all wide; no number where the window has none."""
    half = max(1, int(len(ys) * share / 2))
    sums, counts = array("d", [0.0]), array("d", [0.0])
    for y in ys:
        real = math.isfinite(y)
        sums.append(sums[-1] + (y if real else 0.0))
        counts.append(counts[-1] + real)
    out = array("d")
    for i, y in enumerate(ys):
        low, high = max(0, i - half), min(len(ys), i + half + 1)
        there = counts[high] - counts[low]
        out.append((sums[high] - sums[low]) / there if there and math.isfinite(y) else math.nan)
    return out


def finite(row: Row) -> list[Span]:
    """Without the gaps."""
    return [span for span in row if span is not None]


class Trace:
    """A series over time that comes in piece by piece, any length, within a bounded memory."""

    __slots__ = ("_buckets", "_width")

    def __init__(self) -> None:
        self._width = _FIRST_WIDTH
        self._buckets: dict[int, list[float]] = {}  # number -> values, their sum, the least, the greatest

    def add(self, at: float, value: float) -> None:
        """Take in one value; no matter in which order."""
        if not (math.isfinite(at) and math.isfinite(value)):
            return
        key = math.floor(at / self._width)
        known = self._buckets.get(key)
        if known is None:
            self._buckets[key] = [1.0, value, value, value]
            if len(self._buckets) > _CAPACITY:
                self._halve()
            return
        known[0] += 1.0
        known[1] += value
        if value < known[2]:
            known[2] = value
        elif value > known[3]:
            known[3] = value

    def _halve(self) -> None:
        while len(self._buckets) > _CAPACITY * 2 // 3:
            joined: dict[int, list[float]] = {}
            for key, bucket in self._buckets.items():
                known = joined.setdefault(key // 2, bucket)
                if known is not bucket:
                    _join(known, bucket)
            self._buckets = joined
            self._width *= 2

    def __len__(self) -> int:
        return len(self._buckets)

    @property
    def total(self) -> tuple[float, float]:
        """How many values there were, and their sum."""
        return (
            math.fsum(bucket[0] for bucket in self._buckets.values()),
            math.fsum(bucket[1] for bucket in self._buckets.values()),
        )

    @property
    def mean(self) -> float | None:
        """Over everything."""
        many, together = self.total
        return together / many if many else None

    @property
    def highest(self) -> float | None:
        """Over everything."""
        return max((bucket[3] for bucket in self._buckets.values()), default=None)

    def row(self, columns: int, origin: float) -> Row:
        """As a chart wants it, x counted from `origin`."""
        keys = sorted(self._buckets)
        usual = median([b - a for a, b in zip(keys, keys[1:], strict=False)]) if len(keys) > 1 else 1
        together = max(1, math.ceil(len(keys) and (keys[-1] - keys[0] + 1) / columns))
        row: Row = []
        last: int | None = None
        group: list[float] | None = None
        for key in keys:
            if last is not None and group is not None and key // together == last // together:
                _join(group, self._buckets[key])
                row[-1] = _as_span(group, (key // together + 0.5) * together * self._width - origin)
            else:
                if last is not None and key - last > 3 * max(usual, together):
                    row.append(None)
                group = list(self._buckets[key])
                place = (key // together + 0.5) * together if together > 1 else key + 0.5
                row.append(_as_span(group, place * self._width - origin))
            last = key
        return row


def _join(bucket: list[float], other: Sequence[float]) -> None:
    bucket[0] += other[0]
    bucket[1] += other[1]
    bucket[2] = min(bucket[2], other[2])
    bucket[3] = max(bucket[3], other[3])


def _as_span(bucket: list[float], x: float) -> Span:
    return Span(x, bucket[1] / bucket[0], bucket[2], bucket[3])
