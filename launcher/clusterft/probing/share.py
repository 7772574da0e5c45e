"""The storage proof: what each node can do in the shared directory, as the run's user, and see of the others."""

from __future__ import annotations

from clusterft.checks import Survey
from clusterft.checks.examination import Wanted
from clusterft.facts.share import Share
from clusterft.probing.crew import Crew


def prove(crew: Crew, survey: Survey, wanted: Wanted) -> Share:
    """All of it."""
    return Share(wanted.shared or "")
