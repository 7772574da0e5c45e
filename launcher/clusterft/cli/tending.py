"""Watching one run to its end, for `train`, `resume` and `attach` alike: show, ask, heed, mend, conclude.

Owns what Ctrl-C means and the exit code of a run. Refuses to end a run because this controller cannot go on: what
runs on the nodes needs nobody here.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import FrameType, TracebackType

from clusterft import board as boards
from clusterft import commands
from clusterft.apply import Gang, harvest, reading, record
from clusterft.apply.mending import Mender
from clusterft.apply.record import Entry
from clusterft.board import Board, Verdict
from clusterft.errors import Blocked, ClusterftError, Interrupted, RunFailed
from clusterft.events import Event, Stopping
from clusterft.fleet import Fleet
from clusterft.remote import Unreachable
from clusterft.ui import outcome, watch

_QUESTION = "[d]etach and let it run   [s]top after a checkpoint   stop [n]ow   any other key: go on"
_PREPARING = "[d]etach and let it run   [s]top   stop [n]ow   any other key: go on"
_REPEAT = 5.0  # seconds between two requests that nobody has taken
_SAME = 1.0  # seconds
_CODES = {"ok": 0, "stopped": Interrupted.exit_code, "failed": RunFailed.exit_code}


@dataclass(slots=True)
class Tended:
    """One run in the hands of this controller."""

    entry: Entry
    gang: Gang
    fleet: Fleet
    board: Board
    mender: Mender
    as_json: bool
    local_logs: dict[str, str] = field(default_factory=dict)  # node -> where it keeps logs itself
    sequel: bool = False  # another run follows a good end of this one: that is said in a line


def tend(run: Tended, opening: Iterable[Event] = ()) -> int:
    """Show the opening, then all that happens until the run is over; its exit code. 0 for a run that was left."""
    with (
        Interrupts(_PREPARING if run.board.prep else _QUESTION) as interrupts,
        watch.watcher(quiet=run.as_json) as watcher,
    ):
        for event in opening:
            _take(event, run.board, watcher)
        try:
            detached = _until_over(run, interrupts, watcher)
        except RunFailed:
            raise  # it says what becomes of the run
        except Exception:
            # A bug of ours while watching is no reason to end a run that may be well.
            if not run.mender.failed:
                words = f"! the run goes on unwatched; to end it: clusterft stop {run.entry.run}"
                watch.say(sys.stderr, commands.shown(words))
            raise
    if detached:
        return _detach(run)
    verdict = boards.judge(run.board)
    # What is not known to be over was left alone before this.
    gathered = harvest.gather(run.fleet, run.entry.run, run.gang.parts.values(), kill=True)
    _conclude(run, verdict, [*run.mender.problems, *harvest.told(gathered)])
    unrecorded = record.end(run.mender.entry, run.fleet, verdict)
    if unrecorded:
        watch.say(sys.stderr, f"! {unrecorded}")
    return exit_code(verdict)


def exit_code(verdict: Verdict) -> int:
    """What the shell is told of a run."""
    return Blocked.exit_code if verdict.blocked else _CODES[verdict.end]


def _until_over(run: Tended, interrupts: Interrupts, watcher: watch.Watcher) -> bool:
    """Whether the user has left it before its end."""
    request = _Request()
    while True:
        for event in run.gang.events():
            if event is None:
                watcher.tick(run.board)
            else:
                _take(event, run.board, watcher)
            for more in run.mender.look(run.board):
                _take(more, run.board, watcher)
            asked = interrupts.heed(watcher)
            if asked == "detach":
                return True
            if asked:
                _take(Stopping(_asked(run, asked)), run.board, watcher)
                request.ask(asked)
            request.pass_on(run.gang)
        run.board = reading.concluded(run.board, run.fleet)
        _leave_what_is_not_heard(run)
        for more in run.mender.go_on(run.board):
            _take(more, run.board, watcher)
        if run.mender.elsewhere:
            name = run.entry.run
            what = (
                f"another controller plans {name} anew, since a node of it was lost; it goes on without this one"
            )
            raise RunFailed(what, failure="elsewhere", remedy=f"clusterft attach {name}   watches it again")
        if run.mender.gang is run.gang:
            return False
        run.gang = run.mender.gang


def _asked(run: Tended, what: str) -> str:
    """What a stop will do, and how it is hurried; the Board knows it by its first word."""
    if what == "now":
        return "asked, at once"
    saves = not run.board.prep and run.entry.job.get("train") is not None
    return f"asked{', after a checkpoint' if saves else ''} (asked again: at once)"


def _leave_what_is_not_heard(run: Tended) -> None:
    """A run that this controller cannot hear may be well: only one that is known to be over is cleared away."""
    if run.gang.head.node in run.board.ended:
        return  # its word is the gang's
    said = run.gang.alive()
    waiting = [node for node in run.gang.parts if node not in run.board.ended]
    unheard = [node for node in waiting if said.get(node) is True or _engine(said.get(node))]
    if not unheard and not run.board.ended:
        # Members that ended say that the head is lost. Where nobody said so, it may be this controller that is.
        unheard = [node for node in waiting if said.get(node) is not False]
    if not unheard:
        return
    name = run.entry.run
    what = (
        f"{name} cannot be heard on {', '.join(unheard)} any more; what runs there is left alone and may be well"
    )
    remedy = f"clusterft attach {name}   watches it again;  clusterft stop {name}   ends it"
    raise RunFailed(what, failure="unheard", remedy=remedy)


def _engine(why: object) -> bool:
    """Whether the node answers, and only its engine does not."""
    return isinstance(why, ClusterftError) and not (isinstance(why, Unreachable) and not why.id.startswith("dk."))


class _Request:
    """To stop: repeated until a part has taken it, which tells the others; a node out of reach is no excuse."""

    def __init__(self) -> None:
        self._wanted = ""
        self._next = 0.0
        self._said: set[str] = set()

    def ask(self, what: str) -> None:
        """After a checkpoint (stop), or now."""
        self._wanted, self._next = what, 0.0

    def pass_on(self, gang: Gang) -> None:
        """Called often; says once which nodes could not be told."""
        if not self._wanted or time.monotonic() < self._next:
            return
        answers = gang.stop(now=self._wanted == "now")
        missed = {node: answers.get(node, "not connected") for node in gang.parts}
        missed = {node: why for node, why in missed.items() if not isinstance(why, bool)}
        for node, why in missed.items():
            if node not in self._said:
                watch.say(sys.stderr, f"! {node} was not told to stop: {why}")
                self._said.add(node)
        if not missed or any(answer is True for answer in answers.values()):
            self._wanted = ""
        self._next = time.monotonic() + _REPEAT


def _take(event: Event, board: Board, watcher: watch.Watcher) -> None:
    board.see(event)
    watcher.show(event, board)


def _detach(run: Tended) -> int:
    name = run.entry.run
    if run.as_json:
        body = {"schema": outcome.SCHEMA, "run": name, "run_dir": str(run.entry.run_dir), "outcome": "running"}
        watch.say(sys.stdout, json.dumps(body))
        return 0
    watch.say(sys.stdout, f"{name} goes on by itself")
    watch.say(sys.stdout, "  " + commands.shown(f"clusterft attach {name}   watches it again"))
    ends = f"clusterft stop {name}   ends it" + " after a checkpoint" * (not run.board.prep)
    watch.say(sys.stdout, "  " + commands.shown(ends))
    return 0


def _conclude(run: Tended, verdict: Verdict, left: list[str]) -> None:
    if run.sequel and verdict.end == "ok":
        out = watch.notes(quiet=run.as_json)
        for line in (f"✓ run {run.entry.run} finished: the data is prepared", *(f"! {line}" for line in left)):
            out(line)
        return
    if run.as_json:
        body = outcome.to_dict(run.board, verdict, run.local_logs)
        watch.say(sys.stdout, json.dumps(body | ({"left": left} if left else {})))
        return
    for line in outcome.lines(run.board, verdict, run.local_logs):
        watch.say(sys.stdout, line)
    for line in left:
        watch.say(sys.stdout, f"! {line}")


def begin(run: Tended, opening: Iterator[Event]) -> Iterator[Event]:
    """The opening of a run that is being started; a start that failed is recorded as the end that it is."""
    try:
        yield from opening
    except Exception as error:
        # Nothing was left running, so the record must not say that the run goes on.
        remedy = error.remedy if isinstance(error, ClusterftError) else ""
        record.end(run.entry, run.fleet, Verdict("failed", str(error), failure="start", remedy=remedy))
        raise


class Interrupts:
    """Counts Ctrl-C and SIGTERM instead of raising in the middle of something, and asks what is meant.

    On a terminal a Ctrl-C asks; a second one means the checkpoint, a third one now. Elsewhere, and for SIGTERM,
    the first means the checkpoint and the second now. `timeout` and the like tell a process, and then its group:
    a SIGTERM close behind another is the same one.
    """

    def __init__(self, question: str = _QUESTION) -> None:
        self._question = question
        self._count = 0
        self._heeded = 0
        self._term: float | None = None  # when one came last
        self._asks = sys.stdin.isatty() and sys.stdout.isatty()
        self._before_keys: list[object] | None = None
        self._told = 0  # how much of an end was asked for: 1 after a checkpoint, 2 now

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release_keys()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def heed(self, watcher: watch.Watcher) -> str:
        """What is wanted now: detach, stop, now, or nothing."""
        asking = self._before_keys is not None
        if self._count > self._heeded:
            self._heeded += 1
            if self._asks and not (self._term is not None or self._told or asking):
                self._grab_keys()
                watcher.ask(self._question)
                return ""
            self._answered(watcher)
            return self._wanted("now" if self._told else "stop")
        if asking and (key := self._key()):
            self._answered(watcher)
            return self._wanted({"d": "detach", "s": "stop", "n": "now"}.get(key.lower(), ""))
        return ""

    def _wanted(self, what: str) -> str:
        """Each is asked for once: a third Ctrl-C cannot make it end sooner."""
        rank = {"stop": 1, "now": 2}.get(what, 0)
        if rank and rank <= self._told:
            return ""
        self._told = max(self._told, rank)
        return what

    def _answered(self, watcher: watch.Watcher) -> None:
        if self._before_keys is not None:
            self._release_keys()
            watcher.ask("")

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            before, self._term = self._term, time.monotonic()
            if before is not None and self._term - before < _SAME:
                return
        self._count += 1

    def _grab_keys(self) -> None:
        """A key counts without Enter, and is not shown."""
        self._before_keys = termios.tcgetattr(0)
        tty.setcbreak(0, termios.TCSANOW)

    def _release_keys(self) -> None:
        if self._before_keys is not None:
            termios.tcsetattr(0, termios.TCSANOW, self._before_keys)  # type: ignore[arg-type]
            self._before_keys = None

    @staticmethod
    def _key() -> str:
        if not select.select([0], [], [], 0)[0]:
            return ""
        return os.read(0, 16).decode(errors="replace")[:1]
