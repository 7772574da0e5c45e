"""What a part says: `stream.jsonl` of its directory, and in a container the engine's log as well.

Lines are written in batches, at the end of each turn: a node may say thousands a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from clusterft_trainer import stream
from clusterft_trainer.supervisor.echo import plain

_BATCH = 1 << 20  # characters that wait at most


class Voice:
    """The stream of one part, appended to."""

    def __init__(self, path: Path, echo: TextIO | None = None) -> None:
        self.path = path
        self.lost = ""  # what could not be written, in the system's words
        self._out = path.open("a", encoding="utf-8", errors="backslashreplace")
        self._echo = echo
        self._lines: list[str] = []
        self._plain: list[str] = []
        self._size = 0

    def say(self, line: stream.Line) -> None:
        """Write a line, soon."""
        text = stream.encode(line)
        self._lines.append(text)
        self._size += len(text)
        if self._echo is not None:
            shown = plain(line)
            if shown:
                self._plain.append(shown)
        if self._size > _BATCH:
            self.flush()

    def flush(self) -> None:
        """All that was said is in the file. A full disk must not end training: what is lost is said at the end."""
        lines, self._lines, self._size = self._lines, [], 0
        shown, self._plain = self._plain, []
        try:
            if lines:
                self._out.write("\n".join(lines) + "\n")
                self._out.flush()
            if shown and self._echo is not None:
                self._echo.write("\n".join(shown) + "\n")
                self._echo.flush()
        except OSError as error:
            self.lost = f"lines were lost: {error}"
