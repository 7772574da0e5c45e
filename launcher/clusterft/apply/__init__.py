"""Carrying a LaunchPlan out: start the gang, follow it, stop it, mend it. The only room that changes nodes."""

from clusterft.apply.gang import Gang

__all__ = ["Gang"]
