"""The one figure worth showing beside a layer that is well. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from clusterft.checks.check import Layer
from clusterft.checks.examination import Examination


def of(seen: Examination) -> Mapping[Layer, str]:
    """Layer -> a few words."""
    words: dict[Layer, str] = {}
    offsets = [one.clock_offset for one in seen.survey.facts.values() if one.clock_offset is not None]
    if offsets:
        words["host"] = f"clocks ±{max(abs(one) for one in offsets) * 1000:.0f} ms"
    return words
