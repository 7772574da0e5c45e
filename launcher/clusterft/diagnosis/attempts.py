"""A run's attempts, told apart: what was heard of each, and which of those before the newest failed. Pure.

What ended an attempt before is past: it is never what ended the run, and it is never left out either.
"""

from __future__ import annotations

from dataclasses import replace

from clusterft.diagnosis.heard import Course, End, Heard, Sighting


def parted(heard: Heard, newest: int) -> Heard:
    """Of all that was heard, the newest attempt's part, with those before it that failed."""
    before = sorted(number for number in _numbers(heard) if 0 <= number < newest)
    course = heard.courses.get(newest, Course())
    if course.resumed or (course.again and not heard.ended):
        # It is over, the run is not, and the next one has not said a word yet.
        before, newest = [*before, newest], newest + 1
    begins = {number: _began(heard, number) for number in (*before, newest)}
    failed = tuple(_of(heard, number, begins) for number in before if _failed(heard, number))
    now = _of(heard, newest, begins)
    told = [one for one in now.told if not one.again]
    return replace(now, told=told, earlier=failed, end=heard.end, ended=heard.ended, done=heard.done)


def _numbers(heard: Heard) -> set[int]:
    spoke = [one.source.attempt for one in heard.voices] + [one.source.attempt for one in heard.ends]
    numbers = {*spoke, *(one.attempt for one in heard.told), *heard.courses}
    return {one for one in numbers if one is not None}


def _failed(heard: Heard, number: int) -> bool:
    """As its supervisors told it; logs alone do not say."""
    course = heard.courses.get(number, Course())
    return course.again or not course.ends or "failed" in course.ends.values()


def _of(heard: Heard, number: int, begins: dict[int, float | None]) -> Heard:
    """What belongs to no attempt belongs to all."""
    mine = (None, number)
    return replace(
        heard,
        attempt=number,
        voices=[one for one in heard.voices if one.source.attempt in mine],
        ends=[one for one in heard.ends if _is_end_of(heard, one, number, begins)],
        told=[one for one in heard.told if one.attempt in mine],
        kernel=[one for one in heard.kernel if _meanwhile(heard, one, number, begins)],
        earlier=(),
        end="",
        ended={},
        done=False,
    )


def _began(heard: Heard, number: int) -> float | None:
    """As its supervisors told it, else from the first words of its ranks."""
    told = heard.courses.get(number, Course()).began.items()
    heard_of = [(one.node, one.first_at) for one in heard.voices if one.source.attempt == number]
    times = [heard.true(node, at) for node, at in (told or heard_of)]
    return min((at for at in times if at is not None), default=None)


def _is_end_of(heard: Heard, one: End, number: int, begins: dict[int, float | None]) -> bool:
    """A container's end, which an engine tells, is known by its time alone."""
    told = one.source.attempt
    return told == number if told is not None else _meanwhile(heard, one, number, begins)


def _meanwhile(heard: Heard, one: Sighting | End, number: int, begins: dict[int, float | None]) -> bool:
    """Whether a kernel or an engine told it of the time between the begin of this attempt and that of the next."""
    at = heard.true(one.node, one.at)
    if at is None:
        return number == max(begins)
    own = begins[number]
    later = [begin for other, begin in begins.items() if other > number and begin is not None]
    first = all(begin is None for other, begin in begins.items() if other < number)
    return (first or own is None or at >= own) and at < min(later, default=float("inf"))
