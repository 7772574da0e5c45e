"""Facts -> findings: pure judgement, one module per layer of the check catalogue."""

from clusterft.checks.judge import Demand, judge
from clusterft.checks.survey import Survey, Unreached

__all__ = ["Demand", "Survey", "Unreached", "judge"]
