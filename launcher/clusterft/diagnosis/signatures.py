"""Signatures: texts by which a cause is known, each under its id, with what it means and what mends it. Pure.

The numbers are rows of the failure catalogue; 0 is a text that was met later. A text is worth what its weight
says: whoever lost a peer says so loudly, and is never the first cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

# specific: names a cause by itself. contact: two ranks did not come together, which a peer's own end explains as
# well. secondary: follows from something else. kernel: said by a node's kernel. benign: says nothing.
Weight = Literal["specific", "contact", "secondary", "kernel", "benign"]
MEMORY = "lower train.data.workers, leave out offload, or use nodes with more memory"  # a remedy of many


@dataclass(frozen=True, slots=True)
class Signature:
    """One text. Names in braces in cause and fix are named groups of the pattern, and `node`."""

    number: int
    id: str
    pattern: re.Pattern[str]
    cause: str
    fix: tuple[str, ...] = ()
    weight: Weight = "specific"
    source: str = ""  # where the text is known from


class Match(NamedTuple):
    """A line in which one was found, with the words of its named groups."""

    signature: Signature
    words: Mapping[str, str]


def known(
    number: int, identity: str, pattern: str, cause: str, *fix: str, weight: Weight = "specific"
) -> Signature:
    """One entry of the tables in `known`."""
    return Signature(number, identity, re.compile(pattern), cause, fix, weight)


def find(text: str, signatures: tuple[Signature, ...]) -> Iterator[Match]:
    """All that a line matches, in the order of the tables; a benign text silences the line."""
    found = []
    for one in signatures:
        hit = one.pattern.search(text)
        if hit is None:
            continue
        if one.weight == "benign":
            return
        found.append(Match(one, {name: word or "" for name, word in hit.groupdict().items()}))
    yield from found


def telling(text: str, signatures: tuple[Signature, ...]) -> Iterator[Match]:
    """Of those that name a cause by themselves only the first: the tables have the more specific ones before."""
    named = False
    for match in find(text, signatures):
        if match.signature.weight in ("specific", "kernel"):
            if named:
                continue
            named = True
        yield match


def told(text: str, words: Mapping[str, str]) -> str:
    """A cause or a fix with its words in place; other braces stay."""
    return re.sub(r"\{(\w+)\}", lambda hit: words.get(hit[1]) or hit[0], text)
