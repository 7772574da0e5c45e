"""What the lines of a node's ranks say about the end of an attempt. Pure.

Owns the classes of what ranks and launchers say, and the difference between an own end and the echo of another's.
Knows one node alone; `cause` compares the nodes.
"""

from __future__ import annotations

import re
import signal
from collections import deque

from clusterft_trainer import progress
from clusterft_trainer.supervisor.messages import Sign

ECHO = "peer-lost"  # what the trainer itself calls the end of a rank that has lost another
_ECHO = re.compile(
    r"[Cc]onnection (closed|reset) by|Connection refused|[Bb]roken pipe|Watchdog caught collective|"
    r"remote process exited|Connection was likely closed|store has failed|Application timeout"
)
# torch puts the rank before each line of a traceback, once ranks have met.
_ERROR = re.compile(r"^(?:\[rank\d+\]: )?((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*)")
_KEPT = 12  # last lines of each rank
_SIGNS = 16  # of one attempt; ranks that fail alike say nothing new
_LONGEST = 2_000  # characters of one sign
_CLASSES = (
    ("ecc", re.compile(r"uncorrectable (NVLink |ECC )?error|[Uu]ncorrectable ECC")),
    ("oom", re.compile(r"CUDA out of memory|OutOfMemoryError|DefaultCPUAllocator: can't allocate")),
    ("disk-full", re.compile(r"No space left on device|Disk quota exceeded")),
    ("rendezvous", re.compile(r"server socket has failed to bind|clients joined|DistNetworkError")),
)
_NAMES = {int(number): number.name for number in signal.Signals}


class Signs:
    """What was seen in one attempt on one node."""

    def __init__(self) -> None:
        self.seen: list[Sign] = []
        self.step: int | None = None  # the last that was heard of
        self.done = False
        self._last: dict[int, deque[str]] = {}

    def line(self, rank: int, text: str) -> None:
        """An ordinary line."""
        kept = self._last.get(rank)
        if kept is None:
            kept = self._last[rank] = deque(maxlen=_KEPT)
        kept.append(text)

    def record(self, rank: int, record: progress.Record) -> None:
        """A progress line."""
        if isinstance(record, progress.Step):
            self.step = record.step
        elif isinstance(record, progress.Done):
            self.done = True
        elif isinstance(record, progress.Failed):
            self._add("said", record.failure, rank, record.message)

    def died(self, rank: int, code: int, *, short_of_memory: bool) -> None:
        """A rank's death, as the launcher told it; short_of_memory: the kernel has killed for memory meanwhile."""
        echo = self._echoes(rank)
        if code == -signal.SIGKILL and short_of_memory:
            self._add("signal", "host-oom", rank, f"rank {rank} was killed by the kernel, which was out of memory")
        elif code < 0 and code != -signal.SIGTERM:
            name = _NAMES.get(-code, f"signal {-code}")
            kind = "killed" if code == -signal.SIGKILL else ECHO if echo else "crash"
            self._add("signal", kind, rank, f"rank {rank} was ended by {name}")
        elif code != -signal.SIGTERM and not any(one.rank == rank for one in self.seen):
            self._spoke_last(rank, code, echo)

    def ended(self, code: int, *, started: bool) -> None:
        """The launcher's own end, of which no rank has said why."""
        if code == 0 or self.seen:
            return
        last = next((text for text in reversed(self._last.get(-1, ())) if text.strip()), "")
        what = f"the launcher ended with exit code {code}" if started else "the launcher could not be started"
        self._add("launcher", _class(last, "launcher"), None, f"{what}: {last}" if last else what)

    def _spoke_last(self, rank: int, code: int, echo: bool) -> None:
        lines = [text for text in self._last.get(rank, ()) if text.strip()]
        error = next((found[1] for text in reversed(lines) if (found := _ERROR.match(text))), f"exit code {code}")
        self._add("log", ECHO if echo else _class(error, "exception"), rank, f"rank {rank}: {error}")

    def _echoes(self, rank: int) -> bool:
        """Whether the last error it spoke of is another's end; start-up warnings sound alike and do not count."""
        lines = list(self._last.get(rank, ()))
        errors = [text for text in lines if _ERROR.match(text)]
        return any(_ECHO.search(text) for text in (errors[-1:] or lines[-3:]))

    def _add(self, source: str, failure: str, rank: int | None, text: str) -> None:
        if failure == "bug" and (_ECHO.search(text) or (rank is not None and self._echoes(rank))):
            failure = ECHO
        if len(self.seen) < _SIGNS:
            self.seen.append(Sign(source, failure, rank, text[:_LONGEST]))


def _class(text: str, otherwise: str) -> str:
    return next((name for name, pattern in _CLASSES if pattern.search(text)), otherwise)
