"""A table of members who obey, and a clock that tests turn: the head's mind without sockets or processes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from clusterft_trainer import stream
from clusterft_trainer.assignment import Assignment, Member, Survival
from clusterft_trainer.supervisor import actions, messages
from clusterft_trainer.supervisor.actions import World
from clusterft_trainer.supervisor.gang import Gang
from clusterft_trainer.supervisor.ledger import Ledger
from clusterft_trainer.supervisor.messages import Hello, Message, Report, Sign

SURVIVAL = Survival(restarts=3, hang_after=100.0, first_step_after=200.0, patience=60.0)


@dataclass
class Table:
    """A gang whose members do nothing by themselves."""

    count: int = 3
    kind: str = "train"
    survival: Survival = SURVIVAL
    now: float = 1000.0
    told: dict[int, list[Message]] = field(default_factory=dict)
    said: list[stream.Plain] = field(default_factory=list)
    kept: int = 0
    parted: bool = False
    incarnations: dict[int, int] = field(default_factory=dict)
    boots: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.members = tuple(Member(f"n{rank}", rank, 2, f"10.0.0.{rank}") for rank in range(self.count))
        self.assignment = Assignment(
            run="r", cluster="c", node="n0", machine_rank=0, slots=2, members=self.members, gang_port=1, token="t",
            first_port=100, ports=8, argv=(), env={}, work_dir="/", run_dir="/shared/r", log_dir="/l",
            kind=self.kind, preflight=False, survival=self.survival,
        )  # fmt: skip
        self.ledger = Ledger(members=self.members)
        self.sit_down()

    def sit_down(self) -> None:
        """The head, for the first time or again."""
        self.gang = Gang(self.assignment, self.ledger, self.now, World(lambda last: (last or 99) + 1, lambda: 5.0))

    def act(self) -> None:
        """Carry out what is wanted."""
        for action in self.gang.drain():
            match action:
                case actions.Send(rank, message):
                    self.told.setdefault(rank, []).append(message)
                case actions.Say(line):
                    self.said.append(line)
                case actions.Keep():
                    self.kept += 1
                case actions.Part():
                    self.parted = True

    def hello(self, rank: int, **changes: object) -> str:
        """A member gets a connection."""
        known = Hello(self.members[rank], self.incarnations.get(rank, 0), self.boots.get(rank, "boot"))
        answer = self.gang.hello(replace(known, **changes), self.now)  # type: ignore[arg-type]
        self.tick()
        return answer

    def gather(self) -> None:
        """All come."""
        for rank in range(self.count):
            self.hello(rank)

    def back(self, rank: int, **changes: object) -> None:
        """A member whose supervisor was killed comes back."""
        self.gang.gone(rank, self.now)
        self.incarnations[rank] = self.incarnations.get(rank, 0) + 1
        self.hello(rank, attempt=self.ledger.attempt, **changes)

    def says(self, rank: int, message: Message) -> None:
        """A member says something."""
        self.gang.heard(rank, message, self.now)
        self.tick()

    def ends(self, rank: int, code: int = 1, *signs: Sign, **changes: object) -> None:
        """A member's part of the attempt is over."""
        end: stream.End = "ok" if code == 0 else "failed"
        report = Report(self.ledger.attempt, end, code, signs=signs)
        self.says(rank, messages.Finished(replace(report, **changes)))  # type: ignore[arg-type]

    def tick(self, seconds: float = 0.0) -> None:
        """Time passes, in steps that no deadline is lost between."""
        until = self.now + seconds
        while True:
            self.gang.tick(self.now)
            self.act()
            if self.now >= until:
                return
            self.now = min(until, self.now + 1.0)

    def last(self, rank: int) -> Message:
        """What a member was told last."""
        return self.told[rank][-1]

    def decided(self) -> list[stream.Decided]:
        """All decisions so far."""
        return [line for line in self.said if isinstance(line, stream.Decided)]
