"""The checks of the docker layer: does each node's engine take the work, and give it what a run needs."""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks import docker
from clusterft.checks.check import Check
from clusterft.checks.examination import Examination
from clusterft.findings import Finding


def usable(seen: Examination) -> Iterator[Finding]:
    """Whether there is an engine, and we may use it."""
    return docker.usable(seen.survey, cuda=seen.wanted.device == "cuda")


CHECKS: tuple[Check, ...] = (
    Check(("dk.absent", "dk.down", "dk.perm", "dk.old", "dk.snap", "dk.rootless"), usable, contained=True),
)
