"""The checks of the controller layer: is each entry of the hostfile a machine of its own."""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks import controller
from clusterft.checks.check import Check
from clusterft.checks.examination import Examination
from clusterft.findings import Finding


def same_host_twice(seen: Examination) -> Iterator[Finding]:
    """ctl.same-host-twice: two entries that would fight over one machine's cards and ports."""
    return controller.same_host_twice(seen.survey, share_cards=seen.wanted.device == "cpu")


def same_hostname(seen: Examination) -> Iterator[Finding]:
    """ctl.same-hostname: machines with one name."""
    return controller.same_hostname(seen.survey)


CHECKS: tuple[Check, ...] = (
    Check(("ctl.same-host-twice",), same_host_twice),
    Check(("ctl.same-hostname",), same_hostname),
)
