"""What can go wrong with the lab, as types.

Owns the exception tree::

    LabError                 the lab could not do what was asked
    └── LabUnavailable       this machine cannot have that weight (a test skips)

Refuses to decide what a caller does about them: pytest turns LabUnavailable
into a skip, the command line into a message and an exit code.
"""

from __future__ import annotations


class LabError(RuntimeError):
    """The lab could not do what was asked; the text says why and what mends it."""


class LabUnavailable(LabError):
    """This machine cannot have that weight of lab."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}: {remedy}")
        self.reason = reason
        self.remedy = remedy
