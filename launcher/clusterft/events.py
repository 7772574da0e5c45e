"""What happens to a run, from the first check to the end: frozen facts that `apply` yields, others only read."""

from __future__ import annotations

from dataclasses import dataclass

from clusterft.findings import Outcome
from clusterft_trainer import stream


@dataclass(frozen=True, slots=True)
class StageDone:
    """A stage of the start is over on all nodes."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Said:
    """A node's supervisor said something."""

    node: str
    line: stream.Line


@dataclass(frozen=True, slots=True)
class Silent:
    """A node cannot be reached at the moment. That is not a death: its part of the run may be well."""

    node: str
    words: str


@dataclass(frozen=True, slots=True)
class HeardAgain:
    """A node that was silent answers."""

    node: str


@dataclass(frozen=True, slots=True)
class Gone:
    """A node's supervisor ended without its last word, or stayed unreachable for too long."""

    node: str
    words: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """The gang is being told to stop, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Replaced:
    """A node stayed lost, and another one has its machine rank from now on."""

    node: str
    by: str


@dataclass(frozen=True, slots=True)
class Replanned:
    """The run goes on as another gang, begun by this controller: these nodes, from this attempt on."""

    nodes: tuple[str, ...]
    attempt: int


@dataclass(frozen=True, slots=True)
class Progress:
    """A node got on with one step of `up` or `push`; bytes where the step moves bytes."""

    node: str  # "" for the controller's own steps, such as the build
    stage: str
    words: str = ""
    done: int | None = None
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """A node is through with one stage of `up`, `down` or `push`: what changed there, or why it could not be."""

    node: str
    stage: str
    outcome: Outcome


Event = StageDone | Said | Silent | HeardAgain | Gone | Stopping | Replaced | Replanned
