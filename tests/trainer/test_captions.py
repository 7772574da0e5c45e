"""Proves that captions are dropped and rearranged in kohya's order, by the key alone."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from clusterft_trainer import captions
from clusterft_trainer.config import Captions

TAGS = "1girl, red hair, smile, outdoors, sky, tree"
keys = st.integers(0, 2**captions.KEY_BITS - 1)


def many(settings: Captions, count: int = 4000) -> list[str]:
    """What a caption becomes under evenly spread keys that are drawn like a hash's."""
    source = random.Random(1)
    return [captions.settle(TAGS, settings, source.getrandbits(captions.KEY_BITS)) for _ in range(count)]


@given(keys, st.text())
def test_a_caption_is_left_as_written_where_nothing_is_asked(key: int, caption: str) -> None:
    assert captions.settle(caption, Captions(), key) == caption


@given(keys)
def test_a_caption_that_is_dropped_is_empty(key: int) -> None:
    assert captions.settle(TAGS, Captions(dropout=1.0, shuffle=True), key) == ""


def test_the_share_of_dropped_captions_is_the_one_that_was_asked_for() -> None:
    found = many(Captions(dropout=0.1))
    assert 330 < found.count("") < 470 and set(found) == {"", TAGS}


def test_the_key_decides_which_captions_are_dropped() -> None:
    """As in the versions before there were tags: lower keys first."""
    settings, edge = Captions(dropout=0.25), 2**61
    assert captions.settle("a", settings, edge - 1) == "" and captions.settle("a", settings, edge) == "a"


@given(keys)
def test_shuffling_keeps_every_tag_and_the_first_in_their_places(key: int) -> None:
    tags = captions.settle(TAGS, Captions(shuffle=True, keep=2), key).split(", ")
    assert tags[:2] == ["1girl", "red hair"]
    assert sorted(tags) == sorted(TAGS.split(", "))


def test_every_order_of_the_free_tags_comes_equally_often() -> None:
    found = Counter(many(Captions(shuffle=True, keep=3), 6000))
    assert len(found) == 6
    assert all(850 < count < 1150 for count in found.values()), found


def test_tag_dropout_leaves_out_its_share_of_the_free_tags_alone() -> None:
    found = [c.split(", ") for c in many(Captions(tag_dropout=0.3, keep=1))]
    assert all(tags[0] == "1girl" for tags in found)
    kept = Counter(tag for tags in found for tag in tags[1:])
    assert len(kept) == 5 and all(2650 < count < 2950 for count in kept.values()), kept
    order = TAGS.split(", ")
    assert all(tags == [t for t in order if t in tags] for tags in found), "order changed without shuffle"


def test_all_tags_can_be_dropped() -> None:
    assert captions.settle(TAGS, Captions(tag_dropout=1.0), 5) == ""
    assert captions.settle(TAGS, Captions(tag_dropout=1.0, keep=2), 5) == "1girl, red hair"


def test_tags_are_split_at_the_separator_and_joined_by_commas() -> None:
    settings = Captions(shuffle=True, keep=9, separator="|")
    assert captions.settle(" a, b | c||d |", settings, 5) == "a, b, c, d"


def test_the_key_alone_decides_and_the_global_generator_is_left_alone() -> None:
    settings = Captions(shuffle=True, tag_dropout=0.2, dropout=0.1)
    random.seed(3)
    before = random.getstate()
    first = [captions.settle(TAGS, settings, 2**60 + i) for i in range(50)]
    assert random.getstate() == before
    random.seed(99)
    assert first == [captions.settle(TAGS, settings, 2**60 + i) for i in range(50)]
    assert len(set(first)) > 40


def test_the_arrangement_is_the_recorded_one() -> None:
    """A run that goes on under another version of Python or of the trainer must go on with the same captions."""
    settings = Captions(shuffle=True, keep=1, tag_dropout=0.2)
    found = [captions.settle(TAGS, settings, key) for key in (0, 2**40 + 1, 2**63 - 1)]
    assert found == [
        "1girl, outdoors, smile, red hair, tree, sky",
        "1girl, tree, sky, outdoors, red hair, smile",
        "1girl, tree, sky, smile",
    ]


def test_captions_need_no_torch() -> None:
    script = "import sys; from clusterft_trainer import captions; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": ":".join(sys.path)})
