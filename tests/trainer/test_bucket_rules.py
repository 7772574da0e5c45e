"""Proves that every picture gets the bucket and the cut that kohya's trainer gives it, alone or among millions.

The witness below is written from the rules, without a look at our code: fractions where the rules speak of
numbers, floating point where they do.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterft_trainer import buckets, placing
from clusterft_trainer.buckets import Bucket
from clusterft_trainer.config import Buckets
from clusterft_trainer.errors import DataError

sides = st.integers(1, 12_000)
usual = st.integers(200, 4_000)
AREA = 1024 * 1024
RULES = [
    Buckets(),
    Buckets(smallest=256, largest=2048, step=64),
    Buckets(smallest=512, largest=1536, step=32),
    Buckets(sizes=("832x1216", "1216x832", "1024x1024", "640x1536")),
]


def witness_table(area: int, smallest: int, largest: int, step: int) -> list[tuple[int, int]]:
    """All pairs of sides, judged one by one."""
    allowed = [side for side in range(step, 3 * largest, step) if smallest <= side <= largest]
    found = set()
    for width in allowed:
        fitting = [height for height in allowed if width * height <= area]
        if fitting:
            found |= {(width, max(fitting)), (max(fitting), width)}
    square = max(side for side in range(0, math.isqrt(area) + 1, step))
    return sorted(found | {(square, square)})


def witness_bucket(width: int, height: int, table: list[tuple[int, int]]) -> tuple[int, int]:
    """The own size, or the first of the nearest shapes."""
    if (width, height) in table:
        return width, height
    errors = [abs(w / h - width / height) for w, h in table]
    return table[errors.index(min(errors))]


def witness_unenlarged(width: int, height: int, step: int) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """(resized, bucket) where nothing is enlarged; None for what has no bucket."""
    if width * height > AREA:
        ratio = width / height
        w = math.sqrt(AREA * ratio)
        h = AREA / w
        w, h = (int(w + 0.5) // step * step, int(h + 0.5) // step * step)
        other_h, other_w = int(w / ratio + 0.5) // step * step, int(h * ratio + 0.5) // step * step
        if 0 in (w, h, other_w, other_h):
            return None
        if abs(w / other_h - ratio) < abs(other_w / h - ratio):
            width, height = w, int(w / ratio + 0.5)
        else:
            width, height = int(h * ratio + 0.5), h
    bucket = width // step * step, height // step * step
    return None if 0 in bucket else ((width, height), bucket)


@pytest.mark.parametrize("step", [32, 64, 128])
@pytest.mark.parametrize("limits", [(256, 1024), (256, 2048), (512, 1024), (128, 1536), (1024, 1024)])
def test_the_table_holds_what_the_rules_allow_and_no_more(limits: tuple[int, int], step: int) -> None:
    found = placing.table(Buckets(smallest=limits[0], largest=limits[1], step=step), 1024)
    assert [(b.width, b.height) for b in found] == witness_table(AREA, *limits, step)


def test_without_settings_the_table_is_the_usual_one() -> None:
    for resolution in (64, 128, 512, 768, 1024, 1536):
        assert placing.table(Buckets(), resolution) == buckets.sizes(resolution)


# picture, bucket, resized to, cut off at the left and top: from the rules, by hand
GOLDEN = [
    ((1024, 1024), (1024, 1024), (1024, 1024), (0, 0)),
    ((1920, 1080), (1024, 576), (1024, 576), (0, 0)),
    ((3000, 2000), (1024, 704), (1056, 704), (16, 0)),
    ((2000, 3000), (704, 1024), (704, 1056), (0, 16)),
    ((1200, 900), (1024, 768), (1024, 768), (0, 0)),
    ((640, 480), (1024, 768), (1024, 768), (0, 0)),
    ((1000, 1000), (1024, 1024), (1024, 1024), (0, 0)),
    ((850, 1200), (704, 1024), (725, 1024), (10, 0)),
    ((8000, 1000), (1024, 256), (2048, 256), (512, 0)),
    ((1000, 8000), (256, 1024), (256, 2048), (0, 512)),
    ((320, 1024), (320, 1024), (320, 1024), (0, 0)),
    ((993, 1024), (1024, 1024), (1024, 1056), (0, 16)),  # 0.9697 lies nearer to 1 than to 0.9375
    ((991, 1024), (960, 1024), (991, 1024), (15, 0)),  # 0.9678 does not
]


@pytest.mark.parametrize(("picture", "bucket", "resized", "corner"), GOLDEN)
def test_known_pictures_land_where_the_rules_put_them(
    picture: tuple[int, int], bucket: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int]
) -> None:
    got, fit = placing.place(*picture, placing.rules(Buckets(), 1024))
    assert got == Bucket(*bucket)
    assert (fit.resized_width, fit.resized_height, fit.left, fit.top) == (*resized, *corner)


@pytest.mark.parametrize("chosen", RULES)
@given(pictures=st.lists(st.tuples(sides, sides) | st.tuples(usual, usual), min_size=1, max_size=40))
def test_millions_at_once_are_placed_as_each_one_is(chosen: Buckets, pictures: list[tuple[int, int]]) -> None:
    by = placing.rules(chosen, 1024)
    # own sizes and their neighbours, where an exact match decides
    for bucket in by.table[:3]:
        pictures = [*pictures, (bucket.width, bucket.height), (bucket.width + 1, bucket.height)]
    placed = placing.place_all(np.array(pictures, np.int32), by)
    listed = [(b.width, b.height) for b in by.table]
    assert placed.numbers.dtype == np.int16 and placed.fits.dtype == np.int32
    for number, row, (width, height) in zip(placed.numbers, placed.fits.tolist(), pictures, strict=True):
        bucket = placed.table[number]
        assert (bucket.width, bucket.height) == witness_bucket(width, height, listed)
        assert bucket == buckets.assign(width, height, by.table)
        fit = buckets.fit(width, height, bucket)
        assert row == [fit.resized_width, fit.resized_height, fit.left, fit.top]
        assert (bucket, fit) == placing.place(width, height, by)


@given(usual, usual)
def test_a_picture_is_resized_as_little_as_covers_its_bucket(width: int, height: int) -> None:
    bucket, fit = placing.place(width, height, placing.rules(Buckets(), 1024))
    scale = max(Fraction(bucket.width, width), Fraction(bucket.height, height))
    assert abs(fit.resized_width - width * scale) <= Fraction(1, 2)
    assert abs(fit.resized_height - height * scale) <= Fraction(1, 2)
    assert fit.resized_width >= bucket.width and fit.resized_height >= bucket.height


@settings(max_examples=300)
@given(st.tuples(sides, sides) | st.tuples(usual, usual), st.sampled_from([32, 64]))
def test_without_upscaling_nothing_is_enlarged_and_the_rules_hold(picture: tuple[int, int], step: int) -> None:
    by = placing.rules(Buckets(upscale=False, step=step), 1024)
    expected = witness_unenlarged(*picture, step)
    if expected is None:
        with pytest.raises(DataError, match="narrower"):
            placing.place(*picture, by)
        return
    bucket, fit = placing.place(*picture, by)
    assert ((fit.resized_width, fit.resized_height), (bucket.width, bucket.height)) == expected
    assert fit.resized_width <= picture[0] and fit.resized_height <= picture[1]
    assert (fit.left, fit.top) == (
        (fit.resized_width - bucket.width) // 2,
        (fit.resized_height - bucket.height) // 2,
    )


@given(st.lists(st.tuples(usual, usual), min_size=1, max_size=30))
def test_without_upscaling_many_are_placed_as_each_one_is(pictures: list[tuple[int, int]]) -> None:
    by = placing.rules(Buckets(upscale=False), 1024)
    placed = placing.place_all(np.array(pictures, np.int32), by)
    assert list(placed.table) == sorted(placed.table), "the order of buckets is that of their sizes"
    alone = [placing.place(*picture, by) for picture in pictures]
    assert [placed.table[n] for n in placed.numbers] == [bucket for bucket, _ in alone]
    assert placed.fits.tolist() == [[f.resized_width, f.resized_height, f.left, f.top] for _, f in alone]
    assert set(placed.table) <= set(placing.table(Buckets(upscale=False), 1024))


def test_pictures_too_narrow_for_any_bucket_are_counted_and_named() -> None:
    pictures = np.array([[800, 600], [2000, 40], [30, 30]], np.int32)
    with pytest.raises(DataError, match="2 of 3 pictures .* 2000x40"):
        placing.place_all(pictures, placing.rules(Buckets(upscale=False), 1024))


def test_no_pictures_are_no_trouble() -> None:
    none: np.ndarray = np.zeros((0, 2), np.int32)
    for chosen in (Buckets(), Buckets(upscale=False)):
        placed = placing.place_all(none, placing.rules(chosen, 1024))
        assert len(placed.numbers) == 0 and placed.fits.shape == (0, 4)
