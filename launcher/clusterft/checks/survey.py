"""Survey: what was seen on all nodes at one moment, the thing that checks and plans are made from."""

from __future__ import annotations

from dataclasses import dataclass

from clusterft.facts import NodeFacts
from clusterft.hosts import Cluster


@dataclass(frozen=True, slots=True)
class Unreached:
    """A node that could not be asked, in ssh's own words, under the id of the reason."""

    node: str
    id: str
    words: str
    fix: tuple[str, ...] = ()
    cause: str = ""  # where it is known better than the catalogue can say it


@dataclass(frozen=True, slots=True)
class Survey:
    """All active nodes of a cluster at one moment: each has facts or the reason why not."""

    cluster: Cluster
    facts: dict[str, NodeFacts]
    unreached: tuple[Unreached, ...]
    contacts: dict[str, str]  # node -> the IP address that the controller reaches it by
