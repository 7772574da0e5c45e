"""Finding: one answer of one check, the same in a table, in JSON and inside an exception.

Check ids are an API: they are never renamed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warn", "fail", "unknown", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer of one check: what, where, the very evidence, why, and what mends it."""

    id: str  # of the catalogue in docs/doctor.md
    status: Status  # ok, warn, fail, unknown (could not be read), skipped (not asked, or moot)
    nodes: tuple[str, ...]  # that it is about; none where it is about this machine
    summary: str  # what is wrong
    evidence: str = ""  # the very output that shows it
    cause: str = ""  # why it is so
    fix: tuple[str, ...] = ()  # commands or sentences, in order
    needs_root: bool = False
    blast_radius: str = ""  # what applying the fix affects

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of `--json`."""
        return asdict(self)


def blockers(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings that stop the work."""
    return tuple(finding for finding in findings if finding.status == "fail")


# What one step of `up` came to on one node: what it changed there (nothing, if empty), or why it could not.
Outcome = tuple[str, ...] | Finding
