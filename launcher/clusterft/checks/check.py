"""Check: which ids it answers for, what it reads, and what makes it moot. Entry: what is told of an id.

Owns no judgement. A check is a pure function of an Examination; an id that nothing finds says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from clusterft.findings import Finding

if TYPE_CHECKING:
    from clusterft.checks.examination import Examination, Thing

Layer = Literal["controller", "ssh", "host", "docker", "gpu", "network", "rendezvous", "storage", "data", "job"]
LAYERS: tuple[Layer, ...] = (
    "controller",
    "ssh",
    "host",
    "docker",
    "gpu",
    "network",
    "rendezvous",
    "storage",
    "data",
    "job",
)
Found = Literal["facts", "probe", "deep", "log", "up", "train", "never"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One id of the catalogue, in words. `--explain`, `--list-checks` and docs/doctor.md are made of these."""

    id: str
    layer: Layer
    title: str  # what is wrong when it is found, a short sentence without a full stop
    symptom: str  # what a user sees without doctor
    how: str  # how it is found
    mends: tuple[str, ...]  # general; a finding's own fix names the node and the figures
    found: tuple[Found, ...]  # facts: one look at each node; probe: programs that talk; log: of a run that failed
    cause: str = ""
    source: str = ""  # where this is known from
    why_not: str = ""  # for what doctor never finds
    vital: bool = False  # where it cannot be judged, nothing good can be said of the node


@dataclass(frozen=True, slots=True)
class Check:
    """One pure question. What it says of a node where something in `after` failed is not believed, or said."""

    ids: tuple[str, ...]
    find: Callable[[Examination], Iterable[Finding]]
    reads: tuple[Thing, ...] = ("facts",)
    after: tuple[str, ...] = ()  # ids, or prefixes such as "fs."
    cuda: bool = False  # of training on cards only
    contained: bool = False  # of training in containers only
