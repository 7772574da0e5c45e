"""Python's tracebacks in a stream of lines: where one begins, what is chained, what names the error. Pure."""

from __future__ import annotations

import re

from clusterft.diagnosis.heard import Block, Quote

_BEGIN = re.compile(r"\s*(?:[+|] )*(?:Original |Exception Group )?Traceback \(most recent call last\):")
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_BARE = re.compile(
    r"(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)\b: |Fatal Python error: |terminate called after throwing|"
    r"(?:\S+: line \d+: +\d+ )?(?:Segmentation fault|Bus error|Aborted|Illegal instruction)(?: |$)"
)
_FRAMES = 12
_ERRORS = 8
_MESSAGE = 12  # lines that may still belong to an error's message


class Tracebacks:
    """Of one voice. `take` gives back the block that a line belongs to, if it does."""

    def __init__(self) -> None:
        self._block: Block | None = None
        self._state = ""
        self._left = 0
        self._first = True
        self._indent = 0

    def take(self, text: str, quote: Quote) -> tuple[Block | None, bool]:
        """The block of this line, and whether it has just begun."""
        stripped = text.lstrip(" +|")
        if _BEGIN.match(text):
            return self._begin(text, stripped)
        block = self._block
        if block is not None and self._state == "frames":
            return self._frame(text, stripped, quote), False
        if block is not None and self._state in ("message", "chained"):
            if text.startswith(_CHAINED):
                self._state, self._left = "chained", 4
                return block, False
            self._left -= 1
            if self._left > 0 and not _BARE.match(text):
                return block, False
            self._block = None
        if _BARE.match(text):
            self._block = Block([quote], bare=True)
            self._state, self._left = "message", 4
            return self._block, True
        return None, False

    def _begin(self, text: str, stripped: str) -> tuple[Block, bool]:
        again = self._block is not None and (
            self._state == "chained"
            or stripped.startswith("Original ")
            or self._indent < len(text) - len(stripped)
        )
        self._indent = len(text) - len(stripped) if not again else self._indent
        if not again:
            self._block, self._first = Block(), True
        self._state = "frames"
        assert self._block is not None
        return self._block, not again

    def _frame(self, text: str, stripped: str, quote: Quote) -> Block:
        block = self._block
        assert block is not None
        if not stripped or text[: self._indent + 1].strip() == "":
            if stripped.startswith('File "') and self._first and not block.errors:
                block.frames = [*block.frames[-_FRAMES + 1 :], Quote(quote.where, stripped)]
            return block
        if len(block.errors) < _ERRORS:
            block.errors.append(Quote(quote.where, stripped))
        self._state, self._left = "message", _MESSAGE
        return block
