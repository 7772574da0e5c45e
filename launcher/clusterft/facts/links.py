"""What every node could reach of every other: the port matrix. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Links:
    """The matrix."""
