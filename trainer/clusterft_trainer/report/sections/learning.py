"""What was learned: loss with held-out loss, and beside it learning rate, gradient norm, speed. Pure."""

from __future__ import annotations

import math
from array import array

from clusterft_trainer.report import chart, words
from clusterft_trainer.report.chart import Axis, Chart, Mark, Series
from clusterft_trainer.report.judged import Judged
from clusterft_trainer.report.markup import Markup
from clusterft_trainer.report.sections import section
from clusterft_trainer.report.thinning import Row, Span, finite, smooth, thin
from clusterft_trainer.report.words import Unit

COLUMNS, FEW = 640, 320  # stretches of a large chart and of a small one
_FAR = 2.5  # times the usual highest value: what lies above would flatten everything else
_BROAD = 12  # steps a column from which on means stand for themselves


def learning(judged: Judged) -> Markup | None:
    """The curves over optimizer steps."""
    if not len(judged.course):
        return None
    steps = judged.course.column("step")
    axis, narrow = chart.step_axis(steps[0], steps[-1]), chart.step_axis(steps[0], steps[-1], small=True)
    small = (
        _small(judged, narrow, "Learning rate", "rate", "small"),
        _small(judged, narrow, "Pictures a second", "images_per_second", "number"),
        _small(judged, narrow, "Gradient norm", "grad_norm", "number"),
        _small(judged, narrow, "MFU, share of the cards' peak", "mfu", "share"),
    )
    there = [one for one in small if one is not None]
    return section(
        "learning", "Learning", _loss(judged, axis), chart.grid(there, "" if len(there) == 3 else "two")
    )


def restarts(judged: Judged) -> tuple[Mark, ...]:
    """Where an attempt took up training again."""
    later = [one for one in judged.attempts[1:] if one.first_step is not None]
    return tuple(Mark(float(one.first_step or 0), f"attempt {one.number}") for one in later)


def _loss(judged: Judged, axis: Axis) -> Markup:
    course = judged.course
    steps, losses = course.column("step"), course.column("loss")
    raw, mean = thin(steps, losses, COLUMNS), thin(steps, smooth(losses), COLUMNS)
    held: Row = [
        Span(float(step), loss, loss, loss) for step, loss in judged.held_out.items() if math.isfinite(loss)
    ]
    top = _top(losses)
    return chart.draw(
        Chart(
            "Loss",
            (
                Series("each step", raw, "s1", "raw"),
                Series("mean of a twentieth", mean, "s1"),
                *((Series("held out", held, "s2", "dots"),) if held else ()),
            ),
            axis,
            chart.value_axis([raw, held], "number", top=top, zero=_from_zero(raw)),
            restarts(judged),
            _loss_note(judged, losses, top),
        )
    )


def _from_zero(row: Row) -> bool:
    """Whether the least of it is near enough to zero for an axis that shows zero too."""
    spans = finite(row)
    return not spans or min(s.low for s in spans) < 0.6 * max(s.high for s in spans)


def _top(values: array[float]) -> float | None:
    """Where an axis ends whose few highest values would flatten the rest; None if none would."""
    known = sorted(value for value in values if math.isfinite(value))
    if len(known) < 50:
        return None
    usual = known[int(len(known) * 0.98)]
    return usual * 1.3 if usual > 0 and known[-1] > _FAR * usual else None


def _loss_note(judged: Judged, losses: array[float], top: float | None) -> str:
    told = []
    wrong = sum(1 for value in losses if not math.isfinite(value))
    if top is not None:
        above = [i for i, value in enumerate(losses) if math.isfinite(value) and value > top]
        highest = max(above, key=lambda i: losses[i])
        step = words.count(judged.course.column("step")[highest])
        many = words.plural(len(above), "step lies", "steps lie")
        told.append(f"{many} above the chart, the highest {words.number(losses[highest])} at step {step}.")
    if wrong:
        told.append(f"The loss of {words.plural(wrong, 'step')} was not a number.")
    if skipped := judged.course.column("skipped")[-1]:
        told.append(f"Half precision left out {words.plural(int(skipped), 'step')} that overflowed.")
    if again := judged.course.repeated:
        told.append(f"{words.plural(again, 'step')} trained again after restarts; the chart shows the last time.")
    return " ".join(told)


def _small(judged: Judged, axis: Axis, title: str, column: str, unit: Unit) -> Markup | None:
    course = judged.course
    if not course.has(column):
        return None
    values = course.column(column)
    row = thin(course.column("step"), values, FEW)
    settled = column == "rate"
    top = None if settled else _top(values)
    series: tuple[Series, ...] = (Series(title, row, "s1", "line" if settled else "raw"),)
    if not settled and len(course) > _BROAD:
        mean = thin(course.column("step"), smooth(values), FEW)
        series = (Series(title, row, "s1", "raw", unit, told=False), Series(title, mean, "s1", "line", unit))
    return chart.draw(
        Chart(title, series, axis, chart.value_axis([row], unit, top=top), restarts(judged), size="small")
    )
