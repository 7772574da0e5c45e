"""What a part says: `stream.jsonl` of its directory, and in a container the engine's log as well.

Lines are written in batches, at the end of each turn: a node may say thousands a second. The engine's log is a
pipe that an engine in trouble does not empty; nobody waits for it, and what it misses is in the stream.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TextIO

from clusterft_trainer import stream
from clusterft_trainer.supervisor.echo import plain

_BATCH = 1 << 20  # characters that wait at most
_BACKLOG = 4 << 20  # characters that wait for the engine at most
_LAST_WORDS = 2.0  # seconds that the engine gets for them


class Voice:
    """The stream of one part, appended to."""

    def __init__(self, path: Path, echo: TextIO | None = None) -> None:
        self.path = path
        self.lost = ""  # what could not be written, in the system's words
        self._out = path.open("a", encoding="utf-8", errors="backslashreplace")
        self._echo = None if echo is None else Echo(echo)
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
        if shown and self._echo is not None:
            self._echo.say("\n".join(shown) + "\n")
        try:
            if lines:
                self._out.write("\n".join(lines) + "\n")
                self._out.flush()
        except OSError as error:
            self.lost = f"lines were lost: {error}"

    def close(self) -> None:
        """After the last word; the engine's log has it too, unless the engine is stuck."""
        self.flush()
        if self._echo is not None:
            self._echo.finish()


class Echo:
    """The engine's log, written by a thread of its own: one that is not read holds up this thread alone."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._texts: list[str] = []
        self._size = self._missed = 0
        self._change = threading.Condition()
        self._idle = True
        threading.Thread(target=self._write, name="echo", daemon=True).start()

    def say(self, text: str) -> None:
        """Write it if there is room; where there is none, how much was left out is said later."""
        with self._change:
            if self._size + len(text) > _BACKLOG:
                self._missed += text.count("\n")
                return
            if self._missed:
                text = f"({self._missed} lines are not here: nobody read this log; stream.jsonl has them)\n{text}"
                self._missed = 0
            self._texts.append(text)
            self._size += len(text)
            self._change.notify_all()

    def finish(self) -> None:
        """Wait a moment for what is still to be written."""
        deadline = time.monotonic() + _LAST_WORDS
        with self._change:
            while (self._texts or not self._idle) and (left := deadline - time.monotonic()) > 0:
                self._change.wait(left)

    def _write(self) -> None:
        while True:
            with self._change:
                self._idle = not self._texts
                self._change.notify_all()
                while not self._texts:
                    self._change.wait()
                texts, self._texts, self._size, self._idle = self._texts, [], 0, False
            try:
                self._out.write("".join(texts))
                self._out.flush()
            except (OSError, ValueError):
                return  # there is no log any more
