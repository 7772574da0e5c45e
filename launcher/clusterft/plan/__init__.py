"""(JobSpec, Cluster, facts) -> LaunchPlan: the very object that `--dry-run` prints and `apply` executes."""

from clusterft.plan.launch import LaunchPlan, NodePlan, PlannedFile, Request, build, config_digest
from clusterft.plan.part import Part
from clusterft.plan.program import STAGES, Prep

__all__ = ["STAGES", "LaunchPlan", "NodePlan", "Part", "PlannedFile", "Prep", "Request", "build", "config_digest"]
