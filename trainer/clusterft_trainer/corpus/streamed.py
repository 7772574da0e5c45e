"""JSON files of any size, an entry at a time: one object with many keys, or one object a line.

Owns a buffer that slides over the file; memory is that of one entry and a few megabytes. Refuses a file that is
not JSON from its first to its last byte, and an entry larger than any picture's metadata can be.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from clusterft_trainer.errors import DataError

LARGEST = 1 << 26  # letters of one entry
_PIECE = 1 << 22  # bytes
_CUT = 16  # letters before the buffer's end where an error may only mean that more follows
_gap = re.compile(r"[ \t\n\r]*").match
_scan: Any = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


class _Short(Exception):
    """The buffer ends within an entry."""


def members(file: BinaryIO, name: str) -> Iterator[tuple[str, Any]]:
    """The keys and values of a file that is one JSON object."""
    decode = codecs.getincrementaldecoder("utf-8-sig")()
    text, at, ended, number, first = "", 0, False, 0, True
    while True:
        try:
            if first:
                at = _begun(text, at)
                first = False
                if text[at : at + 1] == "}":
                    return
            key, value, at, last = _member(text, at)
        except _Short:
            if ended:
                raise _bad(name, number, "it ends too early") from None
            text, at = text[at:], 0
            if len(text) > LARGEST:
                raise _bad(name, number, f"an entry is longer than {LARGEST} letters") from None
            piece = file.read(_PIECE)
            ended = not piece
            try:
                text += decode.decode(piece, ended)
            except UnicodeDecodeError:
                raise _bad(name, number, "it is not UTF-8") from None
            continue
        except (ValueError, RecursionError) as error:
            raise _bad(name, number, str(error)) from None
        number += 1
        yield key, value
        if last:
            return


def _begun(text: str, at: int) -> int:
    """Behind the opening brace."""
    at = _gap(text, at).end()  # type: ignore[union-attr]
    if at + 1 >= len(text):
        raise _Short
    if text[at] != "{":
        raise ValueError("it is not one object with an entry for each picture")
    at = _gap(text, at + 1).end()  # type: ignore[union-attr]
    if at == len(text):
        raise _Short
    return at


def _member(text: str, at: int) -> tuple[str, Any, int, bool]:
    """One key and its value, what follows, and whether it is the last."""
    try:
        key, at = _scan(text, _to(text, at))
        if not isinstance(key, str):
            raise ValueError("a key is not text")
        at = _to(text, at)
        if text[at] != ":":
            raise ValueError("a colon is missing behind a key")
        value, at = _scan(text, _to(text, at + 1))
        at = _to(text, at)
        if text[at] == "}":
            return key, value, at + 1, True
        if text[at] != ",":
            if at > len(text) - _CUT:  # a number that goes on: 1.5e+3 cut behind the 1
                raise _Short
            raise ValueError("a comma is missing between two entries")
        return key, value, _to(text, at + 1), False
    except (StopIteration, IndexError):
        raise _Short from None
    except json.JSONDecodeError as error:
        # what is cut off looks like what is wrong; a string that does not end is told by where it begins
        if error.pos < len(text) - _CUT and not error.msg.startswith("Unterminated string"):
            raise
        raise _Short from None


def _to(text: str, at: int) -> int:
    """The next letter that is no gap."""
    at = _gap(text, at).end()  # type: ignore[union-attr]
    if at == len(text):
        raise _Short
    return at


def lines(file: BinaryIO, name: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Number and object of each line; None where a line is none."""
    number = 0
    while line := file.readline(LARGEST + 1):
        number += 1
        if len(line) > LARGEST:
            raise _bad(name, number, f"a line is longer than {LARGEST} bytes")
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        yield number, value if isinstance(value, dict) else None


def _bad(name: str, number: int, why: str) -> DataError:
    return DataError(
        f"{name} is not readable JSON after {number} entries: {why}.",
        "Write it again, or mend it there; nothing was made of it.",
    )
