"""The checks of the network layer."""

from __future__ import annotations

from clusterft.checks.check import Check

CHECKS: tuple[Check, ...] = ()
