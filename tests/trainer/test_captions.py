"""Proves that captions are dropped and rearranged in kohya's order, by the key alone."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterft_trainer import captions
from clusterft_trainer.config import Captions
from clusterft_trainer.config.data import Warmup

TAGS = "1girl, red hair, smile, outdoors, sky, tree"
RECORDED = [
    "best, other, y",
    "best, one, a,A, d, end",
    "best, one, a,A, d, b, end",
    "best, one, a,A, b, C, d, end",
    "best, two, c, a,A, d, end",
]
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


@given(keys)
def test_prefix_and_suffix_stand_around_every_caption(key: int) -> None:
    both = Captions(prefix="photo of", suffix="in colour")
    assert captions.settle("a cat", both, key) == "photo of a cat in colour"
    assert captions.settle("", both, key) == "photo of in colour"
    assert captions.settle("a cat", Captions(suffix="!"), key) == "a cat !"


@given(keys)
def test_a_dropped_caption_has_no_prefix_either(key: int) -> None:
    assert captions.settle(TAGS, Captions(prefix="photo of", dropout=1.0, wildcards=True), key) == ""


def test_each_line_is_drawn_equally_often_and_has_the_prefix() -> None:
    settings = Captions(wildcards=True, prefix="P:", suffix="S")
    source = random.Random(2)
    text = "one\n\n two \r\nthree\n"
    found = Counter(captions.settle(text, settings, source.getrandbits(captions.KEY_BITS)) for _ in range(3000))
    assert set(found) == {"P: one S", "P: two S", "P: three S"}
    assert all(850 < count < 1150 for count in found.values()), found


def test_one_of_each_choice_is_drawn_independently_of_the_others() -> None:
    settings = Captions(wildcards=True)
    source = random.Random(3)
    found = Counter(
        captions.settle("{red|blue} hat, {big|small|odd} dog", settings, source.getrandbits(captions.KEY_BITS))
        for _ in range(6000)
    )
    assert len(found) == 6
    assert all(850 < count < 1150 for count in found.values()), found


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("{{x|y}}", "{x|y}"),
        ("a {{ b", "a { b"),
        ("{only}", "only"),
        ("{}", "{}"),
        ("{unclosed", "{unclosed"),
        ("closed}", "closed}"),
        ("{{{a}}}", "{a}"),
        ("} {", "} {"),
        ("{same|same} \U000f0000", "same \U000f0000"),  # the first of the characters that stand for braces
    ],
)
def test_braces_that_are_no_choice_stay(written: str, meant: str) -> None:
    assert all(captions.settle(written, Captions(wildcards=True), key) == meant for key in (0, 2**40, 2**62))


def test_braces_without_end_cost_no_time() -> None:
    text = "{a" * 30_000
    assert captions.settle(text, Captions(wildcards=True), 1) == text
    assert captions.settle("{b}" + text, Captions(wildcards=True), 1) == "b" + text


@given(keys, st.text(alphabet="{}|ab, \n\U000f0000", max_size=40))
def test_wildcards_end_with_any_text(key: int, caption: str) -> None:
    found = captions.settle(caption, Captions(wildcards=True), key)
    assert len(found) <= len(caption) and found == captions.settle(caption, Captions(wildcards=True), key)


@given(keys)
def test_what_stands_around_the_keep_separator_stays_in_place(key: int) -> None:
    settings = Captions(shuffle=True, keep=5, keep_separator="|||")
    words = captions.settle("a, b ||| c, d, e, f ||| y, z", settings, key).split(", ")
    assert words[:2] == ["a", "b"] and words[-2:] == ["y", "z"]
    assert sorted(words[2:-2]) == ["c", "d", "e", "f"], "keep counted beside the separator"
    words = captions.settle("a|||c, d, e", settings, key).split(", ")
    assert words[0] == "a" and sorted(words[1:]) == ["c", "d", "e"]


@given(keys)
def test_without_the_separator_in_the_caption_the_first_n_are_kept(key: int) -> None:
    settings = Captions(shuffle=True, keep=2, keep_separator="|||")
    assert captions.settle(TAGS, settings, key).startswith("1girl, red hair, ")


@given(keys, st.text(alphabet="ab,| ", max_size=30), st.booleans())
def test_the_keep_separator_never_reaches_the_tokenizers(key: int, caption: str, shuffle: bool) -> None:
    settings = Captions(shuffle=shuffle, keep_separator="||")
    assert "||" not in captions.settle(caption, settings, key)


@given(keys)
def test_all_that_is_fixed_survives_every_dropout(key: int) -> None:
    settings = Captions(tag_dropout=1.0, keep_separator="|||")
    assert captions.settle("a ||| b, c ||| d", settings, key) == "a, d"


def test_a_share_of_the_samples_is_shuffled_and_the_others_stay() -> None:
    found = many(Captions(shuffle=0.25, keep=1), 4000)
    moved = sum(1 for one in found if one != TAGS)
    assert 880 < moved < 1110, moved  # 1 in 120 of the shuffled ones looks as before
    assert many(Captions(shuffle=1.0), 50) == many(Captions(shuffle=True), 50)


@pytest.mark.parametrize(("step", "tags"), [(0, 1), (19, 1), (20, 2), (50, 3), (99, 5), (100, 6), (5000, 6)])
def test_warm_up_shows_more_tags_with_each_step(step: int, tags: int) -> None:
    settings = Captions(warmup=Warmup(steps=100, least=1))
    assert captions.settle(TAGS, settings, 7, step=step) == ", ".join(TAGS.split(", ")[:tags])


@given(st.integers(0, 200), st.integers(1, 9), st.integers(0, 12), st.integers(0, 5))
def test_warm_up_shows_no_fewer_than_the_least_and_leaves_fixed_tags(
    step: int, least: int, count: int, keep: int
) -> None:
    tags = [f"t{i}" for i in range(count)]
    settings = Captions(warmup=Warmup(steps=100, least=least), keep=keep)
    found = captions.settle(", ".join(tags), settings, 7, step=step)
    shown = found.split(", ") if found else []
    assert shown == tags[: len(shown)]
    assert len(shown) >= min(count, keep + least)
    if step >= 100:
        assert len(shown) == count


def test_warm_up_without_a_step_is_an_error_and_no_full_caption() -> None:
    with pytest.raises(ValueError, match="step"):
        captions.settle(TAGS, Captions(warmup=Warmup(steps=100)), 7)


@given(keys)
def test_warm_up_comes_before_the_shuffle(key: int) -> None:
    settings = Captions(warmup=Warmup(steps=100, least=3), shuffle=True)
    words = captions.settle(TAGS, settings, key, step=0).split(", ")
    assert sorted(words) == sorted(TAGS.split(", ")[:3])


@given(keys)
def test_tags_tied_by_the_secondary_separator_move_as_one(key: int) -> None:
    settings = Captions(shuffle=True, secondary_separator=";;;")
    words = captions.settle("sky;;;cloud;;;sun, tree, lake", settings, key)
    assert "sky,cloud,sun" in words
    assert sorted(words.replace("sky,cloud,sun", "X").split(", ")) == ["X", "lake", "tree"]
    assert captions.settle("a;;;b", Captions(secondary_separator=";;;"), key) == "a,b"


def test_the_whole_pipeline_is_the_recorded_one() -> None:
    """As above, with all of it: what is drawn first must stay first."""
    settings = Captions(
        prefix="best,",
        wildcards=True,
        keep_separator="|||",
        shuffle=0.8,
        tag_dropout=0.2,
        secondary_separator=";",
        warmup=Warmup(steps=10, least=2),
    )
    text = "{one|two} ||| a;A, b, {c|C}, d, e ||| end\nother ||| x, y, z"
    found = [captions.settle(text, settings, key, step=8) for key in range(5)]
    assert found == RECORDED


def test_captions_need_no_torch() -> None:
    script = "import sys; from clusterft_trainer import captions; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": ":".join(sys.path)})
