"""Which buckets get how many pictures, and what that does to batches. Pure.

Owns the numbers behind `prep`'s table: samples of each bucket, short batches, padding, and how little a small
bucket yields against the global batch. Refuses to hide a bucket: all are told, the smallest too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clusterft_trainer.buckets import Bucket

_BAR = 40  # letters of the longest bar


@dataclass(frozen=True, slots=True)
class Line:
    """One bucket in an epoch."""

    bucket: Bucket
    pictures: int
    samples: int  # pictures times the repeats of their sources
    batches: int
    short: int  # samples of the last batch, 0 if it is full

    def filled(self, size: int) -> float:
        """Share of what is computed for it that counts."""
        return self.samples / (self.batches * size)


@dataclass(frozen=True, slots=True)
class Census:
    """All buckets that have pictures, the fullest first."""

    size: int  # of the global batch
    lines: tuple[Line, ...]

    @property
    def samples(self) -> int:
        """Of an epoch."""
        return sum(line.samples for line in self.lines)

    @property
    def batches(self) -> int:
        """Optimizer steps of an epoch."""
        return sum(line.batches for line in self.lines)

    @property
    def padding(self) -> float:
        """Share of the computed samples that only fill short batches."""
        return 1 - self.samples / (self.batches * self.size) if self.batches else 0.0


def census(table: Sequence[Bucket], numbers: np.ndarray, repeats: np.ndarray | None, size: int) -> Census:
    """Count `numbers`, the place in `table` of each picture's bucket; `repeats`: how often each is shown."""
    pictures = np.bincount(numbers, minlength=len(table))
    samples = pictures if repeats is None else np.bincount(numbers, repeats, len(table)).astype(np.int64)
    lines = []
    for place in np.flatnonzero(pictures).tolist():
        shown = int(samples[place])
        lines.append(Line(table[place], int(pictures[place]), shown, -(-shown // size), shown % size))
    return Census(size, tuple(sorted(lines, key=lambda line: (-line.samples, line.bucket))))


def text(found: Census) -> str:
    """A table with a bar for each bucket."""
    most = max((line.samples for line in found.lines), default=1)
    rows = [f"{'bucket':>11}  {'pictures':>9}  {'samples':>9}  {'batches':>7}  {'filled':>6}"]
    for line in found.lines:
        name = f"{line.bucket.width}x{line.bucket.height}"
        bar = "#" * max(1, round(_BAR * line.samples / most))
        share = f"{100 * line.filled(found.size):.0f}%"
        rows.append(f"{name:>11}  {line.pictures:>9}  {line.samples:>9}  {line.batches:>7}  {share:>6}  {bar}")
    rows.append(
        f"{len(found.lines)} buckets, {found.samples} samples in {found.batches} batches of {found.size}, "
        f"{100 * found.padding:.1f}% of them padding"
    )
    return "\n".join(rows) + "\n"


def body(found: Census) -> dict[str, object]:
    """The same for a JSON document."""
    return {
        "batch": found.size,
        "samples": found.samples,
        "batches": found.batches,
        "padding": found.padding,
        "buckets": [
            {
                "size": [line.bucket.width, line.bucket.height],
                "pictures": line.pictures,
                "samples": line.samples,
                "batches": line.batches,
                "short": line.short,
            }
            for line in found.lines
        ],
    }
