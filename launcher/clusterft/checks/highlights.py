"""The one figure worth showing beside a layer that is well. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from clusterft.checks.check import Layer
from clusterft.checks.examination import Examination
from clusterft.checks.shares import shared_dir
from clusterft.checks.ways import paths


def of(seen: Examination) -> Mapping[Layer, str]:
    """Layer -> a few words."""
    words: dict[Layer, str] = {}
    clocks = [one.host.clock for one in seen.health.values() if one.host.clock]
    if clocks:
        words["host"] = f"clocks ±{max(abs(one.offset) + one.error for one in clocks) * 1000:.0f} ms"
    if seen.desk.logins:
        slowest, count = max(seen.desk.logins), len(seen.desk.logins)
        time = f"{slowest:.1f} s" if slowest >= 1 else f"{slowest * 1000:.0f} ms"
        words["ssh"] = f"{count} login{'s' * (count != 1)} within {time}"
    if seen.links and (pair := paths.slowest(seen.links.flows)):
        words["network"] = pair
    if seen.share and (figures := shared_dir.figures(seen, seen.share)):
        words["storage"] = figures
    return words
