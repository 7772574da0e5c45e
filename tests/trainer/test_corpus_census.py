"""Counting buckets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterft_trainer.buckets import Bucket, Epochs, Shape, sizes
from clusterft_trainer.corpus.census import body, census, text

pytestmark = pytest.mark.trainer
TABLE = sizes(512)


@given(st.lists(st.integers(0, len(TABLE) - 1), min_size=8, max_size=80), st.integers(1, 8))
def test_counts_batches_and_padding_are_those_of_an_epoch(numbers: list[int], size: int) -> None:
    found = census(TABLE, np.array(numbers), None, size)
    epochs = Epochs([TABLE[k] for k in numbers], 0, Shape(size, 1, 1))
    assert found.samples == len(numbers)
    assert found.batches == epochs.batches
    assert found.padding == pytest.approx(epochs.padding)


def test_repeats_make_samples_and_the_fullest_bucket_comes_first() -> None:
    table = (Bucket(1, 2), Bucket(2, 1), Bucket(3, 3))
    found = census(table, np.array([0, 0, 0, 1]), np.array([1, 1, 1, 10]), 4)
    assert [(line.bucket, line.pictures, line.samples, line.batches, line.short) for line in found.lines] == [
        (Bucket(2, 1), 1, 10, 3, 2),
        (Bucket(1, 2), 3, 3, 1, 3),
    ]
    assert body(found)["buckets"][0]["size"] == [2, 1]  # type: ignore[index]


def test_the_table_has_a_line_and_a_bar_for_each_bucket_and_the_sum() -> None:
    lines = text(census((Bucket(64, 128), Bucket(128, 64)), np.array([0] * 40 + [1]), None, 8)).splitlines()
    assert lines[1].split() == ["64x128", "40", "40", "5", "100%", "#" * 40]
    assert lines[2].split() == ["128x64", "1", "1", "1", "12%", "#"]
    assert lines[3] == "2 buckets, 41 samples in 6 batches of 8, 14.6% of them padding"


def test_no_picture_is_no_bucket() -> None:
    found = census(TABLE, np.zeros(0, np.int64), None, 4)
    assert (found.lines, found.padding, found.batches) == ((), 0.0, 0)
    assert "0 buckets" in text(found)
