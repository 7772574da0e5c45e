"""`python -m clusterft_trainer.supervisor.starter SLOTS FIRST_RANK WORLD MODULE ARGS`: ranks that need nobody.

Stands where torch's launcher stands in training: one process for each slot of this node, its number in RANK,
LOCAL_RANK and WORLD_SIZE. They meet nobody, since what they do is claimed in the shared dir: one that dies by a
signal starts again, and one that fails leaves its work to the others. Ends with 0 when a rank did, since that has
seen that all is done; at once when a rank refuses settings or data, since all would.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from clusterft_trainer import errors, progress
from clusterft_trainer.supervisor import processes

_TICK = 0.05  # seconds between two looks at the ranks
_AGAIN = 3  # times that a rank which died by a signal starts again
_PAUSE = 2.0  # seconds before that
_TOGETHER = 60.0  # seconds for the others, once one has seen that all is done
_INSIST = 10.0  # seconds from SIGTERM to SIGKILL
_ASKED = -signal.SIGTERM  # by whoever ends the attempt


@dataclass(slots=True)
class _Rank:
    """One slot."""

    local: int
    number: int
    process: processes.Launcher | None = None
    deaths: int = 0
    again: float | None = None  # when it starts again
    code: int | None = None  # once it is over for good


class Starter:
    """The ranks of one node; `run` returns the exit code."""

    def __init__(self, slots: int, first: int, world: int, command: tuple[str, ...]) -> None:
        self._ranks = [_Rank(local, first + local) for local in range(slots)]
        self._world, self._command = world, command
        self._log = Path(os.environ["CLUSTERFT_LOG_DIR"]) / "launcher.log"
        self._end: float | None = None  # when SIGKILL follows SIGTERM
        self._well: float | None = None  # since when one is through

    def run(self) -> int:
        """Until every rank is over."""
        signal.signal(signal.SIGTERM, self._told)
        for rank in self._ranks:
            self._start(rank)
        while any(rank.code is None for rank in self._ranks):
            now = time.monotonic()
            for rank in self._ranks:
                self._look(rank, now)
            self._insist(now)
            time.sleep(_TICK)
        codes = [rank.code for rank in self._ranks if rank.code is not None]
        if errors.USAGE in codes or 0 not in codes:
            return errors.USAGE if errors.USAGE in codes else max(abs(code) for code in codes)
        return 0

    def _start(self, rank: _Rank) -> None:
        numbers = {"RANK": rank.number, "LOCAL_RANK": rank.local, "WORLD_SIZE": self._world}
        environment = {**os.environ, **{name: str(number) for name, number in numbers.items()}}
        rank.again = None
        rank.process = processes.start((sys.executable, "-m", *self._command), environment, os.getcwd(), self._log)

    def _look(self, rank: _Rank, now: float) -> None:
        if rank.again is not None and (now >= rank.again or self._end is not None):
            if self._end is None and self._well is None:
                self._start(rank)
            else:
                rank.again, rank.code = None, _ASKED
            return
        code = rank.process.poll() if rank.process and rank.code is None and rank.again is None else None
        if code is None or rank.process is None:
            return
        if code == 0:
            rank.code, self._well = 0, self._well or now
            return
        if self._end is not None or code == _ASKED:
            rank.code = code
            return
        self._failed(rank, rank.process.pid, code, now)

    def _failed(self, rank: _Rank, pid: int, code: int, now: float) -> None:
        # In torch's words: the supervisor knows them.
        sys.stdout.write(f"failed (exitcode: {code}) local_rank: {rank.local} (pid: {pid})\n")
        rank.deaths += 1
        end = f"rank {rank.number} {_words(code)}"
        if code < 0 and rank.deaths <= _AGAIN:
            rank.again = now + _PAUSE
            self._notice(f"{end}, and starts again ({rank.deaths} of {_AGAIN})")
            return
        rank.code = code
        if code == errors.USAGE:
            self._ask(now)
        elif any(other.code is None for other in self._ranks):
            self._notice(f"{end}; the others go on without it")

    def _notice(self, text: str) -> None:
        sys.stdout.write(progress.encode(progress.Notice(text, time.time())) + "\n")
        sys.stdout.flush()

    def _told(self, _number: int, _frame: FrameType | None) -> None:
        """The supervisor, or the kernel since the supervisor is no more, wants the end."""
        self._ask(time.monotonic())

    def _ask(self, now: float) -> None:
        self._end = self._end or now + _INSIST
        self._signal(signal.SIGTERM)

    def _insist(self, now: float) -> None:
        if self._end is not None and now > self._end:
            self._signal(signal.SIGKILL)
        elif self._end is None and self._well is not None and now - self._well > _TOGETHER:
            self._ask(now)

    def _signal(self, number: int) -> None:
        for rank in self._ranks:
            if rank.process is not None and rank.process.poll() is None:
                rank.process.send_signal(number)


def _words(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return "was ended by " + next((one.name for one in signal.Signals if one == -code), f"signal {-code}")


def main() -> int:
    """The supervisor is the only caller, so the usage line is all the help there is."""
    match sys.argv[1:]:
        case [slots, first, world, module, *arguments]:
            return Starter(int(slots), int(first), int(world), (module, *arguments)).run()
    sys.stderr.write("usage: python -m clusterft_trainer.supervisor.starter SLOTS FIRST_RANK WORLD MODULE ARGS\n")
    return errors.USAGE


if __name__ == "__main__":
    sys.exit(main())
