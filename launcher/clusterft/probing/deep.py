"""Collectives and cards at work, in the run's image: `doctor --deep`."""

from __future__ import annotations

from collections.abc import Callable

from clusterft.checks import Survey
from clusterft.checks.examination import Wanted
from clusterft.facts.deep import Deep
from clusterft.probing.crew import Crew


def run(crew: Crew, survey: Survey, wanted: Wanted, show: Callable[[str], None]) -> Deep:
    """All of it."""
    return Deep()
