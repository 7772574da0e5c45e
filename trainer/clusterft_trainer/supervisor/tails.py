"""Reading log files while they grow: bytes in, whole lines out.

Progress bars redraw one line with carriage returns; only what such a line ended as is passed on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_CHUNK = 1 << 18  # bytes a call: a writer that is faster than its reader must not keep it from all else


class Tail:
    """One growing file; `lines` yields what was added since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.behind = False  # whether the last call left something unread
        self._offset = 0
        self._rest = b""

    def lines(self, *, final: bool = False) -> Iterator[str]:
        """Whole new lines, of a bounded piece of the file; with final, also a last one without a newline.

        Bounded, because a writer that is faster than its reader must not keep the reader from everything else.
        """
        chunk = self._read()
        self.behind = len(chunk) == _CHUNK
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        yield from map(_clean, whole)
        if self._rest and (len(self._rest) > _CHUNK or (final and not self.behind)):
            yield _clean(self._rest)
            self._rest = b""

    def skip(self, lines: int) -> None:
        """Begin behind the first lines, or as many of them as there are."""
        try:
            with self.path.open("rb") as file:
                while lines > 0 and (chunk := file.read(_CHUNK)):
                    count = chunk.count(b"\n")
                    if count >= lines:
                        self._offset += _behind(chunk, lines)
                        return
                    lines -= count
                    self._offset += len(chunk)
        except FileNotFoundError:
            return

    def to_end(self) -> None:
        """Begin behind all that is there."""
        try:
            self._offset = self.path.stat().st_size
        except FileNotFoundError:
            return

    def _read(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read(_CHUNK)
        except FileNotFoundError:
            return b""
        self._offset += len(chunk)
        return chunk


def _behind(chunk: bytes, lines: int) -> int:
    """Where the line after so many newlines begins."""
    at = 0
    for _ in range(lines):
        at = chunk.index(b"\n", at) + 1
    return at


def _clean(line: bytes) -> str:
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", errors="backslashreplace")
