"""Facts -> findings: pure judgement, one module per layer of the check catalogue."""

from clusterft.checks.gathering import blocked_nodes, gathered
from clusterft.checks.judge import Demand, UpDemand, judge, judge_room, judge_up
from clusterft.checks.survey import Survey, Unreached

__all__ = [
    "Demand",
    "Survey",
    "Unreached",
    "UpDemand",
    "blocked_nodes",
    "gathered",
    "judge",
    "judge_room",
    "judge_up",
]
