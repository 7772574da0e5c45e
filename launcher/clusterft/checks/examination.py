"""Examination: all that doctor has seen of a cluster, and why it has not seen the rest.

Nothing in here is a judgement. What was asked for and could not be had is in `absent`, by thing and node; what was
never asked for is in `unasked`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

from clusterft.checks import networks
from clusterft.checks.survey import Survey
from clusterft.facts.box import Box
from clusterft.facts.deep import Deep
from clusterft.facts.desk import Desk
from clusterft.facts.health import Health
from clusterft.facts.holdings import Holding
from clusterft.facts.image import Identity
from clusterft.facts.imports import Imports
from clusterft.facts.links import Links
from clusterft.facts.nearby import Nearby
from clusterft.facts.rehearsal import Rehearsal
from clusterft.facts.share import Share, Trial
from clusterft.facts.sources import Named, State
from clusterft.spec import JobSpec

T = TypeVar("T")

# facts: the probe of `up`; health: doctor's own; links: the port matrix; share: the storage proof; box: a
# container of the run's image; imports: the job's Python where there are no containers; holdings: what nodes have
# of the job's data; rehearsal: a rank of the job on each; deep: collectives and cards at work; job: job.yaml,
# which may not be given.
Thing = Literal["facts", "health", "links", "share", "box", "imports", "holdings", "rehearsal", "deep", "job"]


class Absence(NamedTuple):
    """Why a thing is not there for a node: the id of a finding that explains it, or words."""

    id: str
    words: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What training on this cluster will ask of it; from the job, else from what `up` remembers."""

    device: Literal["cpu", "cuda"] = "cuda"
    contained: bool = True
    shared: str | None = None
    shared_bytes: int = 128 * 2**20
    port: int = 29500  # of the rendezvous
    tag: str | None = None  # of the image
    image: Identity | None = None  # what `up` brought, where that is known
    owner: tuple[int, int] | None = None  # UID:GID of a run's processes
    job: JobSpec | None = None
    deepspeed: str | None = None  # the text of the configuration that a script's arguments name


@dataclass(frozen=True)  # without slots, for what is worked out once
class Examination:
    """A cluster at one moment."""

    wanted: Wanted
    survey: Survey
    desk: Desk = Desk()
    health: Mapping[str, Health] = field(default_factory=dict)
    links: Links | None = None
    share: Share | None = None
    boxes: Mapping[str, Box] = field(default_factory=dict)
    imports: Mapping[str, Imports] = field(default_factory=dict)
    holdings: Mapping[str, Mapping[str, Holding]] = field(default_factory=dict)  # node -> path -> what is there
    rehearsal: Rehearsal | None = None
    deep: Deep | None = None
    nearby: Mapping[str, Nearby | None] = field(default_factory=dict)  # where the job keeps copies on nodes
    sources: Mapping[str, tuple[State, ...]] = field(default_factory=dict)  # node -> what the job reads, in order
    named: tuple[Named, ...] = ()  # the first files of the job's tables
    weights: Mapping[str, int] | None = None  # of the job's model, by part, where its files could be read
    absent: Mapping[Thing, Mapping[str, Absence]] = field(default_factory=dict)
    unasked: Mapping[Thing, str] = field(default_factory=dict)
    _worked_out: dict[object, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def dialled(self) -> Mapping[str, str]:
        """Node -> the address by which the others dial it, as training will."""
        if self.links and self.links.addresses:
            return self.links.addresses
        return {name: place.ip for name, place in networks.choose(self.survey).places.items()}

    @property
    def nodes(self) -> tuple[str, ...]:
        """All active nodes, in the hostfile's order."""
        return tuple(node.name for node in self.survey.cluster.active)

    def trial(self, node: str) -> Trial | None:
        """A node's part of the storage proof."""
        return self.share.trials.get(node) if self.share else None

    def once(self, work: Callable[[Examination], T]) -> T:
        """What several checks read, worked out for the first of them."""
        if work not in self._worked_out:
            self._worked_out[work] = work(self)
        found: T = self._worked_out[work]
        return found
