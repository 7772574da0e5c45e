"""One attempt on one node, from the launcher's start to the last line of its last rank.

Owns the attempt's files, its environment, and what is done to its processes. Decides nothing about other attempts.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from clusterft_trainer import progress, stream
from clusterft_trainer.assignment import Assignment, Term
from clusterft_trainer.rank import start_time
from clusterft_trainer.stream import LAUNCHER, End
from clusterft_trainer.supervisor import memory, processes
from clusterft_trainer.supervisor.kinds import Kind
from clusterft_trainer.supervisor.messages import Report
from clusterft_trainer.supervisor.signs import Signs
from clusterft_trainer.supervisor.standby import Standby
from clusterft_trainer.supervisor.tails import Tail

_LAST_WORDS = 5.0  # seconds for killed processes to vanish
_LONGEST = 16_384  # characters of one log line that are passed on
_REST = 10.0  # seconds for what is still in the logs when the ranks are gone
_INSIST = 2.0  # seconds from SIGTERM to SIGKILL for ranks whose gang has failed: they cannot save without it
_SHUTDOWN = 45.0  # seconds that ranks get to save while an engine shuts down: it kills after 60
_LOOK = 0.25  # seconds between looks for new log files, and for ranks that are gone
_THERE = 'cd -- "$1" && shift && exec "$@"'
# How torch's elastic agent reports a dead worker (torch/distributed/elastic/multiprocessing/api.py).
_DEATH = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) \(pid: (\d+)\)")
# How DeepSpeed's launcher does (deepspeed/launcher/launch.py): it does not say which.
_NAMELESS = re.compile(r"exits with return code = (-?\d+)")

Say = Callable[[stream.Line], None]


class Attempt:
    """Runs one attempt; `report` says how it ended, once it has."""

    def __init__(
        self, told: Assignment, term: Term, secrets: Mapping[str, str], say: Say, standby: Standby | None = None
    ) -> None:
        self.term = term
        self.standby = standby  # a launcher that has been imported: for this attempt, then one for the next
        self.report: Report | None = None
        self._steps = Kind(told.kind).tells_steps
        self.stepping = not self._steps  # whether what comes next is a step; of what has none, a line
        self.moved = False  # whether there was a step, or such a line, since somebody last looked
        self.signs = Signs()
        self.logs = Path(told.log_dir) / f"attempt-{term.attempt}"
        self._told, self._secrets, self._say = told, secrets, say
        self._launcher: processes.Launcher | None = None
        self._code: int | None = None
        self._tails: dict[int, Tail] = {LAUNCHER: Tail(self.logs / "launcher.log")}
        self._force: list[tuple[float, int]] = []  # signals that are due, with their times
        self._asked = 0
        self._why = ""
        self._heeded = True  # whether what ranks say still tells why they end
        self._looked = 0.0
        self._gone: list[int] = []  # ranks in the order in which they were seen to be gone
        self._oom_kills = memory.kills()

    def start(self, base: Mapping[str, str]) -> None:
        """Write the attempt's files and start the launcher; base is what an image sets."""
        term, here = self.term, Path(self.term.here)
        self._say(
            stream.Attempt(
                term.attempt,
                term.machines,
                term.machine_rank,
                term.first_rank,
                term.world,
                term.address,
                term.port,
                time.time(),
            )  # fmt: skip
        )
        environment = {
            **base,
            **{name: term.fill(value) for name, value in self._told.env.items()},
            **self._secrets,
            "CLUSTERFT_LOG_DIR": str(self.logs),
            "CLUSTERFT_ATTEMPT": str(term.attempt),
            "CLUSTERFT_FIRST_ATTEMPT": str(self._told.first_attempt),
            "CLUSTERFT_SUPERVISOR": f"{os.getpid()}:{start_time(os.getpid())}",
        }
        if self._told.survival.stagger:
            environment["CLUSTERFT_STAGGER"] = str(self._told.survival.stagger)
        standby, self.standby = self.standby, None
        argv = tuple(term.fill(word) for word in self._told.argv)
        self._skip_what_was_said()
        try:
            for folder in (self.logs, here, here / "elastic"):
                folder.mkdir(parents=True, exist_ok=True)
            for name, text in self._told.files.items():
                (here / name).write_text(term.fill(text), encoding="utf-8")
            log = self.logs / "launcher.log"
            work_dir = self._told.work_dir
            if self._told.kind == "script":  # it lies in the shared dir, and nobody here may wait for that
                argv, work_dir = ("/bin/sh", "-c", _THERE, "sh", work_dir, *argv), "/"
            self._launcher = standby.become(argv, environment, work_dir, log) if standby else None
            self._launcher = self._launcher or processes.start(argv, environment, work_dir, log)
        except OSError as error:
            text = f"the launcher cannot be started: {error}"
            self._say(stream.Log(LAUNCHER, text, time.time()))
            self.signs.line(LAUNCHER, text)
            self._code = 127

    def turn(self, now: float) -> bool:
        """Pass lines on, use force that is due, see the end; whether there is more to read at once."""
        if self.report is not None:
            return False
        if self._code is None and self._launcher is not None:
            self._code = self._launcher.poll()
        if self._code is not None:
            self._end(self._code)
            return False
        while self._force and now >= self._force[0][0]:
            self._use_force(self._force.pop(0)[1])
        return self._pass_on(now)

    # --- what is asked of it

    def ask(self, times: int, now: float) -> None:
        """A stop: let the ranks save, within the grace; asked twice, kill them."""
        if times <= self._asked:
            return
        self._asked, self._why = times, self._why or "stopped as asked"
        if times == 1:
            self._plan([(now, signal.SIGTERM), (now + self._told.grace_seconds, signal.SIGKILL)])
        else:
            self._plan([(now, signal.SIGKILL)])

    def leave(self, now: float) -> None:
        """The machine shuts down: let the ranks save, in the time that it gives."""
        self._why = self._why or "this machine or its engine is shutting down"
        self._plan([(now, signal.SIGTERM), (now + _SHUTDOWN, signal.SIGKILL)])

    def finish(self, words: float, why: str, now: float) -> None:
        """The attempt has failed elsewhere: end it here, after some time for the ranks' own last words."""
        self._why = self._why or why
        self._plan([(now + words, signal.SIGTERM), (now + words + _INSIST, signal.SIGKILL)])

    def dump(self) -> None:
        """Have all ranks write down what they are doing."""
        processes.signal_ranks(self.logs, signal.SIGUSR2)

    def _plan(self, force: list[tuple[float, int]]) -> None:
        """The sooner end wins."""
        if not self._force or force[-1][0] < self._force[-1][0]:
            self._force = force

    def _use_force(self, number: int) -> None:
        if self._launcher is None:
            return
        if number == signal.SIGKILL:
            self._heeded = False
            processes.signal_ranks(self.logs, signal.SIGKILL)
            self._launcher.kill()
            self._launcher.wait()
        # The ranks are told directly: the launcher would kill them 30 s after being told itself.
        elif not processes.signal_ranks(self.logs, number):
            self._launcher.terminate()  # no rank has started yet
        if not self._asked:
            self._heeded = False

    # --- what is seen

    def _skip_what_was_said(self) -> None:
        """Logs of this very attempt are here already: its supervisor was killed, and it goes on."""
        for log in self.logs.glob("rank*.log"):
            if log.stem.removeprefix("rank").isdigit():
                self._tails[int(log.stem.removeprefix("rank"))] = Tail(log)
        for tail in self._tails.values():
            tail.to_end()

    def _pass_on(self, now: float, *, final: bool = False) -> bool:
        """Read a piece of every log and say its lines; whether there is more to read."""
        if final or now - self._looked > _LOOK:
            self._looked = now
            self._look()
        for rank in sorted(self._tails, reverse=True):  # ranks first: their last words precede the launcher's
            at = time.time()
            for text in self._tails[rank].lines(final=final):
                self._line(rank, text, at)
        return any(tail.behind for tail in self._tails.values())

    def _look(self) -> None:
        for log in self.logs.glob("rank*.log"):
            number = log.stem.removeprefix("rank")
            if number.isdigit():
                self._tails.setdefault(int(number), Tail(log))
        for rank in processes.gone_ranks(self.logs):
            if rank not in self._gone:
                self._gone.append(rank)

    def _line(self, rank: int, text: str, at: float) -> None:
        record = progress.decode(text)
        if record is not None:
            self._say(stream.Progress(rank, record))
            self.moved = True
            if isinstance(record, progress.Step):
                self.stepping = record.step != record.steps  # then comes the export
            elif isinstance(record, progress.Phase):
                self.stepping = not self._steps
            if self._heeded or isinstance(record, (progress.Step, progress.Done)):
                self.signs.record(rank, record)
            return
        shown = text if len(text) <= _LONGEST else text[:_LONGEST] + " [cut; the log file has all of it]"
        self._say(stream.Log(rank, shown, at))
        self.signs.line(rank, shown)
        self.moved = self.moved or not self._steps
        if rank == LAUNCHER and "code" in text:
            self._death(text, at)

    def _death(self, text: str, at: float) -> None:
        named, nameless = _DEATH.search(text), _NAMELESS.search(text)
        if named:
            code, local, pid = (int(group) for group in named.groups())
            rank = processes.rank_of(self.logs, pid)
            self._died(self.term.first_rank + local if rank is None else rank, code, pid, at)
        elif nameless and self._gone:
            pid, _ = processes.read_note(self.logs / f"rank{self._gone[0]}.pid")
            self._died(self._gone[0], int(nameless[1]), pid, at)

    def _died(self, rank: int, code: int, pid: int, at: float) -> None:
        self._say(stream.RankDied(rank, code, pid, at))
        if self._heeded:
            self.signs.died(rank, code, short_of_memory=memory.kills() > self._oom_kills)

    def _end(self, code: int) -> None:
        """The launcher is gone: nothing that it started stays, and nothing that was written is left unsaid."""
        left = processes.signal_ranks(self.logs, 0)  # no signal: whether they are there
        processes.end_descendants(time.monotonic() + _LAST_WORDS, but=self.standby.pid if self.standby else 0)
        deadline = time.monotonic() + _REST
        while self._pass_on(time.monotonic(), final=True):
            if time.monotonic() > deadline:
                text = f"more lines than could be passed on: the rest is in {self.logs}"
                self._say(stream.Log(LAUNCHER, text, time.time()))
                break
        if left and code == 0:
            # DeepSpeed's runner ends well when its second half was killed, whatever becomes of the ranks.
            code = 1
            self.signs.line(LAUNCHER, f"it left {left} of its ranks behind")
        if self._heeded:
            self.signs.ended(code, started=self._launcher is not None)
        end: End = "ok" if code == 0 and not self._why else "stopped" if self._asked else "failed"
        signs = self.signs
        self.report = Report(self.term.attempt, end, code, signs.done, signs.step, self._why, tuple(signs.seen))
        self._say(stream.AttemptEnded(self.term.attempt, end, code, time.time(), self._why))
