"""Copying growing files into the shared dir without ever waiting for it.

The share may hang for minutes (a server reboots); training output must not. So one thread copies, and the
supervisor only ever gives it a bounded time to finish. Owns where in the run's directory a node's files go, and
that a part that is begun anew (a resumed run) adds to what is there instead of writing over it.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from clusterft_trainer.assignment import Assignment

_CHUNK = 1 << 20
_INTERVAL = 1.0  # seconds between copies; what a reader of the share lags behind


class Mirror:
    """Appends what is new in a part's logs, stacks and stream to their copies in the shared dir."""

    def __init__(self, told: Assignment, directory: Path) -> None:
        self._node, self._target = told.node, Path(told.run_dir)
        self._logs, self._stream = Path(told.log_dir), directory / "stream.jsonl"
        self._note = directory / "mirror.json"
        self._begins: dict[str, int] = {}  # target -> its size before this part's first byte
        self._offsets: dict[Path, int] = {}
        self._papers: dict[str, str] = {}  # whole files that are still to be placed
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._problem = ""  # the last failure, in the system's words
        # A daemon: the interpreter must be able to end while it waits for a share that never answers.
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def start(self) -> None:
        """Begin copying."""
        self._thread.start()

    def place(self, name: str, text: str) -> None:
        """Have a whole file written into the run's directory, under its name only when it is complete."""
        self._papers[name] = text

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
            if asked:  # else one that has just been set would be lost
                self._wake.clear()
            try:
                self._copy_all()
                self._problem = ""
            except (OSError, ValueError) as error:
                self._problem = str(error)  # a full or vanished share: tried again at the next tick
            if asked:
                self._idle.set()

    def _copy_all(self) -> None:
        for source, target in self._pairs():
            self._copy(source, target)
        for name, text in list(self._papers.items()):
            _place(self._target / name, text)
            del self._papers[name]

    def _pairs(self) -> Iterator[tuple[Path, Path]]:
        yield self._stream, self._target / "events" / f"{self._node}.jsonl"
        for folder in sorted(self._logs.glob("attempt-*")):
            for source in sorted(folder.glob("*.log")):
                yield source, self._target / "logs" / folder.name / self._node / source.name
            for source in sorted(folder.glob("*.stacks")):
                yield source, self._target / "stacks" / folder.name / self._node / f"{source.stem}.txt"

    def _copy(self, source: Path, target: Path) -> None:
        size = source.stat().st_size if source.exists() else 0
        if size <= self._offsets.get(source, -1) or (size == 0 and source.suffix == ".stacks"):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        begin = self._begin(target)
        if source not in self._offsets:  # maybe copied in part by the incarnation before
            self._offsets[source] = min(max(0, _size(target) - begin), size)
        offset = self._offsets[source]
        with source.open("rb") as new, target.open("ab") as old:
            # A copy that failed half-way left bytes behind: cut back to what was counted.
            old.truncate(begin + offset)
            new.seek(offset)
            while chunk := new.read(_CHUNK):
                old.write(chunk)
                offset += len(chunk)
        self._offsets[source] = offset

    def _begin(self, target: Path) -> int:
        if not self._begins and self._note.exists():
            self._begins = json.loads(self._note.read_text(encoding="utf-8"))
        key = str(target)
        if key not in self._begins:
            self._begins[key] = _size(target)
            draft = self._note.with_suffix(".new")
            draft.write_text(json.dumps(self._begins), encoding="utf-8")
            draft.replace(self._note)
        return self._begins[key]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _place(target: Path, text: str) -> None:
    draft = target.with_name(f".{target.name}.{os.getpid()}.new")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(target)
