"""Carrying a LaunchPlan out: start the gang as one, follow it, stop it. The only room that changes nodes."""

from clusterft.apply.gang import Gang

__all__ = ["Gang"]
