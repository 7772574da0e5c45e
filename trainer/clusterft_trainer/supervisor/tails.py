"""Reading log files while they grow: bytes in, whole lines out.

Progress bars redraw one line with carriage returns; only what such a line ended as is passed on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_CHUNK = 1 << 20
_LONGEST = 16_384  # bytes of one line that are passed on; the file keeps all of it


class Tail:
    """One growing file; `lines` yields what was added since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._rest = b""

    def lines(self, *, final: bool = False) -> Iterator[str]:
        """Whole new lines; with final, also a last one without a newline."""
        while chunk := self._read():
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            yield from map(_clean, whole)
            if len(self._rest) > _CHUNK:
                yield _clean(self._rest)
                self._rest = b""
        if final and self._rest:
            yield _clean(self._rest)
            self._rest = b""

    def _read(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read(_CHUNK)
        except FileNotFoundError:
            return b""
        self._offset += len(chunk)
        return chunk


def _clean(line: bytes) -> str:
    shown = line.rstrip(b"\r").rpartition(b"\r")[2]
    if len(shown) > _LONGEST:
        shown = shown[:_LONGEST] + b" [cut]"
    return shown.decode("utf-8", errors="backslashreplace")
