"""The checks of the job and data layers that can be judged before a run."""

from __future__ import annotations

from clusterft.checks.check import Check

CHECKS: tuple[Check, ...] = ()
