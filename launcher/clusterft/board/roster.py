"""Roster: what is known of each node while `up`, `down` or `push` is at work. Pure; events in, rows out.

A node that fails a stage is out: its finding stays, and what was done there before it stays too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from clusterft.events import Progress, Settled
from clusterft.findings import Finding


@dataclass(slots=True)
class Row:
    """One node."""

    node: str
    stage: str = ""  # what it is at
    words: str = ""
    done: int | None = None
    total: int | None = None
    passed: list[str] = field(default_factory=list)  # stages that are behind it
    changes: list[str] = field(default_factory=list)
    failure: Finding | None = None


class Roster:
    """All nodes, in the hostfile's order, and what the controller itself is at."""

    def __init__(self, nodes: tuple[str, ...], stages: tuple[str, ...]) -> None:
        self.stages = stages
        self.rows = {node: Row(node) for node in nodes}
        self.controller = ""

    def see(self, event: Progress | Settled) -> None:
        """Take one event in."""
        if isinstance(event, Progress) and not event.node:
            self.controller = event.words
            return
        row = self.rows[event.node]
        if isinstance(event, Progress):
            row.stage, row.words, row.done, row.total = event.stage, event.words, event.done, event.total
            return
        row.words, row.done, row.total = "", None, None
        if isinstance(event.outcome, Finding):
            row.stage, row.failure = event.stage, event.outcome
        else:
            row.stage = ""
            if event.stage not in row.passed:
                row.passed.append(event.stage)
            row.changes += event.outcome

    @property
    def up(self) -> tuple[str, ...]:
        """The nodes that nothing has stopped."""
        return tuple(name for name, row in self.rows.items() if row.failure is None)

    @property
    def failures(self) -> tuple[Finding, ...]:
        """What stopped the others; one finding that stops several nodes is said once."""
        return tuple(dict.fromkeys(row.failure for row in self.rows.values() if row.failure))


@dataclass(frozen=True, slots=True)
class Standing:
    """What a node is, for the table at the end; "" where that is not known."""

    node: str
    address: str = ""
    gpus: str = ""
    driver: str = ""
    image: str = ""
    shared: str = ""
    spare: bool = False


@dataclass(frozen=True, slots=True)
class Muster:
    """What `up` came to."""

    cluster: str
    roster: Roster
    standings: tuple[Standing, ...]
    findings: tuple[Finding, ...]  # of the checks; what stopped a node later is in the roster
    tag: str | None  # of the image that every node now has
    controller: tuple[str, ...]  # what changed on the controller
    seconds: float
    sent: int = 0  # bytes of the image that left the controller

    @property
    def all_findings(self) -> tuple[Finding, ...]:
        """The checks' findings and what stopped a node later, each once."""
        return tuple(dict.fromkeys((*self.findings, *self.roster.failures)))

    @property
    def complete(self) -> bool:
        """Whether every node of the hostfile is up."""
        return not self.roster.failures
