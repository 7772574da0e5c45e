"""One attempt on one node, from the launcher's start to the last line of its last rank.

Everything that is seen goes, as `stream` lines, into `stream.jsonl` of the run's directory on the node, and in a
container to stdout as well, so that the engine's log holds it too.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from clusterft_trainer import progress, stream
from clusterft_trainer.assignment import Assignment
from clusterft_trainer.supervisor import processes
from clusterft_trainer.supervisor.mirror import Mirror
from clusterft_trainer.supervisor.tails import Tail

_TICK = 0.05  # seconds between looks at the logs; bounds how late a line or a death is seen
_LAST_WORDS = 5.0  # seconds for killed processes to vanish
_LONGEST = 16_384  # characters of one log line that are passed on
_REST = 10.0  # seconds for what is still in the logs when the ranks are gone
_MIRROR_WAIT = 10.0  # seconds that the shared dir gets for the end of the logs
# How torch's elastic agent reports a dead worker (torch/distributed/elastic/multiprocessing/api.py).
_DEATH = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) \(pid: (\d+)\)")


class Watch:
    """Runs an assignment to its end; `run` returns the exit code of the supervisor."""

    def __init__(self, assignment: Assignment, directory: Path, *, echo: bool = False) -> None:
        self._assignment = assignment
        self._logs = Path(assignment.log_dir)
        self._echo = echo
        said = directory / "stream.jsonl"
        self._out = said.open("a", encoding="utf-8", buffering=1)
        self._launcher_log = self._logs / "launcher.log"
        self._tails: dict[int, Tail] = {stream.LAUNCHER: Tail(self._launcher_log)}
        self._stops = 0  # how often we were asked to stop
        self._lost = ""  # what of the output could not be passed on
        target = Path(assignment.mirror_dir)
        self._mirror = Mirror(self._logs, target, (said, Path(assignment.events_file)))

    def run(self) -> int:
        """Start the launcher, follow it, end what is left of it; 0, 5 (failed) or 130 (stopped)."""
        signal.signal(signal.SIGTERM, self._asked)
        signal.signal(signal.SIGINT, self._asked)
        processes.become_reaper()
        self._logs.mkdir(parents=True, exist_ok=True)
        self._say(stream.Started(os.getpid(), time.time()))
        try:
            code = self._attempt()
        finally:  # also when something here broke: no rank may outlive the one who watches it
            processes.end_descendants(time.monotonic() + _LAST_WORDS)
        self._pass_on_the_rest()
        problem = self._mirror.flush(_MIRROR_WAIT)
        end: stream.End = "stopped" if self._stops else "ok" if code == 0 else "failed"
        self._say(stream.Ended(end, code, time.time(), self._lost or problem))
        if not problem:
            self._mirror.flush(_LAST_WORDS)  # so that the mirrored events end with the end
        return {"ok": 0, "stopped": 130, "failed": 5}[end]

    def _attempt(self) -> int:
        environment = {**self._assignment.env, **self._secrets(), "CLUSTERFT_LOG_DIR": str(self._logs)}
        argv, work_dir = self._assignment.argv, self._assignment.work_dir
        try:
            launcher = processes.start(argv, environment, work_dir, self._launcher_log)
        except OSError as error:
            self._say(stream.Log(stream.LAUNCHER, f"the launcher cannot be started: {error}", time.time()))
            self._mirror.start()
            return 127
        self._mirror.start()  # after the fork, which a second thread would make unsafe
        return self._follow(launcher)

    def _follow(self, launcher: processes.Launcher) -> int:
        """Pass lines on until the launcher ends; asked to stop, let the ranks save, then insist."""
        heeded, deadline = 0, float("inf")
        while (code := launcher.poll()) is None:
            if self._stops > heeded:
                heeded = self._stops
                deadline = time.monotonic() + self._be_polite(launcher, heeded)
            if time.monotonic() > deadline:
                processes.signal_ranks(self._logs, signal.SIGKILL)
                launcher.kill()
                return launcher.wait()
            if not self._pass_on():
                time.sleep(_TICK)
        return code

    def _be_polite(self, launcher: processes.Launcher, times: int) -> float:
        """Ask the ranks to save and end; the seconds they get for it."""
        if times > 1:
            return 0.0
        # The ranks are told directly: the launcher would kill them 30 s after being told itself.
        if not processes.signal_ranks(self._logs, signal.SIGTERM):
            launcher.terminate()  # no rank has started yet
        return self._assignment.grace_seconds

    def _asked(self, _signal: int, _frame: FrameType | None) -> None:
        self._stops += 1

    def _pass_on(self, *, final: bool = False) -> bool:
        """Read a piece of every log and say its lines; whether there is more to read."""
        for log in self._logs.glob("rank*.log"):
            number = log.stem.removeprefix("rank")
            if number.isdigit():
                self._tails.setdefault(int(number), Tail(log))
        for rank in sorted(self._tails, reverse=True):  # ranks first: their last words precede the launcher's
            for text in self._tails[rank].lines(final=final):
                for line in self._lines(rank, text):
                    self._say(line)
        return any(tail.behind for tail in self._tails.values())

    def _pass_on_the_rest(self) -> None:
        """All that is left in the logs, but for a flood that would take minutes: the files have it."""
        deadline = time.monotonic() + _REST
        while self._pass_on(final=True):
            if time.monotonic() > deadline:
                self._lost = f"more lines than could be passed on: the rest is in {self._logs}"
                return

    def _lines(self, rank: int, text: str) -> Iterator[stream.Line]:
        record = progress.decode(text)
        if record is not None:
            yield stream.Progress(rank, record)
            return
        shown = text if len(text) <= _LONGEST else text[:_LONGEST] + " [cut; the log file has all of it]"
        yield stream.Log(rank, shown, time.time())
        death = _DEATH.search(text) if rank == stream.LAUNCHER else None
        if death:
            code, local_rank, pid = (int(group) for group in death.groups())
            yield stream.RankDied(self._global_rank(local_rank), code, pid, time.time())

    def _global_rank(self, local_rank: int) -> int:
        # Nodes have equal slots (the plan refuses others), so ranks count up by node.
        return self._assignment.machine_rank * self._assignment.slots + local_rank

    def _say(self, line: stream.Line) -> None:
        """Write one line. A full disk must not end training: what is lost is said at the end."""
        text = stream.encode(line) + "\n"
        try:
            self._out.write(text)
            if self._echo:
                sys.stdout.write(text)
                sys.stdout.flush()
        except OSError as error:
            self._lost = f"lines were lost: {error}"

    def _secrets(self) -> dict[str, str]:
        """Read once, then removed: nothing that looks at the node later finds them."""
        if self._assignment.secrets_file is None:
            return {}
        path = Path(self._assignment.secrets_file)
        secrets: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        return secrets
