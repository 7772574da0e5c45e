"""(JobSpec, Cluster, facts) -> LaunchPlan: the very object that `--dry-run` prints and `apply` executes."""

from clusterft.plan.launch import LaunchPlan, NodePlan, PlannedFile, Request, build, config_digest
from clusterft.plan.part import Part

__all__ = ["LaunchPlan", "NodePlan", "Part", "PlannedFile", "Request", "build", "config_digest"]
