"""Charts as HTML around an SVG that stretches: text keeps its size on a phone. Pure: values in, Markup out.

Owns axes, gaps, marks and the data that the page's script shows under the pointer. Reading needs no script.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from clusterft_trainer.report import words
from clusterft_trainer.report.markup import Child, Markup, el, join
from clusterft_trainer.report.thinning import Row, Span, finite
from clusterft_trainer.report.words import Unit

Form = Literal["line", "raw", "band", "dots", "area"]
_SIDE = 1000.0  # of the drawing's own square; the browser stretches it
_NEAR = 0.035  # of the width: two labels closer than this would overlap
_APART = 0.12
_SMALLEST = 225.0  # pixels of a plane: of a small chart, of any chart on a phone
_DIGIT, _GAP = 6.8, 10.0  # pixels: of one character beside an axis, and of the room between two labels


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart. Colours are those of the page's style: s1 to s5, dim."""

    name: str
    row: Row
    colour: str
    form: Form = "line"
    unit: Unit = "number"
    told: bool = True  # under the pointer and in the legend


@dataclass(frozen=True, slots=True)
class Axis:
    """From low to high, with what stands beside it."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    unit: Unit = "number"

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one; beyond them is cut off."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment that a vertical line shows."""

    x: float
    label: str
    kind: str = "mark"  # or bad


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything about one chart."""

    title: str
    series: tuple[Series, ...]
    x: Axis
    y: Axis
    marks: tuple[Mark, ...] = ()
    note: str = ""
    size: Literal["large", "small"] = "large"


def value_axis(rows: Iterable[Row], unit: Unit, *, top: float | None = None, zero: bool = True) -> Axis:
    """An axis for values, from zero where that does not flatten them; `top` cuts what is higher."""
    spans = [span for row in rows for span in finite(row)]
    high = top if top is not None else max((span.high for span in spans), default=1.0)
    low = min((span.low for span in spans), default=0.0)
    if zero:
        low = min(0.0, low)
    if high - low < 1e-12 * max(1.0, abs(high)) or not math.isfinite(high - low):
        low, high = (0.0, 1.0) if not high or not math.isfinite(high) else sorted((0.0, high * 1.25))
    elif top is None:
        high += (high - low) * 0.06
    return Axis(low, high, _labelled(words.ticks(low, high, 4), unit, high - low), unit)


def share_axis(high: float = 1.0) -> Axis:
    """From nothing to all, or to a rounder part of it."""
    return Axis(0.0, high, _labelled(words.ticks(0.0, high, 4), "share", 1.0), "share")


def _labelled(values: Sequence[float], unit: Unit, spread: float) -> tuple[tuple[float, str], ...]:
    return tuple((value, words.tick_label(value, unit, spread)) for value in values)


def step_axis(first: float, last: float, *, small: bool = False) -> Axis:
    """Optimizer steps: the first and the last are always named."""
    last = max(last, first + 1)
    shown = [v for v in words.ticks(first, last, 4 if small else 6) if v == int(v) and first < v < last]
    start, *between, end = _labelled([first, *shown, last], "count", last - first)
    pixels = _SMALLEST / (last - first)

    def clear(tick: tuple[float, str], edge: tuple[float, str]) -> bool:
        """The label stands in the middle of its tick, that of an edge inside of it."""
        return abs(tick[0] - edge[0]) * pixels > _DIGIT * (len(tick[1]) / 2 + len(edge[1])) + _GAP

    kept = (tick for tick in between if clear(tick, start) and clear(tick, end))
    return Axis(first, last, (start, *kept, end), "count")


def time_axis(seconds: float) -> Axis:
    """Seconds since the run began."""
    high = max(seconds, 1.0)
    return Axis(0.0, high, _labelled(words.clock_ticks(high, 6), "seconds", high), "seconds")


def draw(chart: Chart) -> Markup:
    """The whole figure."""
    told = [one for one in chart.series if one.told]
    legend = el("span", *(_key(one) for one in told), class_="legend") if len(told) > 1 else None
    return el(
        "figure",
        el("figcaption", el("b", chart.title), legend),
        el("div", _upright(chart.y), _plane(chart), _along(chart.x), class_="plot"),
        el("p", chart.note, class_="note") if chart.note else None,
        class_=f"chart {chart.size}{' marked' if chart.marks else ''}",
        data_chart=_data(chart),
    )


def _key(one: Series) -> Markup:
    return el("span", el("i", class_=f"key {one.colour} {one.form}"), one.name)


def _plane(chart: Chart) -> Markup:
    drawing = el(
        "svg",
        *(el("path", class_="grid", d=f"M0 {_y(chart, v)}H{_SIDE:g}") for v, _ in chart.y.ticks),
        *(el("path", class_=f"at {mark.kind}", d=f"M{_x(chart, mark.x)} 0V{_SIDE:g}") for mark in chart.marks),
        *(path for one in chart.series for path in _paths(chart, one)),
        viewBox=f"0 0 {_SIDE:g} {_SIDE:g}",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    return el("div", drawing, *_labels(chart), class_="plane", role="img", aria_label=_spoken(chart))


def _labels(chart: Chart) -> list[Markup]:
    """Names of the marks, as far as they do not overlap."""
    shown: list[Markup] = []
    last = -1.0
    for mark in sorted(chart.marks, key=lambda one: one.x):
        place = chart.x.place(mark.x)
        if mark.label and (place - last > _APART or not shown):
            side = "left" if place < 0.85 else "right"
            offset = place if side == "left" else 1 - place
            shown.append(el("span", mark.label, class_=f"mark {side}", style=f"{side}:{offset * 100:.2f}%"))
            last = place
    return shown


def _upright(axis: Axis) -> Markup:
    spans = (el("span", label, style=f"bottom:{axis.place(v) * 100:.2f}%") for v, label in axis.ticks)
    return el("div", *_apart(spans), class_="y", aria_hidden="true")


def _along(axis: Axis) -> Markup:
    spans = []
    for number, (value, label) in enumerate(axis.ticks):
        place = axis.place(value)
        # Every second one makes room on a phone; the ends stay.
        minor = number % 2 == 1 and number != len(axis.ticks) - 1
        edge = "first" if place < _NEAR else "last" if place > 1 - _NEAR else ""
        spans.append(
            el("span", label, class_=f"{edge} {'minor' if minor else ''}".strip(), style=f"left:{place:.2%}")
        )
    return el("div", *_apart(spans), class_="x", aria_hidden="true")


def _apart(labels: Iterable[Markup]) -> Iterator[Child]:
    """With a blank between them, for who reads the page as text."""
    for number, label in enumerate(labels):
        yield from (" ", label) if number else (label,)


def _x(chart: Chart, value: float) -> str:
    return f"{chart.x.place(value) * _SIDE:.1f}"


def _y(chart: Chart, value: float) -> str:
    return f"{_SIDE - chart.y.place(value) * _SIDE:.1f}"


def _paths(chart: Chart, one: Series) -> list[Markup]:
    pieces = _pieces(one.row)
    if one.form == "dots":
        dots = "".join(f"M{_x(chart, s.x)} {_y(chart, s.mean)}h0" for s in finite(one.row))
        return [el("path", class_=f"dots {one.colour}", d=dots)] if dots else []
    found = []
    if one.form in ("band", "area"):
        bands = "".join(_band(chart, piece) for piece in pieces)
        found.append(el("path", class_=f"{one.form} {one.colour}", d=bands))
    if one.form != "area":
        zigzag = one.form == "raw"
        lines = "".join(_zigzag(chart, piece) if zigzag else _line(chart, piece) for piece in pieces)
        found.append(el("path", class_=f"{'raw' if zigzag else 'line'} {one.colour}", d=lines))
    return found


def _pieces(row: Row) -> list[list[Span]]:
    pieces: list[list[Span]] = [[]]
    for span in row:
        if span is None:
            pieces.append([])
        else:
            pieces[-1].append(span)
    return [piece for piece in pieces if piece]


def _line(chart: Chart, piece: list[Span]) -> str:
    points = [f"{_x(chart, s.x)} {_y(chart, s.mean)}" for s in piece]
    return f"M{'L'.join(points)}" if len(points) > 1 else f"M{points[0]}h0"


def _zigzag(chart: Chart, piece: list[Span]) -> str:
    """Through the lowest and the highest of each stretch, so that no outlier is lost."""
    points: list[str] = []
    for number, s in enumerate(piece):
        ends = (s.low, s.high) if number % 2 else (s.high, s.low)
        points += [f"{_x(chart, s.x)} {_y(chart, v)}" for v in (ends if s.low != s.high else ends[:1])]
    return f"M{'L'.join(points)}" if len(points) > 1 else f"M{points[0]}h0"


def _band(chart: Chart, piece: list[Span]) -> str:
    over = [f"{_x(chart, s.x)} {_y(chart, s.high)}" for s in piece]
    under = [f"{_x(chart, s.x)} {_y(chart, s.low)}" for s in reversed(piece)]
    return f"M{'L'.join(over + under)}Z"


def _data(chart: Chart) -> str:
    """What the page's script needs to show values under the pointer."""
    lines = []
    for one in chart.series:
        if one.told:
            spans = finite(one.row)
            values = [_short(s.mean) for s in spans]
            lines.append([one.name, one.colour, one.unit, [_short(s.x) for s in spans], values])
    body = {"x": [chart.x.low, chart.x.high, chart.x.unit], "s": lines}
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)


def _short(value: float) -> float:
    """Five digits are more than a chart shows; whole numbers need no point."""
    rounded = float(f"{value:.5g}") if abs(value) < 1e5 else float(round(value))
    return int(rounded) if rounded == int(rounded) else rounded


def _spoken(chart: Chart) -> str:
    """The chart in one sentence, for those who do not see it."""
    parts = []
    for one in (one for one in chart.series if one.told):
        spans = finite(one.row)
        if spans:
            low, high = min(s.low for s in spans), max(s.high for s in spans)
            ends = " to ".join(words.spell(s.mean, one.unit) for s in (spans[0], spans[-1]))
            parts.append(
                f"{one.name}: {ends}, lowest {words.spell(low, one.unit)}, highest {words.spell(high, one.unit)}"
            )
    return f"{chart.title}. " + ("; ".join(parts) or "No values") + "."


def grid(charts: Iterable[Markup], class_: str = "") -> Markup:
    """Small charts side by side, as many as the window has room for; `two` are the wider ones."""
    return el("div", join(charts), class_=f"grid-of-charts {class_}".strip())
