"""The checks of the storage layer."""

from __future__ import annotations

from clusterft.checks.check import Check

CHECKS: tuple[Check, ...] = ()
