"""A container of the run's own image on every node, with the limits and mounts of a run."""

from __future__ import annotations

from clusterft.checks import Survey
from clusterft.checks.examination import Wanted
from clusterft.facts.box import Box
from clusterft.probing.crew import Crew
from clusterft.remote import Unreachable


def open_(crew: Crew, survey: Survey, wanted: Wanted) -> dict[str, Box | Unreachable | str]:
    """One each; words of a node that could make none."""
    return {name: Box(name) for name in survey.facts}
