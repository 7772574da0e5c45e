"""The host layer of doctor's look at a node: what is asked, and what the answers say. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clusterft.facts.health.asked import Asked


@dataclass(frozen=True, slots=True)
class HostHealth:
    """What could be read; None where it could not."""


def sections(asked: Asked) -> dict[str, str]:
    """What ends soon."""
    return {}


def stages(asked: Asked) -> dict[str, str]:
    """What may take seconds."""
    return {}


def parse(said: Mapping[str, str], asked: Asked) -> HostHealth:
    """From the sections' texts."""
    return HostHealth()
