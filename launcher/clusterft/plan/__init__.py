"""(JobSpec, Cluster, facts) -> LaunchPlan: the very object that `--dry-run` prints and `apply` executes."""

from clusterft.plan.launch import LaunchPlan, NodePlan, PlannedFile, Request, build

__all__ = ["LaunchPlan", "NodePlan", "PlannedFile", "Request", "build"]
