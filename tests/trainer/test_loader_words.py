"""Proves that ids put together from a dictionary of words are those of the whole caption, whatever is in it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as how
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from modelfiles import needs_vocabulary  # noqa: E402

from clusterft_trainer.model import text, tokenizers  # noqa: E402
from clusterft_trainer.words import Marks, Words  # noqa: E402

pytestmark = [pytest.mark.trainer, needs_vocabulary]

# every character that some standard calls white, and those that join or turn
WHITE = (
    " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008"
    "\u2009\u200a\u200b\u200c\u200d\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
)
MARKS = "\u0301\u0323\u0338\u20dd\ufe0f\U0001f3fd\u0345\u1161\u11a8\u3099"
WORDS = st.sampled_from(
    [
        "a", "1girl", "don't", "DON'T", "'s", "'re", "'", "I'LL", "<|endoftext|>", "<|startoftext|>", "<|", "|>",
        "!", "!!", "...", "ΑΣ", "Σ", "ΣΑ", "İ", "ß", "ﬁ", "각", "가", "か゛", "日本語", "😀",
        "👩‍👩‍👧", "x_y", "(a:1.2)", "\\(b\\)",
        "\x00", "\x1b[0m", "é", "e\u0301", "\u1100", "</w>", "49407", "a" * 70, "\u2126", "\u0345",
    ]
)  # fmt: skip
PART = st.one_of(
    WORDS,
    st.text(WHITE, max_size=3),
    st.text(MARKS, max_size=2),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)
CAPTION = st.lists(PART, max_size=60).map("".join)


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return tokenizers.load(Path("/nonexistent"), None, (49408, 49408))


def words(pair: tuple[Any, Any], longest: int = 225, **bound: int) -> Words:
    """As the encoders make it."""
    return text.words(pair, longest, **bound)[0]


@pytest.fixture(scope="module")
def known(pair: tuple[Any, Any]) -> Words:
    return words(pair)


def expected(pair: tuple[Any, Any], captions: list[str], longest: int) -> Any:
    return torch.stack([text.token_ids(t, captions, longest) for t in pair])


@how(max_examples=400, deadline=None)
@given(st.lists(CAPTION, min_size=1, max_size=3))
@example(["a'" + c + "s b" + c + "c\u0301 Σ" + c + "Σ" for c in WHITE])
@example(["word " * 74, "word " * 75, "word " * 76, "word " * 224 + "!", "word " * 225, "word " * 226, "", "  "])
def test_ids_from_words_are_those_of_the_whole_caption(
    pair: tuple[Any, Any], known: Words, captions: list[str]
) -> None:
    found = torch.from_numpy(known.ids(captions))
    assert torch.equal(found, expected(pair, captions, 225))


@pytest.mark.parametrize("longest", [75, 150])
def test_shorter_captions_have_fewer_pieces(pair: tuple[Any, Any], longest: int) -> None:
    captions = ["one two, " * 40, "!", "x"]
    found = torch.from_numpy(words(pair, longest).ids(captions))
    assert found.shape == (2, 3, longest // 75, 77) and found.dtype == torch.int64
    assert torch.equal(found, expected(pair, captions, longest))


def test_the_dictionary_is_bounded_and_long_words_are_not_kept(pair: tuple[Any, Any]) -> None:
    small = words(pair, most=10)
    for number in range(40):
        captions = [f"word{number} other{number // 3} common", "y" * 500]
        assert torch.equal(torch.from_numpy(small.ids(captions)), expected(pair, captions, 225))
        assert len(small) <= 10
    flood = [" ".join(f"w{n}" for n in range(100))]
    assert torch.equal(torch.from_numpy(small.ids(flood)), expected(pair, flood, 225))
    assert len(small) <= 10


def test_each_word_goes_through_the_tokenizer_once() -> None:
    asked: list[str] = []

    def encode(texts: list[str]) -> list[list[int]]:
        asked.extend(texts)
        return [[len(t)] for t in texts]

    made = Words(encode, Marks(1, 2, (0,)), 75)
    first = made.ids(["aa b aa", "b ccc"])
    assert first[0, :, 0, :5].tolist() == [[1, 2, 1, 2, 2], [1, 1, 3, 2, 0]]
    made.ids(["ccc  b aa"])
    assert sorted(asked) == ["", "aa", "b", "ccc"]


def test_several_threads_may_ask_at_once(pair: tuple[Any, Any]) -> None:
    small = words(pair, most=50)
    captions = [[f"tag{n * k} of {k}" for k in range(30)] for n in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda c: [small.ids(c) for _ in range(10)], captions))
    for several, given_ in zip(found, captions, strict=True):
        assert all(torch.equal(torch.from_numpy(one), expected(pair, given_, 225)) for one in several)


def test_two_vocabularies_have_a_dictionary_each(pair: tuple[Any, Any]) -> None:
    assert len(text.words(pair, 75)) == 1
    tiny_vocabulary = {"a": 0, "a</w>": 1, "!": 2, "<|startoftext|>": 3, "<|endoftext|>": 4}
    other = tokenizers._made(tiny_vocabulary, [], "!")
    mixed = (pair[0], other)
    both = text.all_ids(text.words(mixed, 75), ["a a"])
    for ids, tokenizer in zip(both, mixed, strict=True):
        assert torch.equal(ids, text.token_ids(tokenizer, ["a a"], 75))
