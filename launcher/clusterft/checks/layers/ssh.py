"""The checks of the ssh layer: can every node be asked at all."""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks import catalogue, controller
from clusterft.checks.check import Check
from clusterft.checks.examination import Examination
from clusterft.findings import Finding

_IDS = tuple(entry.id for entry in catalogue.ALL if entry.layer == "ssh")


def unreached(seen: Examination) -> Iterator[Finding]:
    """ssh.*: in ssh's own words, for whoever could not be asked."""
    return controller.unreached(seen.survey)


CHECKS: tuple[Check, ...] = (Check(_IDS, unreached, reads=()),)
