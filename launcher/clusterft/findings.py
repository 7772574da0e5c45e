"""Finding: one answer of one check, the same in a table, in JSON and inside an exception.

Check ids are an API: they are never renamed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from clusterft import commands

# Escape sequences, and all control characters but tab and newline.
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

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

    def __post_init__(self) -> None:
        """Words of a node may hold what moves a terminal's cursor or sets its title: nothing of it gets out."""
        for name in ("summary", "evidence", "cause", "blast_radius"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        object.__setattr__(self, "fix", tuple(plain(step) for step in self.fix))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of `--json`."""
        return asdict(self) | {"fix": tuple(commands.shown(step) for step in self.fix)}


def plain(text: str) -> str:
    """Text that a terminal shows as it is, whoever wrote it."""
    if text.isprintable():
        return text
    return _CONTROL.sub("", _SEQUENCE.sub("", text))


def blockers(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings that stop the work."""
    return tuple(finding for finding in findings if finding.status == "fail")


# What one step of `up` came to on one node: what it changed there (nothing, if empty), or why it could not.
Outcome = tuple[str, ...] | Finding
