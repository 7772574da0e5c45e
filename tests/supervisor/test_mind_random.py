"""The head's mind under anything that can happen in any order: it ends, and never runs two attempts at once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st
from mind_bench import SURVIVAL, Table

from clusterft_trainer import stream
from clusterft_trainer.supervisor import messages
from clusterft_trainer.supervisor.messages import Report, Sign

NODES = 3
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["kill", "die", "reboot", "cut", "heal", "leave", "step", "hang", "head", "wait", "done"]),
        st.integers(0, NODES - 1),
    ),
    max_size=40,
)
KILLED = Sign("signal", "killed", 0, "rank 0 was ended by SIGKILL")


@dataclass
class Obedient:
    """A member that does what it is told, as far as the test's faults let it."""

    rank: int
    connected: bool = False
    attempt: int = -1
    running: bool = False
    report: Report | None = None
    over: bool = False
    read: int = 0  # how much of what it was told it has heard


@dataclass
class World:
    """Members, faults, and the table between them."""

    table: Table = field(default_factory=lambda: Table(survival=replace(SURVIVAL, min_nodes=2)))
    members: list[Obedient] = field(default_factory=lambda: [Obedient(rank) for rank in range(NODES)])

    def hello(self, rank: int, *, left: bool = False) -> None:
        one = self.members[rank]
        if one.connected or one.over:
            return
        one.connected = True
        one.read = len(self.table.told.get(rank, []))
        self.table.hello(rank, attempt=one.attempt, running=one.running, report=one.report, left=left)
        self.obey()

    def cut(self, rank: int) -> None:
        if self.members[rank].connected and rank != 0:  # the head sits at its own table
            self.members[rank].connected = False
            self.table.gang.gone(rank, self.table.now)

    def reborn(self, rank: int, *, left: bool) -> None:
        """Its container was ended and brought back."""
        one = self.members[rank]
        if one.over:
            return
        if rank == 0:
            for other in range(1, NODES):
                self.members[other].connected = False
            self.table.ledger.left = False
            self.table.told.clear()
            self.table.sit_down()
        else:
            self.cut(rank)
        one.connected, one.running, one.report = False, False, None
        self.table.incarnations[rank] = self.table.incarnations.get(rank, 0) + 1
        self.hello(rank, left=left)
        for other in range(NODES):
            self.hello(other)

    def ends(self, rank: int, code: int, *signs: Sign, done: bool = False, why: str = "") -> None:
        one = self.members[rank]
        if one.running:
            one.running = False
            one.report = Report(one.attempt, "failed" if code else "ok", code, done, None, why, signs)
            if one.connected:
                self.table.says(rank, messages.Finished(one.report))
            self.obey()

    def obey(self) -> None:
        """All hear what they were told, and do it at once."""
        for one in self.members:
            while one.connected and one.read < len(self.table.told.get(one.rank, [])):
                message = self.table.told[one.rank][one.read]
                one.read += 1
                self.do(one, message)

    def do(self, one: Obedient, message: messages.Message) -> None:
        match message:
            case messages.Go(attempt):
                assert not any(
                    other.running and other.attempt != attempt for other in self.members if other.connected
                )
                if attempt > one.attempt:
                    one.attempt, one.running, one.report = attempt, True, None
            case messages.Finish(attempt) if attempt == one.attempt:
                self.ends(one.rank, 1, why="asked")
            case messages.Dump(attempt):
                self.table.says(one.rank, messages.Dumped(attempt, 1))
            case messages.Over():
                one.over, one.running = True, False
                self.table.says(one.rank, messages.Bye())

    def happens(self, event: str, rank: int) -> None:
        match event:
            case "kill":
                self.ends(rank, 1, KILLED)
            case "die":
                self.reborn(rank, left=False)
            case "leave":
                self.reborn(rank, left=True)
            case "reboot":
                self.table.boots[rank] = self.table.boots.get(rank, "boot") + "+"
                self.reborn(rank, left=False)
            case "cut" | "heal":
                (self.cut if event == "cut" else self.hello)(rank)
            case "step" if self.members[0].running:
                self.table.says(0, messages.Moved(self.members[0].attempt, 1))
            case "hang" | "wait":
                self.table.tick(250 if event == "hang" else 70)  # longer than patience
            case "done" if all(one.running for one in self.members):
                for one in self.members:
                    self.ends(one.rank, 0, done=one.rank == 0)
        self.obey()


@given(EVENTS)
@settings(max_examples=300, deadline=None)
def test_whatever_happens_the_run_ends_once_and_everybody_in_reach_knows(events: list[tuple[str, int]]) -> None:
    world = World()
    for rank in range(NODES):
        world.hello(rank)
    for event, rank in events:
        world.happens(event, rank)
    for _ in range(12):  # at last the network is well, and ranks do nothing: it must come to an end by itself
        for rank in range(NODES):
            world.hello(rank)
        world.happens("hang", 0)
    table = world.table
    assert table.ledger.over is not None and table.parted
    assert all(one.over for one in world.members if one.connected)
    assert not any(one.running for one in world.members if one.connected)
    finals = [line for line in table.said if isinstance(line, stream.Decided) and not line.again]
    assert len(finals) == 1
    failures = [one for one in table.ledger.history if one.failure != "interrupted"]
    assert len(failures) <= SURVIVAL.restarts + 1
    assert table.ledger.attempt + 1 <= len(table.ledger.history) + 1
