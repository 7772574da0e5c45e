"""A node's part of a run: attempt after attempt, as the gang decides, until all is over.

Owns the order in which a supervisor does things, and its exit code. Never waits for the shared dir, nor for
another node: everything here is looked at once a turn.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from clusterft_trainer import assignment, stream
from clusterft_trainer.assignment import Assignment, Member
from clusterft_trainer.supervisor import ledger, member, processes, silent
from clusterft_trainer.supervisor.attempt import Attempt
from clusterft_trainer.supervisor.ending import OUTCOME, left_behind, outcome, report, superseded
from clusterft_trainer.supervisor.fence import Fence
from clusterft_trainer.supervisor.head import Head
from clusterft_trainer.supervisor.look import Look
from clusterft_trainer.supervisor.messages import (
    Asked,
    Bye,
    Dump,
    Dumped,
    Finish,
    Finished,
    Go,
    Hello,
    Leaving,
    Meet,
    Message,
    Moved,
    Over,
    Stop,
    Try,
)
from clusterft_trainer.supervisor.mirror import Mirror
from clusterft_trainer.supervisor.standby import Standby
from clusterft_trainer.supervisor.usage import Gauge
from clusterft_trainer.supervisor.voice import Voice

TOMBSTONE = "stopped"  # a file in the run's directory: a line for each time that a stop was asked for
LEFT = 143  # the exit code by which the engine is told to bring this supervisor back
_CODES: dict[str, int] = {"ok": 0, "stopped": 130, "failed": 5}
_TICK = 0.05  # seconds between looks at the logs; bounds how late a line or a death is seen
_MIRROR_WAIT = 10.0  # seconds that the shared dir gets for the end of the logs
_LAST_WORDS = 5.0
_MOVED = 1.0  # seconds between two Moved
_SETTLED = 10.0  # seconds after which an attempt has started; only the head's node hears of steps
_DUMPING = 2.0  # seconds for ranks to write their stacks
_NOTED = 3.0  # seconds out of reach that are worth a word
_LONGER = 10.0  # seconds
_STOPPED_ALONE = 10.0  # seconds that a stopped part waits for a head that it cannot reach


class Part:
    """Runs an assignment to its end; `run` returns the exit code of the supervisor."""

    def __init__(self, told: Assignment, directory: Path, *, echo: bool = False) -> None:
        self._told, self._directory = told, directory
        self._state = directory / "state.json"
        self._ledger = ledger.load(self._state, told, time.time())
        self._voice = Voice(directory / "stream.jsonl", sys.stdout if echo else None)
        self._mirror = Mirror(told, directory)
        self._attempt: Attempt | None = None
        self._standby: Standby | None = None  # before the first attempt
        self._secrets = self._read_secrets()
        self._signals = 0
        self._stones = stops_asked(directory)  # of those, how many were heeded
        self._stops = max(self._ledger.stops, self._stones)
        self._left_before, self._ledger.left = self._ledger.left, False
        self._leaving: float | None = None
        self._look: Look | None = None
        self._gauge = Gauge(time.monotonic())
        self._over = self._ledger.over if told.machine_rank else None  # the head's gang says it again
        self._lost_since: float | None = None
        self._told_of = self._unkept = ""
        self._keep_at = 0.0
        self._fence = Fence(told.run_dir, told.first_attempt)
        self._where = f"{told.members[0].address}:{told.gang_port}"
        self._moved = self._dumping = self._started = 0.0
        self._me = Member(told.node, told.machine_rank, told.slots, told.members[told.machine_rank].address)
        self._line: member.Line
        self._head: Head | None = None
        if told.machine_rank == 0:
            self._head = self._line = Head(told, self._ledger, self._state, self._hello)
        else:
            self._line = member.Member(told.members[0].address, told.gang_port, told.token, self._hello)

    def run(self) -> int:
        """From the first line to the last."""
        signal.signal(signal.SIGTERM, self._signalled)
        signal.signal(signal.SIGINT, self._signalled)
        processes.become_reaper()
        self._end_leftovers()
        Path(self._told.log_dir).mkdir(parents=True, exist_ok=True)
        self._keep()
        self._voice.say(stream.Started(os.getpid(), time.time(), self._ledger.incarnation))
        if self._over is None and not self._stops:
            self._standby = self._ready()
        self._mirror.start()
        try:
            while not self._is_over():
                if not self._turn():
                    self._wait()
        finally:  # also when something here broke: no rank may outlive the one who watches it
            processes.end_descendants(time.monotonic() + _LAST_WORDS)
            self._gauge.close()
            self._fence.close()
            self._voice.flush()
        code = self._end()
        if self._head is None:
            self._line.send(Bye())
        self._line.close()
        self._voice.close()
        return code

    # --- one turn

    def _turn(self) -> bool:
        """Look at everything once; whether there is more to do at once."""
        now = time.monotonic()
        self._heed_signals(now)
        for message in self._line.turn(now):
            self._do(message, now)
        if self._head is not None:
            for line in self._head.said:
                self._voice.say(line)
            self._head.said.clear()
        more = self._attend(now)
        self._look_around(now)
        self._mind_the_head(now)
        self._mind_the_rest(now)
        usage = self._gauge.turn(now)
        if usage is not None:
            self._voice.say(usage)
        self._voice.flush()
        return more

    def _wait(self) -> None:
        """Until a message comes, or for a tick."""
        waiting = select.poll()
        for sock in self._line.sockets():
            if sock.fileno() >= 0:
                waiting.register(sock, select.POLLIN)
        waiting.poll(_TICK * 1000)

    def _attend(self, now: float) -> bool:
        attempt = self._attempt
        if attempt is None or attempt.report is not None:
            return False
        more = attempt.turn(now)
        settled = attempt.signs.step is not None or now - self._started > _SETTLED
        if attempt.standby is None and settled and self._told.survival.restarts:
            attempt.standby = self._ready()  # now that it does not take time from a start
        if self._dumping and now > self._dumping:
            self._dumping = 0.0
            self._line.send(Dumped(attempt.term.attempt, silent.testify(attempt.logs)))
        if attempt.moved and now - self._moved > _MOVED:
            self._moved, attempt.moved = now, False
            self._line.send(Moved(attempt.term.attempt, attempt.signs.step, attempt.stepping))
        if attempt.report is not None:
            self._line.send(Finished(attempt.report))
        return more

    def _look_around(self, now: float) -> None:
        if self._look is not None:
            told = self._look.turn(now)
            if told is not None:
                self._line.send(told)

    def _looked(self) -> None:
        if self._look is not None:
            self._look.close()
            self._look = None

    def _do(self, message: Message, now: float) -> None:
        """What the head asks for."""
        match message:
            case Meet(word):
                self._looked()
                self._look = Look(self._told, word, now)
            case Try(peers):
                if self._look is not None:
                    self._look.begin(peers, now)
            case Go():
                self._looked()
                self._start(message)
            case Finish() | Dump():
                self._do_to_attempt(message, now)
            case Stop(times):
                self._stop(times, now)
            case Over():
                self._over = message
                self._looked()
                if self._attempt is not None:
                    self._attempt.finish(0.0, message.words, now)
                if self._head is not None:
                    self._line.send(Bye())  # the others say it last of all
            case _:
                raise ValueError(f"the head does not say {message.kind}")

    def _do_to_attempt(self, message: Finish | Dump, now: float) -> None:
        attempt = self._attempt
        if attempt is None or attempt.term.attempt != message.attempt:
            return
        if attempt.report is not None:
            self._line.send(Finished(attempt.report))  # it was said, and did not arrive
            return
        if isinstance(message, Finish):
            attempt.finish(message.words, message.why, now)
        else:
            attempt.dump()
            self._dumping = now + _DUMPING

    def _start(self, go: Go) -> None:
        last = self._attempt.term.attempt if self._attempt else go.attempt - 1
        if self._is_busy() or go.attempt <= last:
            return  # said twice
        if self._head is not None and go.attempt > self._told.first_attempt and self._is_superseded():
            self._head.supersede()
            return
        if self._head is None:
            self._ledger.attempt = go.attempt
            self._keep()
        term = assignment.term(go.members, self._told.machine_rank, go.attempt, go.port, str(self._directory))
        standby = self._attempt.standby if self._attempt else self._standby
        self._attempt, self._standby = Attempt(self._told, term, self._secrets, self._voice.say, standby), None
        self._started = time.monotonic()
        self._attempt.start(dict(os.environ) if self._told.contained else {})
        if self._stops:  # somebody asked while this was on its way
            self._attempt.ask(self._stops, time.monotonic())

    def _ready(self) -> Standby:
        """A launcher that imports its libraries now, in the environment that is known already."""
        known = {name: value for name, value in self._told.env.items() if "@" not in value}
        argv = () if self._told.kind == "script" else self._told.argv  # a shell starts those: see Attempt
        return Standby(argv, {**(os.environ if self._told.contained else {}), **known})

    def _is_busy(self) -> bool:
        return self._attempt is not None and self._attempt.report is None

    def _is_over(self) -> bool:
        if self._is_busy():
            return False
        if self._over is not None:
            return self._head is None or self._head.parted
        return self._leaving is not None

    def _hello(self) -> Hello:
        attempt = self._attempt
        return Hello(
            self._me,
            self._ledger.incarnation,
            self._ledger.boot,
            attempt.term.attempt if attempt else self._ledger.attempt,
            self._is_busy(),
            attempt.report if attempt else None,
            self._stops,
            self._left_before or self._ledger.rebooted,
        )

    # --- stops

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _heed_signals(self, now: float) -> None:
        count, self._signals = self._signals, 0
        if not count:
            return
        asked = stops_asked(self._directory)
        # Whoever has left word sends a signal too, which may come after another node has passed the stop on. Only
        # one without a word is somebody's own kill, and asks once more.
        by_hand = asked == self._stones and not self._told.contained
        self._stones = asked
        asked = max(asked, self._stops + count if by_hand else 0)
        if asked:
            self._stop(asked, now)
        elif self._leaving is None:
            self._leave(now)

    def _stop(self, times: int, now: float) -> None:
        """Somebody, here or elsewhere, wants the run to end."""
        if times <= self._stops:
            return
        self._stops = times
        if self._attempt is not None:
            self._attempt.ask(times, now)
        if self._head is None:
            self._ledger.stops = times
            self._keep()
        self._line.send(Asked(times))

    def _leave(self, now: float) -> None:
        """The engine shuts down, or somebody typed docker stop: save, go, and be brought back."""
        self._leaving = now
        self._ledger.left = True
        self._line.send(Leaving())
        if self._attempt is not None:
            self._attempt.leave(now)
        self._keep()

    # --- the head out of reach

    def _mind_the_head(self, now: float) -> None:
        problem = self._line.problem
        if not problem or self._over is not None:
            self._lost_since, self._told_of = None, ""
            return
        self._lost_since = now if self._lost_since is None else self._lost_since
        lost = now - self._lost_since
        if lost > _NOTED and problem != self._told_of:
            self._told_of = problem
            text = f"the head cannot be reached at {self._where}: {problem}"
            self._voice.say(stream.Log(stream.LAUNCHER, text, time.time()))
        if self._head is None and lost > self._patience():
            why = f"the head was out of reach for {lost:.0f} s: {problem}"
            alone = Over("stopped") if self._stops else Over("failed", "head-lost", why)
            self._over = left_behind(self._told.run_dir, self._ledger.began) or alone
            if self._attempt is not None:
                self._attempt.finish(_LAST_WORDS, why, now)

    def _mind_the_rest(self, now: float) -> None:
        """A ledger that is not on the disk; a gang that others may have replaced while they could not hear it."""
        if (self._unkept or (self._head is not None and self._head.unkept)) and now > self._keep_at:
            self._keep()
            if self._head is not None:
                self._head.unkept = self._unkept
        if self._head is not None and self._over is None and self._fence.turn(now, wanted=self._head.is_short):
            self._head.supersede()

    def _patience(self) -> float:
        """A little more than the head has: it decides first, if it can."""
        if self._stops and not self._is_busy():
            return _STOPPED_ALONE
        patience = self._told.survival.patience
        return patience + min(patience, _LONGER)

    # --- begin and end

    def _keep(self) -> None:
        """The ledger onto the disk; where that fails, it is said, and tried again."""
        problem = ledger.keep(self._state, self._ledger)
        if problem and not self._unkept:
            self._voice.say(stream.Log(stream.LAUNCHER, problem, time.time()))
        self._unkept, self._keep_at = problem, time.monotonic() + _LONGER

    def _is_superseded(self) -> bool:
        """A head that was lost may come back to a run that others train by now."""
        return superseded(self._told.run_dir, self._told.first_attempt)

    def _read_secrets(self) -> dict[str, str]:
        """Where nothing brings a supervisor back, they are removed as soon as they are read."""
        if self._told.secrets_file is None or self._ledger.over is not None:
            return {}
        path = Path(self._told.secrets_file)
        secrets: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        if not self._told.contained:
            path.unlink()
        return secrets

    def _end_leftovers(self) -> None:
        """Ranks of a supervisor that was killed: its launcher was told to end by the kernel, they maybe not."""
        for folder in Path(self._told.log_dir).glob("attempt-*"):
            processes.signal_ranks(folder, signal.SIGKILL)

    def _end(self) -> int:
        """The last words, and the exit code."""
        if self._over is None:
            self._mirror.flush(_LAST_WORDS)
            return LEFT
        over, attempt = self._over, self._attempt
        code = attempt.report.code if attempt and attempt.report else 0
        speaks = self._head is not None and not self._is_superseded()
        if speaks:
            self._mirror.place(OUTCOME, outcome(self._told.run, self._ledger, time.time()))
        unmirrored = problem = self._mirror.flush(_MIRROR_WAIT)
        if speaks and not problem:
            problem = report(self._told.run_dir)
        self._ledger.over = over
        self._keep()
        if self._told.secrets_file is not None:  # after it is kept that nobody will need them again
            Path(self._told.secrets_file).unlink(missing_ok=True)
        self._voice.say(stream.Ended(over.end, code, time.time(), self._voice.lost or problem, over.words))
        self._voice.flush()
        if not unmirrored:
            self._mirror.flush(_LAST_WORDS)  # so that the mirrored events end with the end
        return 0 if self._told.contained else _CODES[over.end]


def stops_asked(directory: Path) -> int:
    """How often a stop was asked for here."""
    try:
        return max(1, len((directory / TOMBSTONE).read_text(encoding="ascii").splitlines()))
    except FileNotFoundError:
        return 0
