"""What a container of the run's own image got on a node, with the mounts and limits of a run. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """One container."""

    node: str
