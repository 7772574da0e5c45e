"""Copying growing files into the shared dir without ever waiting for it.

The share may hang for minutes (a server reboots); training output must not. So one thread copies, and the
supervisor only ever gives it a bounded time to finish.
"""

from __future__ import annotations

import threading
from pathlib import Path

_CHUNK = 1 << 20
_INTERVAL = 1.0  # seconds between copies; what a reader of the share lags behind


class Mirror:
    """Appends what is new in the source files to files of the same name in another directory."""

    def __init__(self, sources: Path, target: Path, stream: tuple[Path, Path]) -> None:
        self._sources, self._target, self._stream = sources, target, stream
        self._offsets: dict[Path, int] = {}
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._problem = ""  # the last failure, in the system's words
        # A daemon: the interpreter must be able to end while it waits for a share that never answers.
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def start(self) -> None:
        """Begin copying."""
        self._thread.start()

    def flush(self, seconds: float) -> str:
        """Copy what is there now; what went wrong in the share's own words, empty if nothing did."""
        self._idle.clear()
        self._wake.set()
        if not self._idle.wait(seconds):
            return f"{self._target} took no writes for {seconds:.0f} s"
        return self._problem

    def _work(self) -> None:
        while True:
            asked = self._wake.wait(_INTERVAL)
            self._wake.clear()
            try:
                self._copy_all()
                self._problem = ""
            except OSError as error:
                self._problem = str(error)  # a full or vanished share: tried again at the next tick
            if asked:
                self._idle.set()

    def _copy_all(self) -> None:
        self._target.mkdir(parents=True, exist_ok=True)
        for source in sorted(self._sources.glob("*.log")):
            self._copy(source, self._target / source.name)
        self._stream[1].parent.mkdir(parents=True, exist_ok=True)
        self._copy(*self._stream)

    def _copy(self, source: Path, target: Path) -> None:
        offset = self._offsets.get(source, 0)
        if not source.exists() or (source.stat().st_size <= offset and source in self._offsets):
            return
        with source.open("rb") as new, target.open("ab") as old:
            # A copy that failed half-way left bytes behind: cut back to what was counted.
            old.truncate(offset)
            new.seek(offset)
            while chunk := new.read(_CHUNK):
                old.write(chunk)
                offset += len(chunk)
        self._offsets[source] = offset
