"""What every node could do in the shared directory: the storage proof. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """The proof."""

    directory: str
