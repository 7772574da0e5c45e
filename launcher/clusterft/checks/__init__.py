"""Facts -> findings: pure judgement, one module per layer of the check catalogue."""

from clusterft.checks.gathering import blocked_nodes, gathered
from clusterft.checks.job import Foresight, foresight
from clusterft.checks.judge import (
    Demand,
    UpDemand,
    judge,
    judge_foreseen,
    judge_meeting,
    judge_nearby,
    judge_room,
    judge_run_room,
    judge_sources,
    judge_up,
)
from clusterft.checks.run_room import RunRoom
from clusterft.checks.survey import Survey, Unreached

__all__ = [
    "Demand",
    "Foresight",
    "RunRoom",
    "Survey",
    "Unreached",
    "UpDemand",
    "blocked_nodes",
    "foresight",
    "gathered",
    "judge",
    "judge_foreseen",
    "judge_meeting",
    "judge_nearby",
    "judge_room",
    "judge_run_room",
    "judge_sources",
    "judge_up",
]
