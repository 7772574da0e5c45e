"""The exceptions that a user meets, and the exit code each one becomes.

ClusterftError          1  clusterft itself broke, or base of the rest
├── UsageError          2  command line, hostfile, job.yaml or setting is wrong
├── Blocked             3  a check found something that stops the work; carries the findings
├── RunFailed           5  the run was started and failed; carries the failure class
└── Interrupted       130  the user stopped it

An error says what is wrong, where, and what mends it. Only `cli` turns one into text and an exit code.
"""

from __future__ import annotations

from clusterft.findings import Finding


class ClusterftError(Exception):
    """Base: a sentence, the place it is about, and a remedy; the last two may be empty."""

    exit_code = 1
    kind = "bug"

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    @property
    def advice(self) -> str:
        """All that would mend it, for who sees no more of the error than this."""
        return self.remedy


class UsageError(ClusterftError):
    """The user's input is wrong; nothing was touched. `excerpt` shows the lines around it, and the hint."""

    exit_code = 2
    kind = "usage"

    def __init__(self, what: str, *, where: str = "", remedy: str = "", excerpt: str = "", hint: str = "") -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.excerpt = excerpt
        self.hint = hint

    @property
    def advice(self) -> str:
        """The hint too, which a person reads in the excerpt."""
        return "; ".join(part for part in (self.hint, self.remedy) if part)


class InvalidFile(UsageError):
    """Several mistakes in one file, each with its own place; all are shown at once."""

    def __init__(self, problems: tuple[UsageError, ...]) -> None:
        first = problems[0]
        super().__init__(
            first.what, where=first.where, remedy=first.remedy, excerpt=first.excerpt, hint=first.hint
        )
        self.problems = problems


class Blocked(ClusterftError):
    """At least one check failed, so nothing was started."""

    exit_code = 3
    kind = "blocked"

    def __init__(
        self, what: str, findings: tuple[Finding, ...], *, remedy: str = "", effect: str = "blocks training"
    ) -> None:
        super().__init__(what, remedy=remedy)
        self.findings = findings
        self.effect = effect


class RunFailed(ClusterftError):
    """A run ended without success; `failure` is its class: oom, nccl, node-lost, config, ..."""

    exit_code = 5
    kind = "run-failed"

    def __init__(self, what: str, *, failure: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.failure = failure


class Interrupted(ClusterftError):
    """The user asked to stop; what was started has been stopped."""

    exit_code = 130
    kind = "interrupted"
