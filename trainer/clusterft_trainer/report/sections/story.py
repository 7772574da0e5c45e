"""Where the time went: attempts on a line of time, their phases, restarts with causes, waits and hangs; and what
a step was made of. Pure.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable

from clusterft_trainer.report import chart, words
from clusterft_trainer.report.account import Attempt
from clusterft_trainer.report.chart import Chart, Series
from clusterft_trainer.report.course import Course
from clusterft_trainer.report.judged import Judged, stages
from clusterft_trainer.report.markup import Child, Markup, el, table
from clusterft_trainer.report.masking import mask
from clusterft_trainer.report.sections import section
from clusterft_trainer.report.sections.learning import COLUMNS, restarts
from clusterft_trainer.report.thinning import Row, Span, thin

_PHASES = {
    "start": ("starting", "p1"),
    "imports": ("importing", "p1"),
    "data": ("reading data", "p2"),
    "model": ("loading the model", "p3"),
    "train": ("training", "p4"),
    "export": ("exporting", "p5"),
}
_OTHER = ("other", "p1")
_MOST_ROWS = 40
_MOST_TICKS = 150
_END_SIGNS = {"ok": "✓", "stopped": "■", "failed": "✗"}
_PARTS = (
    ("computing", "s1"),
    ("waiting for gradients", "s4"),
    ("waiting for other ranks", "s3"),
    ("waiting for data", "s2"),
)


def story(judged: Judged) -> Markup | None:
    """The whole section."""
    if not judged.attempts and not len(judged.course):
        return None
    return section("time", "Where the time went", _timeline(judged), _attempts(judged), _step(judged))


def _timeline(judged: Judged) -> Markup | None:
    """A bar for each attempt, all on one line of time."""
    if not judged.attempts or judged.began is None or judged.ended is None:
        return None
    axis = chart.time_axis(judged.ended - judged.began)
    shown = judged.attempts[:_MOST_ROWS]
    rows = [_row(judged, one, axis) for one in shown]
    waits = _waits(judged, axis)
    if waits:
        rows.append(_track("out of reach", waits))
    ticks = (
        el("span", label, class_="minor" if n % 2 else None, style=f"left:{axis.place(v):.2%}")
        for n, (v, label) in enumerate(axis.ticks)
    )
    more = len(judged.attempts) - len(shown)
    return el(
        "figure",
        el("figcaption", el("b", "Attempts"), _legend(judged)),
        el("div", *rows, el("div", *ticks, class_="x", aria_hidden="true"), class_="timeline"),
        el("p", f"{more} later ones are not drawn.", class_="note") if more > 0 else None,
        class_="chart",
    )


def _legend(judged: Judged) -> Markup:
    there = {_phase(name) for attempt in judged.attempts for name, _, _ in stages(attempt)}
    known = dict.fromkeys(one for one in _PHASES.values() if one in there)
    labels = {"p1": "starting"}
    seen = list(dict.fromkeys((f"block {colour}", labels.get(colour, name)) for name, colour in known))
    seen += [("saved", "checkpoint")] if any(one.checkpoints for one in judged.attempts) else []
    seen += [("hang", "hang")] if any(one.hangs for one in judged.attempts) else []
    return el("span", *(el("span", el("i", class_=f"key {c}"), n) for c, n in seen), class_="legend")


def _phase(name: str) -> tuple[str, str]:
    return _PHASES.get(name, _OTHER)


def _row(judged: Judged, attempt: Attempt, axis: chart.Axis) -> Markup:
    origin = judged.began or 0.0
    pieces: list[Markup] = []
    for name, begin, end in stages(attempt):
        words_of, colour = _phase(name)
        title = f"{words_of}, {words.duration(end - begin)}, from {words.clock(begin)} UTC"
        pieces.append(_bar(axis, begin - origin, end - origin, colour, title))
    for step, at in _some(attempt.checkpoints):
        pieces.append(_tick(axis, at - origin, "saved", "", f"checkpoint of step {step}"))
    for hang in attempt.hangs:
        title = f"hang: no step for {words.duration(hang.seconds)}"
        pieces.append(_tick(axis, hang.at - origin, "hang", "", title))
    if attempt.ended is not None and attempt.end:
        sign = _END_SIGNS.get(attempt.end, "")
        pieces.append(_tick(axis, attempt.ended - origin, f"end {attempt.end}", sign, attempt.end))
    return _track(f"attempt {attempt.number}", pieces)


def _some(known: list[tuple[int, float]]) -> list[tuple[int, float]]:
    stride = max(1, math.ceil(len(known) / _MOST_TICKS))
    return known[::stride]


def _track(name: str, pieces: Iterable[Markup]) -> Markup:
    return el("div", el("span", name, class_="name"), el("div", *pieces, class_="track"), class_="row")


def _bar(axis: chart.Axis, begin: float, end: float, colour: str, title: str) -> Markup:
    left, right = axis.place(begin), axis.place(end)
    return el("i", class_=f"bar {colour}", style=f"left:{left:.3%};width:{right - left:.3%}", title=title)


def _tick(axis: chart.Axis, at: float, kind: str, sign: str, title: str) -> Markup:
    return el("i", sign, class_=f"tick {kind}", style=f"left:{axis.place(at):.3%}", title=title)


def _waits(judged: Judged, axis: chart.Axis) -> list[Markup]:
    """From the line that says who is out of reach to the next."""
    found = []
    said = sorted(judged.account.waits, key=lambda one: one.at)
    origin, last = judged.began or 0.0, judged.ended or 0.0
    for number, one in enumerate(said):
        end = said[number + 1].at if number + 1 < len(said) else max(last, one.at)
        if one.nodes:
            title = f"{', '.join(one.nodes)} out of reach for {words.duration(end - one.at)}"
            found.append(_bar(axis, one.at - origin, end - origin, "away", title))
    return found


def _attempts(judged: Judged) -> Markup | None:
    """What each attempt came to, and why there was another."""
    if not judged.attempts:
        return None
    head = ("Attempt", "Began (UTC)", "Lasted", "Steps", "Ranks", "End", "Cause and decision")
    rows = []
    for number, one in enumerate(judged.attempts[:_MOST_ROWS]):
        before = judged.attempts[number - 1] if number else None
        lasted = None if one.began is None or one.until is None else one.until - one.began
        rows.append(
            (
                str(one.number),
                words.clock(one.began),
                words.duration(lasted),
                _steps(one, before),
                words.count(one.world) if one.world else words.NONE,
                el("span", _END_SIGNS.get(one.end, ""), " ", one.end or "no end told", class_=f"end {one.end}"),
                _why(one),
            )
        )
    return table(head, rows, "attempts")


def _steps(one: Attempt, before: Attempt | None) -> Child:
    if one.first_step is None or one.last_step is None:
        return "none"
    told = f"{words.count(one.first_step)} to {words.count(one.last_step)}"
    lost = 0 if before is None or before.last_step is None else before.last_step - one.first_step + 1
    return (told, el("small", f"{words.count(lost)} again")) if lost > 0 else told


def _why(one: Attempt) -> Child:
    decided = one.decided
    parts: list[Child] = []
    if decided is not None and (decided.cause or decided.failure):
        where = f"{decided.node}{'' if decided.rank is None else f' rank {decided.rank}'}".strip()
        tag = el("span", decided.failure, class_="tag") if decided.failure else None
        parts.append(el("p", el("b", where, ": ") if where else None, mask(decided.cause), " ", tag))
    if decided is not None and decided.why:
        parts.append(el("p", "another attempt: " if decided.again else "no other attempt: ", mask(decided.why)))
    parts += [
        el("p", f"hang after {words.duration(hang.seconds)} without a step; stacks in ", el("code", hang.stacks))
        for hang in one.hangs[:3]
    ]
    if decided is None:
        parts += [
            el("p", el("b", f"{node} rank {rank}: "), mask(failed.message))
            for node, rank, failed in one.failures[:3]
        ]
    return parts


def _step(judged: Judged) -> Markup | None:
    """The shares of a step's time, stacked."""
    course = judged.course
    if not len(course) or not course.has("data_wait"):
        return None
    shares = _shares(course)
    steps = course.column("step")
    thinned = [thin(steps, values, COLUMNS // 2) for values in shares]
    named = [(name, colour) for name, colour in _PARTS]
    if not course.has("communication"):
        named[0] = ("computing, and waiting for gradients", "s1")
    weights = [1 / v if math.isfinite(v) and v > 0 else 0.0 for v in course.column("images_per_second")]
    totals = [_weighted(values, weights) for values in shares]
    there = [i for i, values in enumerate(shares) if any(value > 0 for value in values)]
    stacked = _stacked([thinned[i] for i in there])
    series = tuple(
        Series(f"{named[i][0]} {words.share(totals[i])}", row, named[i][1], "area", "share")
        for i, row in zip(there, stacked, strict=True)
    )
    axis = chart.step_axis(steps[0], steps[-1])
    return chart.draw(Chart("What a step's time goes into", series, axis, chart.share_axis(), restarts(judged)))


def _shares(course: Course) -> list[array[float]]:
    """Computing, gradients, other ranks, data; what the three waits leave is computing."""
    waits = [
        array("d", (_known(v) for v in course.column(name)))
        for name in ("communication", "peer_wait", "data_wait")
    ]
    computing = array("d", (max(0.0, 1.0 - sum(parts)) for parts in zip(*waits, strict=True)))
    return [computing, *waits]


def _known(value: float) -> float:
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0


def _weighted(values: array[float], weights: list[float]) -> float | None:
    together = math.fsum(weights)
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / together if together else None


def _stacked(rows: list[Row]) -> list[Row]:
    """Each on top of those before it: the mean stays its own, low and high are where it is drawn."""
    found: list[Row] = []
    base: dict[int, float] = {}
    for row in rows:
        placed: Row = []
        for i, span in enumerate(row):
            if span is None:
                placed.append(None)
                continue
            under = base.get(i, 0.0)
            base[i] = min(1.0, under + span.mean)
            placed.append(Span(span.x, span.mean, under, base[i]))
        found.append(placed)
    return found
