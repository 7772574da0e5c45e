"""Which bucket each picture lies in under the settings of data.buckets, one by one or millions at once. Pure.

The rules are kohya's (see `buckets`): an own size first, then the nearest aspect ratio; without upscaling, the
picture's own size cut to the step. What is computed for many is what is computed for one, to the last pixel.
Refuses a list with a size that pictures could hardly ever get, and a picture too narrow for any bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clusterft_trainer.buckets import Bucket, Fit, assign, fit, sizes_between
from clusterft_trainer.config import Buckets
from clusterft_trainer.errors import ConfigError, DataError

_ROWS = 1 << 15  # pictures at a time, so that what is computed of them stays in the CPU's cache
_MOST_BUCKETS = 2**15 - 1  # their numbers are int16


@dataclass(frozen=True, slots=True)
class Rules:
    """By what a picture finds its bucket."""

    table: tuple[Bucket, ...]  # sorted; none without upscaling, where pictures make their own
    area: int  # pixels that a picture is brought to
    step: int  # sides of buckets are multiples of it
    upscale: bool = True


@dataclass(frozen=True, slots=True)
class Placed:
    """Where many pictures lie."""

    table: tuple[Bucket, ...]
    numbers: np.ndarray  # (n,) int16: the place in there of each one's bucket
    fits: np.ndarray  # (n, 4) int32, as Fit has them


def rules(settings: Buckets, resolution: int) -> Rules:
    """What the settings of data.buckets say; where they say nothing, kohya's limits scaled to the resolution."""
    area = resolution * resolution
    step = settings.step or (64 if resolution >= 512 else 32)
    if settings.sizes is not None:
        listed = tuple(sorted({Bucket(*size) for size in settings.listed}))
        return Rules(listed, area, step)
    if not settings.upscale:
        return Rules((), area, step, upscale=False)
    smallest = settings.smallest or max(step, resolution // 4 // step * step)
    largest = settings.largest or resolution
    return Rules(sizes_between(resolution, smallest, largest, step), area, step)


def table(settings: Buckets, resolution: int) -> tuple[Bucket, ...]:
    """The sizes that pictures can be trained at; without upscaling these are many."""
    by = rules(settings, resolution)
    if by.upscale:
        return by.table
    sides = range(by.step, by.area // by.step + 1, by.step)
    return tuple(
        Bucket(width, height) for width in sides for height in range(by.step, by.area // width + 1, by.step)
    )


def place(width: int, height: int, by: Rules) -> tuple[Bucket, Fit]:
    """The bucket of a picture, and how it becomes that large."""
    if by.upscale:
        bucket = assign(width, height, by.table)
        return bucket, fit(width, height, bucket)
    placed = place_all(np.array([[width, height]]), by)
    return placed.table[placed.numbers[0]], Fit(*placed.fits[0].tolist())


def assign_all(sizes: np.ndarray, buckets: Sequence[Bucket]) -> np.ndarray:
    """`assign` for (n, 2) widths and heights: the place of each one's bucket in a sorted table, int16."""
    found: np.ndarray = np.empty(len(sizes), np.int16)
    for start in range(0, len(sizes), _ROWS):
        found[start : start + _ROWS] = _assigned(sizes[start : start + _ROWS], buckets)
    return found


def _assigned(sizes: np.ndarray, buckets: Sequence[Bucket]) -> np.ndarray:
    ratios = sizes[:, 0] / sizes[:, 1]
    nearest: np.ndarray = np.full(len(sizes), np.inf)
    numbers: np.ndarray = np.zeros(len(sizes), np.int16)
    error: np.ndarray = np.empty(len(sizes))
    better: np.ndarray = np.empty(len(sizes), bool)
    for number, bucket in enumerate(buckets):
        np.subtract(bucket.width / bucket.height, ratios, out=error)
        np.abs(error, out=error)
        np.less(error, nearest, out=better)  # so that the first of equals stays
        np.minimum(error, nearest, out=nearest)
        np.copyto(numbers, np.int16(number), where=better)
    own, table = _packed(sizes), _packed(np.array([(b.width, b.height) for b in buckets]))
    at: np.ndarray = np.asarray(np.searchsorted(table, own))
    same = table[np.minimum(at, len(table) - 1)] == own
    numbers[same] = at[same]
    return numbers


def _packed(sizes: np.ndarray) -> np.ndarray:
    """Widths and heights as numbers that sort as they do."""
    return sizes[:, 0].astype(np.int64) << 32 | sizes[:, 1].astype(np.int64)


def fit_all(sizes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """`fit` for (n, 2) widths and heights with (n, 2) sizes of their buckets: (n, 4) int32 as Fit has them."""
    large: np.ndarray = chosen.astype(np.int64)
    wider = sizes[:, 0] / sizes[:, 1] > large[:, 0] / large[:, 1]
    scale = np.where(wider, large[:, 1] / sizes[:, 1], large[:, 0] / sizes[:, 0])
    resized: np.ndarray = np.maximum(large, (sizes * scale[:, None] + 0.5).astype(np.int64))
    return np.concatenate([resized, (resized - large) // 2], axis=1).astype(np.int32)


def place_all(sizes: np.ndarray, by: Rules) -> Placed:
    """`place` for (n, 2) widths and heights of any number of pictures."""
    if by.upscale:
        numbers = assign_all(sizes, by.table)
        sides = np.array([(b.width, b.height) for b in by.table], np.int32)
        fits: np.ndarray = np.empty((len(sizes), 4), np.int32)
        for start in range(0, len(sizes), _ROWS):
            rows = slice(start, start + _ROWS)
            fits[rows] = fit_all(sizes[rows], sides[numbers[rows]])
        return Placed(by.table, numbers, fits)
    resized = _shrunk_all(np.asarray(sizes, np.int64), by)
    large = resized - resized % by.step
    _refuse_narrow(sizes, large, by.step)
    unique, numbers = np.unique(_packed(large), return_inverse=True)
    if len(unique) > _MOST_BUCKETS:
        raise ConfigError(
            f"data.buckets.upscale: false makes {len(unique)} buckets of these pictures, most next to empty.",
            "Raise data.buckets.step, or let pictures be enlarged.",
        )
    found = tuple(Bucket(size >> 32, size & 0xFFFFFFFF) for size in unique.tolist())
    return Placed(
        found,
        numbers.reshape(-1).astype(np.int16),
        np.concatenate([resized, (resized - large) // 2], axis=1).astype(np.int32),
    )


def _shrunk_all(sizes: np.ndarray, by: Rules) -> np.ndarray:
    """Sizes after resizing where nothing is enlarged: of what is larger than the area, one side becomes a multiple
    of the step, the one that changes the shape less."""
    resized: np.ndarray = sizes.copy()
    over = np.flatnonzero(sizes[:, 0] * sizes[:, 1] > by.area)
    ratio = sizes[over, 0] / sizes[over, 1]
    width = np.sqrt(by.area * ratio)
    height = by.area / width
    across, down = _floored(width, by.step), _floored(height, by.step)
    with np.errstate(divide="ignore", invalid="ignore"):  # a side of 0 is refused by the caller
        by_width = across / _floored(across / ratio, by.step)
        by_height = _floored(down * ratio, by.step) / down
        first = np.abs(by_width - ratio) < np.abs(by_height - ratio)
    resized[over, 0] = np.where(first, across, (down * ratio + 0.5).astype(np.int64))
    resized[over, 1] = np.where(first, (across / ratio + 0.5).astype(np.int64), down)
    return resized


def _floored(sides: np.ndarray, step: int) -> np.ndarray:
    whole = (sides + 0.5).astype(np.int64)
    return whole - whole % step


def _refuse_narrow(sizes: np.ndarray, large: np.ndarray, step: int) -> None:
    narrow = np.flatnonzero((large < step).any(axis=1))
    if len(narrow):
        width, height = sizes[narrow[0]].tolist()
        raise DataError(
            f"{len(narrow)} of {len(sizes)} pictures are narrower than the {step} pixels of a bucket's step, "
            f"and data.buckets.upscale is false: the first has {width}x{height}.",
            "Leave them out, or let pictures be enlarged: data.buckets.upscale: true.",
        )


def letterbox(size: tuple[int, int], bucket: Bucket) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a picture laid inside of its bucket, nothing cut off: kohya's crop_ltrb.

    In floating point and rounded down, as its trainer does, so that the numbers are the same.
    """
    ratio = size[0] / size[1]
    width, height = float(bucket.width), float(bucket.height)
    if bucket.width / bucket.height > ratio:
        width = bucket.height * ratio
    else:
        height = bucket.width / ratio
    left, top = (bucket.width - width) // 2, (bucket.height - height) // 2
    return left, top, left + width, top + height
