"""The gang as its head decides about it: what members say and what the clock says in, actions out. Pure.

Owns the order of things: gather, look around once, run an attempt, end it everywhere, decide, again; a stop wins
over all of it. The ledger is changed here and kept by whoever carries the actions out, before anybody is told.
"""

from __future__ import annotations

from clusterft_trainer import stream
from clusterft_trainer.assignment import Assignment
from clusterft_trainer.supervisor import cause, meeting, messages, policy
from clusterft_trainer.supervisor.actions import Action, Keep, Part, Say, Send, World
from clusterft_trainer.supervisor.cause import Cause
from clusterft_trainer.supervisor.course import Course
from clusterft_trainer.supervisor.kinds import Kind
from clusterft_trainer.supervisor.ledger import Ledger
from clusterft_trainer.supervisor.meeting import Meeting
from clusterft_trainer.supervisor.messages import Finish, Go, Hello, Message, Over, Report, Stop
from clusterft_trainer.supervisor.policy import INTERRUPTED, Past
from clusterft_trainer.supervisor.roster import Roster, Seat, were

_OWN_WORDS = 5.0  # seconds in which ranks may say for themselves why they end
_FEW_WORDS = 1.0  # the same where the cause is known, and all they could say is that they lost somebody
_TOGETHER = 60.0  # seconds within which ranks that were done, or saved, end on all nodes
_DUMPING = 10.0  # seconds for stacks to be written
_PARTING = 15.0  # seconds for members to hear that it is over
_FIRST_PATIENCE = 120.0  # seconds for the first gathering: all were started together
_NOTHING = Cause("", "")


class Gang:
    """The head's mind. Times are seconds of one steady clock."""

    def __init__(self, told: Assignment, ledger: Ledger, now: float, world: World) -> None:
        self._told, self._ledger, self._world = told, ledger, world
        self._survival, self._kind = told.survival, Kind(told.kind)
        replaced = {one.node for one in told.members} - {one.node for one in ledger.members}
        self.roster = Roster(
            {one.machine_rank: Seat(one, now) for one in ledger.members}, ledger.running, replaced
        )
        self.phase = "ending" if ledger.running else "gathering"
        self._course = Course(now)
        self._meeting = Meeting(told, now)
        self._until = 0.0  # of the phase, where it has an end
        self._out: list[Action] = []
        for rank, seat in self.roster.seats.items():
            seat.boot = ledger.boots.get(seat.member.node, "")
            seat.busy = rank in ledger.running
        if ledger.over:
            self._part(now)

    def drain(self) -> list[Action]:
        """What is to be done, in this order."""
        out, self._out = self._out, []
        return out

    # --- what happens

    def hello(self, hello: Hello, now: float) -> str:
        """A member has a connection; why it is not wanted, empty if it is."""
        rank, node = hello.member.machine_rank, hello.member.node
        seat = self.roster.seats.get(rank)
        if seat is None:
            return f"run {self._told.run} has no machine rank {rank}"
        if node != seat.member.node:
            if node in self.roster.replaced or seat.here:
                return f"{seat.member.node} has the place of machine rank {rank}"
            self._replace(seat, hello, now)
        back = ""
        if hello.incarnation != seat.incarnation:
            back = INTERRUPTED if hello.left or seat.boot not in ("", hello.boot) else "container"
        seat.greet(hello.incarnation, hello.boot, busy=hello.running)
        if self._ledger.boots.get(node) != hello.boot:
            self._ledger.boots[node] = hello.boot
            self._out.append(Keep())
        self._course.moved = now  # what went on meanwhile was not seen
        if self.phase in ("over", "parted"):
            self._send(rank, self._over())
            return ""
        self._place(rank, hello, now, back)
        if self._ledger.stops and self.roster.present:
            self._send(rank, Stop(self._ledger.stops))
        self._asked(hello.stops, now)
        return ""

    def gone(self, rank: int, now: float) -> None:
        """A member's connection is no more."""
        seat = self.roster.seats[rank]
        seat.here, seat.since, seat.met, seat.tried = False, now, None, None

    def heard(self, rank: int, message: Message, now: float) -> None:
        """A member says something."""
        seat = self.roster.seats[rank]
        match message:
            case messages.Finished(report):
                seat.busy = False
                self._finished(rank, report, now)
            case messages.Moved():
                if message.attempt == self._ledger.attempt:
                    self._course.move(now, stepping=message.stepping)
            case messages.Asked(times):
                self._asked(times, now)
            case messages.Leaving():
                seat.leaving = True
                self._happened(rank, INTERRUPTED, f"{seat.member.node} or its engine was shut down")
            case messages.Dumped():
                seat.dumped = True
            case messages.Met():
                seat.met = message
            case messages.Tried():
                seat.tried = message
            case messages.Bye():
                seat.parted = True
            case _:
                raise ValueError(f"a member does not say {message.kind}")

    def shut(self, problem: str, now: float) -> None:
        """Nobody can come to the table."""
        if self.phase == "gathering":
            self._close("failed", Cause("rdzv.inuse", problem, self.roster.node(0)), "nothing was started", now)

    def supersede(self, now: float) -> None:
        """A controller has made another gang for this run: this one ends, and begins nothing."""
        text = "the run was planned anew, without this head"
        self._close("failed", Cause("replaced", text, self.roster.node(0)), "another gang has it", now)

    def leave(self) -> None:
        """This very machine shuts down: nothing new is begun."""
        self._ledger.left = True
        self._out.append(Keep())

    def tick(self, now: float) -> None:
        """What the clock decides."""
        if self.phase not in ("over", "parted"):
            self._give_up(now)
            self._tell_of_absence(now)
        before = ""
        while before != self.phase:
            before = self.phase
            self._step(now)

    def _step(self, now: float) -> None:
        match self.phase:
            case "gathering":
                self._gather(now)
            case "meeting":
                self._meet(now)
            case "running":
                self._watch(now)
            case "dumping":
                self._dumped(now)
            case "ending":
                if not self.roster.unfinished():
                    self._judge(now)
            case "over":
                if now > self._until or all(self.roster.seats[rank].parted for rank in self.roster.here()):
                    self.phase = "parted"
                    self._out.append(Part())

    # --- members

    def _replace(self, seat: Seat, hello: Hello, now: float) -> None:
        old, rank = seat.member.node, hello.member.machine_rank
        self._happened(rank, "node-lost", f"{old} was replaced by {hello.member.node}")
        self.roster.replaced.add(old)
        self._finished(rank, Report(self._ledger.attempt, "failed", 1), now)
        seat.member, seat.incarnation, seat.boot = hello.member, hello.incarnation, hello.boot
        self._ledger.members = tuple(one.member for one in self.roster.seats.values())
        self._out.append(Keep())

    def _place(self, rank: int, hello: Hello, now: float, back: str) -> None:
        """Compare where a member stands with what it was told; `back`: why it was brought back, empty if not."""
        seat, attempt = self.roster.seats[rank], self._ledger.attempt
        wanted = rank in self.roster.present and seat.report is None
        if self._joins(rank, hello):
            self._ledger.running = self.roster.present
            self._out.append(Keep())
            self._send(rank, self._go())
        elif hello.running:
            if hello.attempt != attempt or not wanted:
                self._send(rank, Finish(hello.attempt, 0.0, "the run went on without this node"))
            elif self.phase == "ending":
                self._send(rank, Finish(attempt, _FEW_WORDS, self._course.why))
        elif not wanted:
            return
        elif hello.report is not None and hello.attempt == attempt:
            self._finished(rank, hello.report, now)
        elif not back and hello.attempt < attempt and self.phase == "running":
            self._send(rank, self._go())  # it was said, and got lost with the connection
            seat.busy = True
        else:
            down = f"{seat.member.node} or its engine was shut down, and is back"
            killed = f"the supervisor on {seat.member.node} was killed and brought back"
            self._happened(rank, back or "container", down if back == INTERRUPTED else killed)
            self._finished(rank, Report(attempt, "failed", 1), now)

    def _joins(self, rank: int, hello: Hello) -> bool:
        able = self.phase == "running" and not self._ledger.stops and self._kind.may_join(self._course, hello)
        return able and self.roster.join(rank, policy.INTERRUPTIONS)

    def _happened(self, rank: int, failure: str, text: str) -> None:
        if rank in self.roster.present:
            self._course.note(Cause(failure, text, self.roster.node(rank)))

    def _give_up(self, now: float) -> None:
        for rank in self.roster.overdue(now, self._patience()):
            seat = self.roster.seats[rank]
            seat.lost, seat.busy = True, False
            text = f"{seat.member.node} was out of reach for {self._patience():.0f} s"
            self._happened(rank, "node-lost", text)
            if self.phase in ("running", "dumping") and rank in self.roster.present and not self._kind.claims:
                self._end(_FEW_WORDS, text)

    def _patience(self) -> float:
        first = self._ledger.attempt < self._told.first_attempt
        return min(self._survival.patience, _FIRST_PATIENCE) if first else self._survival.patience

    def _tell_of_absence(self, now: float) -> None:
        absent, before = self.roster.absent(now), self.roster.said
        if absent != before:
            self.roster.said = absent
            lost = tuple(node for node in self.roster.lost() if node in before)
            at = self._world.wall()
            until = at + self.roster.until(self._patience()) - now if absent else 0.0
            self._say(stream.Waiting(absent, until, at, lost))

    # --- the order of things

    def _gather(self, now: float) -> None:
        if self._ledger.stops:
            self._close("stopped", _NOTHING, "stopped as asked", now)
            return
        if self._ledger.left or self.roster.missing():
            return
        able, least = self.roster.able(), self._survival.min_nodes or len(self.roster.seats)
        if 0 not in able or len(able) < least:
            if strangers := self.roster.strangers():
                found = meeting.unmet(self._told, strangers, self._patience(), self._world.wall())
                self._say(found)
                self._refuse(found, now)
                return
            lost = [self.roster.node(rank) for rank in self.roster.seats if rank not in able]
            text = f"{', '.join(lost)} {were(lost)} out of reach for {self._patience():.0f} s"
            short = f"{len(able)} of {len(self.roster.seats)} nodes are left, and the job needs {least}"
            self._close("failed", Cause("node-lost", text, lost[0]), short, now)
        elif self._told.preflight and not self._ledger.looked and len(able) > 1:
            self.phase, self._meeting = "meeting", Meeting(self._told, now, str(self._world.wall()))
        else:
            self._start(now)

    def _meet(self, now: float) -> None:
        if self._ledger.stops or self.roster.missing():
            self.phase = "gathering"
            return
        for rank, message in self._meeting.step(self.roster, now):
            self._send(rank, message)
        found = self._meeting.found(self.roster, now, self._world.wall())
        if found is None:
            return
        for line in found:
            self._say(line)
        failed = next((line for line in found if line.status == "fail"), None)
        if failed:
            self._refuse(failed, now)
            return
        self._ledger.looked = True
        self.phase = "gathering"
        self._out.append(Keep())

    def _refuse(self, failed: stream.Found, now: float) -> None:
        self._close("failed", Cause(failed.id, failed.summary, failed.nodes[0]), "nothing was started", now)

    def _start(self, now: float) -> None:
        port = self._world.pick(self._ledger.port)
        if port is None:
            text = f"none of the ports from {self._told.first_port} on is free on {self.roster.node(0)}"
            self._close("failed", Cause("rdzv.inuse", text, self.roster.node(0)), "nothing was started", now)
            return
        self._ledger.attempt += 1
        self._ledger.running, self._ledger.port, self._ledger.left = self.roster.begin(), port, False
        self._course, self.phase = Course(now), "running"
        self._out.append(Keep())
        for rank in self.roster.present:
            self._send(rank, self._go())

    def _go(self) -> Go:
        members = self.roster.members(absent=self._kind.claims)
        return Go(self._ledger.attempt, members, self._ledger.port or 0)

    def _watch(self, now: float) -> None:
        """An attempt runs: does it move, and does all of it end together?"""
        course = self._course
        if not self.roster.unfinished():
            self._judge(now)
        elif self._ledger.stops:
            return  # ranks save for as long as their grace allows
        elif self._kind.is_left(course, now, _TOGETHER):
            self._end(_FEW_WORDS, "the ranks on other nodes had ended")
        elif now - course.moved > course.limit(self._survival):
            if not self._kind.in_reach(self.roster):
                course.moved = now  # nobody may call a hang what a lost connection explains
                return
            self.phase, self._until = "dumping", now + _DUMPING
            for rank in self.roster.unfinished():
                self._send(rank, messages.Dump(self._ledger.attempt))

    def _dumped(self, now: float) -> None:
        if now < self._until and not all(self.roster.seats[rank].dumped for rank in self.roster.unfinished()):
            return
        attempt, seconds = self._ledger.attempt, self._course.limit(self._survival)
        where = f"{self._told.run_dir}/stacks/attempt-{attempt}"
        self._say(stream.Hang(attempt, seconds, where, self._world.wall()))
        what = "step" if self._kind.tells_steps else "line"
        text = f"no {what} for {seconds:.0f} s; what every rank was doing then: {where}"
        self._course.causes.insert(0, Cause("hang", text))
        self._end(0.0, text)

    def _finished(self, rank: int, report: Report, now: float) -> None:
        seat, course = self.roster.seats[rank], self._course
        if report.attempt != self._ledger.attempt or rank not in self.roster.present or seat.report:
            return
        seat.report = report
        course.take(rank, now, well=self._kind.is_well(report))
        if self.phase not in ("running", "dumping") or self._ledger.stops or course.done(self.roster):
            return
        if self._kind.ends_all(report):
            clear = bool(course.causes) or cause.known(report)
            self._end(_FEW_WORDS if clear else _OWN_WORDS, f"the attempt ended on {seat.member.node}")

    def _end(self, words: float, why: str) -> None:
        self.phase, self._course.why = "ending", why
        for rank in self.roster.unfinished():
            self._send(rank, Finish(self._ledger.attempt, words, why))

    # --- the end of an attempt, and of the run

    def _judge(self, now: float) -> None:
        if self._kind.is_complete(self._course, self.roster, stopped=bool(self._ledger.stops)):
            self._close("ok", _NOTHING, "finished", now)
        elif self._ledger.stops:
            self._close("stopped", _NOTHING, "stopped as asked", now)
        else:
            self._decide(now)

    def _decide(self, now: float) -> None:
        reports = self._course.reports(self.roster)
        found = cause.first(reports, self._course.causes)
        steps = [report.step for report in reports.values() if report.step is not None]
        reached, tells = max(steps, default=None), self._kind.tells_steps
        self._ledger.history.append(
            Past(self._ledger.attempt, found.failure, found.text, found.node, found.rank, reached, tells)
        )
        decision = policy.decide(self._ledger.history, self._survival)
        if not decision.again:
            self._close("failed", found, decision.why, now, decision.used)
            return
        self._settle()
        self.phase = "gathering"
        self._say(self._decided(found, True, decision.why, decision.used))
        self._out.append(Keep())

    def _settle(self) -> None:
        """No attempt is in progress any more."""
        self._ledger.running = self.roster.present = ()

    def _close(self, end: stream.End, found: Cause, why: str, now: float, used: int | None = None) -> None:
        """The run is over."""
        self._settle()
        used = policy.used(self._ledger.history, self._survival) if used is None else used
        self._say(self._decided(found, False, why, used))
        self._ledger.over = Over(end, found.failure, found.text, found.node, found.rank, why, used)
        self._out.append(Keep())
        self._part(now)

    def _part(self, now: float) -> None:
        self.phase, self._until = "over", now + _PARTING
        for rank in self.roster.here():
            self._send(rank, self._over())

    def _over(self) -> Over:
        if self._ledger.over is None:
            raise ValueError("it is not over")
        return self._ledger.over

    def _decided(self, found: Cause, again: bool, why: str, used: int) -> stream.Decided:
        told, number = self._survival, self._ledger.attempt
        at = self._world.wall()
        return stream.Decided(
            number, again, found.failure, found.text, found.node, found.rank, why, used, told.restarts, at
        )

    def _asked(self, times: int, now: float) -> None:
        if times <= self._ledger.stops or self.phase in ("over", "parted"):
            return
        self._ledger.stops = times
        self._out.append(Keep())
        if self.roster.present:
            for rank in self.roster.here():
                self._send(rank, Stop(times))
        else:
            self._close("stopped", _NOTHING, "stopped as asked", now)

    def _send(self, rank: int, message: Message) -> None:
        self._out.append(Send(rank, message))

    def _say(self, line: stream.Plain) -> None:
        self._out.append(Say(line))
