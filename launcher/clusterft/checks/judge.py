"""Runs every check that a training job needs over a Survey, in order of dependency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clusterft.checks import controller, gpu, host
from clusterft.checks.survey import Survey
from clusterft.findings import Finding


@dataclass(frozen=True, slots=True)
class Demand:
    """What a job asks of every node."""

    device: Literal["cpu", "cuda"]
    shared: str
    shared_bytes: int  # room that the run needs in the shared dir
    local_bytes: int  # room for logs and files on each node


def judge(survey: Survey, demand: Demand) -> tuple[Finding, ...]:
    """All findings above ok; a node that was not reached is judged by that alone."""
    return (
        *controller.unreached(survey),
        *controller.same_host_twice(survey, share_cards=demand.device == "cpu"),
        *host.clock(survey),
        *host.disks(survey, {demand.shared: demand.shared_bytes}, demand.local_bytes),
        *(gpu.count(survey) if demand.device == "cuda" else ()),
    )
