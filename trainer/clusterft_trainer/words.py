"""Token ids of captions, ready for the step, from a dictionary of words that were seen before.

CLIP's tokenizer cuts a text at whitespace before anything else, and what it makes of a word depends on the word
alone: the ids of a caption are those of its words, one after the other. So each word goes through the tokenizer
once. Only spaces count here: other whitespace stays within a "word", which the tokenizer then cuts by its own
rules, and the ids are the same.

Owns the dictionary, its bound, and how ids are laid out in pieces of 75. Knows no torch and no tokenizer's class:
`encode` gives ids for texts. Refuses nothing: any text has ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

PIECE = 75  # ids of a caption that fit between the start and the end token
_MOST_WORDS = 1 << 16  # some 10 MB
_LONGEST_WORD = 64  # characters: what is longer is hardly a word, and will not come again

Encode = Callable[[list[str]], Sequence[Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Marks:
    """What surrounds the ids of a caption: start and end token, and each encoder's own padding."""

    start: int
    end: int
    padding: tuple[int, ...]


class Words:
    """Token ids for encoders that share a vocabulary; safe to use from several threads."""

    def __init__(self, encode: Encode, marks: Marks, longest: int, most: int = _MOST_WORDS) -> None:
        self._encode = encode
        self._marks = marks
        self.pieces = longest // PIECE
        self._most = most
        self._known: dict[str, bytes] = {}
        self._lock = Lock()  # a tokenizer may be asked by one thread at a time

    def __len__(self) -> int:
        return len(self._known)

    def ids(self, captions: Sequence[str]) -> np.ndarray:
        """(encoders, B, pieces, 77) int64: start, up to 75 ids, end, and the encoder's own padding."""
        room = self.pieces * PIECE
        flat: np.ndarray = np.zeros((len(captions), room), np.int64)
        counts: np.ndarray = np.zeros((len(captions), 1), np.int64)
        for number, caption in enumerate(captions):
            row = np.frombuffer(self._row(caption), np.int32)[:room]
            flat[number, : len(row)] = row
            counts[number] = len(row)
        shape = (len(captions), self.pieces, PIECE)
        inside = np.clip(counts - np.arange(0, room, PIECE), 0, PIECE)[..., None]
        places = np.arange(PIECE + 1)
        ends, behind = places == inside, places > inside
        out: np.ndarray = np.empty((len(self._marks.padding), len(captions), self.pieces, PIECE + 2), np.int64)
        out[..., 0] = self._marks.start
        out[..., 1:-1] = flat.reshape(shape)
        for number, padding in enumerate(self._marks.padding):
            body = out[number, ..., 1:]
            body[ends] = self._marks.end
            body[behind] = padding
        return out

    def _row(self, caption: str) -> bytes:
        """The ids of a caption as int32, of any number."""
        words = caption.split(" ")
        try:
            return b"".join(map(self._known.__getitem__, words))
        except KeyError:
            return self._learn(words)

    def _learn(self, words: list[str]) -> bytes:
        with self._lock:
            here = {word: self._known[word] for word in words if word in self._known}
            new = [word for word in dict.fromkeys(words) if word not in here]
            for word, ids in zip(new, self._encode(new) if new else (), strict=True):
                here[word] = np.array(ids, np.int32).tobytes()
            if len(self._known) + len(new) > self._most:
                # Begun anew: what is common is soon back, and what was rare is gone.
                self._known = {}
            kept = [word for word in new if len(word) <= _LONGEST_WORD]
            self._known.update((word, here[word]) for word in kept[: self._most])
        return b"".join(here[word] for word in words)
