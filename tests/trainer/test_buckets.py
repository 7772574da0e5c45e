"""Proves that pictures sort into kohya's buckets, and that an epoch shows each picture exactly once.

The golden table was computed by hand from the rules; the properties hold for any number of ranks.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterft_trainer import buckets
from clusterft_trainer.buckets import Bucket, Epochs, Position, Shape
from clusterft_trainer.errors import DataError

shapes = st.builds(
    Shape,
    per_slot=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    world=st.integers(1, 5),
)
seeds = st.integers(0, 2**63 - 1)
GOLDEN = [(2,), (4, 8), (0, 6), (7, 5), (3, 1)]


def test_the_default_table_is_the_golden_one() -> None:
    sides = [256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960]
    golden = {Bucket(1024, 1024)}
    golden |= {Bucket(s, 1024) for s in sides} | {Bucket(1024, s) for s in sides}
    assert buckets.sizes(1024) == tuple(sorted(golden))
    assert len(golden) == 25


def test_a_larger_limit_gives_the_well_known_41() -> None:
    table = buckets.sizes_between(1024, 256, 2048, 64)
    assert len(table) == 41
    for known in ((832, 1216), (1216, 832), (896, 1152), (640, 1536), (512, 2048)):
        assert Bucket(*known) in table


@pytest.mark.parametrize(
    ("resolution", "expected"),
    [
        (64, [(32, 64), (64, 32), (64, 64)]),
        (128, [(32, 128), (64, 128), (96, 128), (128, 32), (128, 64), (128, 96), (128, 128)]),
    ],
)
def test_limits_scale_with_the_resolution(resolution: int, expected: list[tuple[int, int]]) -> None:
    assert [(b.width, b.height) for b in buckets.sizes(resolution)] == expected


@pytest.mark.parametrize(
    ("picture", "bucket"),
    [
        ((1024, 1024), (1024, 1024)),
        ((3000, 3000), (1024, 1024)),
        ((640, 1024), (640, 1024)),  # its own size comes first
        ((1920, 1080), (1024, 576)),
        ((1080, 1920), (576, 1024)),
        ((5000, 400), (1024, 256)),  # beyond the table: the widest there is
    ],
)
def test_assignment(picture: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert buckets.assign(*picture, buckets.sizes(1024)) == Bucket(*bucket)


@given(st.integers(16, 8000), st.integers(16, 8000))
def test_a_fitted_picture_covers_its_bucket(width: int, height: int) -> None:
    bucket = buckets.assign(width, height, buckets.sizes(1024))
    fit = buckets.fit(width, height, bucket)
    assert fit.left >= 0 and fit.top >= 0
    assert fit.left + bucket.width <= fit.resized_width
    assert fit.top + bucket.height <= fit.resized_height
    # one side fits without a cut, but for rounding
    assert min(fit.resized_width - bucket.width, fit.resized_height - bucket.height) <= 1


@given(shapes, seeds, st.integers(0, 50), st.lists(st.integers(0, 3), min_size=60, max_size=90))
def test_every_picture_counts_exactly_once_in_an_epoch(
    shape: Shape, seed: int, epoch: int, places: list[int]
) -> None:
    table = buckets.sizes(128)
    epochs = Epochs([table[p] for p in places], seed, shape)
    counted: list[int] = []
    for batch in epochs.batch_list(epoch):
        assert len({places[i] for i in batch}) == 1, "a step mixes buckets"
        seen = []
        for rank in range(shape.world):
            micro = buckets.share(batch, shape, rank)
            assert [len(m) for m in micro] == [shape.per_slot] * shape.accumulate
            seen += [s for m in micro for s in m]
        assert sum(s.weight for s in seen) == len(batch)
        counted += [s.index for s in seen if s.weight]
    assert sorted(counted) == list(range(len(places)))
    assert len(epochs.batch_list(epoch)) == epochs.batches


@given(seeds, st.sampled_from([(4, 1, 2), (2, 2, 2), (1, 1, 8), (8, 1, 1)]))
def test_the_order_does_not_depend_on_how_ranks_share_a_batch(seed: int, cut: tuple[int, int, int]) -> None:
    assigned = [buckets.sizes(128)[i % 3] for i in range(50)]
    reference = Epochs(assigned, seed, Shape(8, 1, 1))
    assert Epochs(assigned, seed, Shape(*cut)).batch_list(3) == reference.batch_list(3)


@given(seeds, st.integers(0, 40))
def test_resuming_gives_the_rest_of_the_walk(seed: int, done: int) -> None:
    epochs = Epochs([buckets.sizes(128)[i % 2] for i in range(30)], seed, Shape(2, 1, 2))
    whole = epochs.walk(Position())
    position = Position()
    for _ in range(done):
        position, _batch = next(whole)
        position = epochs.after(position)
    resumed = epochs.walk(position)
    assert [next(whole) for _ in range(20)] == [next(resumed) for _ in range(20)]


def test_the_order_is_the_same_on_every_machine_and_with_every_numpy() -> None:
    # splitmix64's published first outputs from 1234567
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert buckets.mix(np.arange(4), 1234567).tolist() == published
    by_hand = sorted(range(900), key=lambda i: int(buckets.mix(np.array([i]), 77)[0]) >> 10)
    assert buckets.shuffled(np.arange(900), 77).tolist() == by_hand
    epochs = Epochs([buckets.sizes(128)[i % 2] for i in range(9)], 5, Shape(2, 1, 1))
    assert list(epochs.batch_list(0)) == GOLDEN


@given(st.lists(st.integers(0, 2**31 - 1), unique=True, max_size=200), st.integers(0, 2**64 - 1))
def test_a_shuffle_loses_nothing_and_does_not_ask_what_else_is_shuffled(ids: list[int], key: int) -> None:
    order = buckets.shuffled(np.array(sorted(ids), np.int64), key).tolist()
    assert sorted(order) == sorted(ids)
    assert order == buckets.shuffled(np.array(ids, np.int64), key).tolist()


def test_a_shuffle_puts_each_sample_everywhere() -> None:
    places = np.array([buckets.shuffled(np.arange(8), key) for key in range(4000)])
    counts = np.array([np.bincount(column, minlength=8) for column in places.T])
    # 500 expected, standard deviation 21
    assert counts.min() > 400 and counts.max() < 600


def test_bucket_numbers_do_as_well_as_buckets() -> None:
    table = buckets.sizes(128)
    places = [(7 * i) % 5 for i in range(60)]
    named = Epochs([table[p] for p in places], 9, Shape(4, 1, 1))
    numbered = Epochs(np.array(places, np.int16), 9, Shape(4, 1, 1))
    assert list(named.batch_list(2)) == list(numbered.batch_list(2))
    assert numbered.batches == named.batches and numbered.padding == named.padding


def test_a_million_samples_take_some_bytes_each() -> None:
    numbers = (np.arange(1_000_000) % 25).astype(np.int16)
    tracemalloc.start()
    try:
        epochs = Epochs(numbers, 1, Shape(4, 1, 2))
        for epoch in range(3):
            assert len(epochs.batch_list(epoch)[0]) == 8
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 12 * 10**6, "two epochs at 4 bytes a sample, and their batches"
    assert most < 20 * 10**6


def test_epochs_differ_and_repeat_with_the_seed() -> None:
    assigned = [Bucket(64, 64)] * 40
    first = Epochs(assigned, 1, Shape(4, 1, 1))
    assert first.batch_list(0) != first.batch_list(1)
    assert first.batch_list(0) == Epochs(assigned, 1, Shape(4, 1, 1)).batch_list(0)
    assert first.batch_list(0) != Epochs(assigned, 2, Shape(4, 1, 1)).batch_list(0)


def test_a_short_batch_is_spread_over_the_ranks() -> None:
    shape = Shape(2, 1, 3)
    weights = [[s.weight for s in buckets.share([7, 8, 9], shape, r)[0]] for r in range(3)]
    assert weights == [[1, 0], [1, 0], [1, 0]]


def test_fewer_pictures_than_one_step_are_refused_with_the_sum() -> None:
    with pytest.raises(DataError, match="3 pictures are fewer than the 8 of one optimizer step"):
        Epochs([Bucket(64, 64)] * 3, 0, Shape(4, 1, 2))


@given(seeds, st.lists(st.tuples(st.integers(1, 9), st.integers(0, 6)), max_size=3), st.integers(1, 9))
def test_no_sample_is_missed_or_seen_twice_when_the_batch_size_changes_within_an_epoch(
    seed: int, runs: list[tuple[int, int]], last: int
) -> None:
    assigned = [buckets.sizes(128)[i % 3] for i in range(40)]
    seen: list[int] = []
    position, size = Position(), last
    for next_size, count in [*runs, (last, 10**6)]:
        steps = count
        epochs = Epochs(assigned, seed, Shape(next_size, 1, 1))
        position = epochs.moved(position, size)
        assert epochs.sample(position) == len(seen)
        for at, batch in epochs.walk(position):
            if steps == 0 or at.epoch > 0:
                break
            assert len({assigned[i] for i in batch}) == 1
            seen += batch
            position, steps = epochs.after(at), steps - 1
        size = next_size
        if position.epoch > 0:
            break
    assert sorted(seen) == list(range(40))


def test_what_is_left_is_counted_over_epochs() -> None:
    epochs = Epochs([Bucket(64, 64)] * 10, 0, Shape(4, 1, 1))
    assert epochs.left(Position(), 2) == 6
    assert epochs.left(Position(1, 2), 2) == 1
    assert epochs.left(Position(2), 2) == 0
    bigger = Epochs([Bucket(64, 64)] * 10, 0, Shape(8, 1, 1))
    assert bigger.left(bigger.moved(Position(0, 1), 4), 1) == 1
