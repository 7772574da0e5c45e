"""What collectives and cards at work came to: `doctor --deep`. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deep:
    """All of it."""
