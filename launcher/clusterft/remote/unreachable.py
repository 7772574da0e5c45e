"""Unreachable: why a node did not do what it was asked, in the catalogue's terms; two kinds of it may pass."""

from __future__ import annotations

from clusterft.errors import ClusterftError
from clusterft.findings import Finding


class Unreachable(ClusterftError):
    """The node did not answer, or not in time; `id` is the catalogue's name of the reason."""

    exit_code = 3
    kind = "unreachable"

    def __init__(self, identity: str, words: str, *, fix: tuple[str, ...] = (), cause: str = "") -> None:
        super().__init__(words, remedy="; ".join(fix))
        self.id = identity
        self.fix = fix
        self.cause = cause  # where it is known better than the catalogue can say it

    def finding(self, node: str) -> Finding:
        """The same as a node's outcome."""
        return Finding(self.id, "fail", (node,), f"{node}: {self.what}", cause=self.cause, fix=self.fix)


class Broken(Unreachable):
    """A connection that was open has ended under way; whether the node is lost too, only a new one tells."""

    def __init__(self, words: str = "") -> None:
        super().__init__("ssh.timeout", f"the connection broke: {words}" if words else "the connection broke")


class Partial(Unreachable):
    """Less than an answer has come: a part of it, or nothing at all."""

    def __init__(
        self, words: str, identity: str = "ssh.noisy-shell", *, fix: tuple[str, ...] = (), cause: str = ""
    ) -> None:
        super().__init__(identity, words, fix=fix, cause=cause)
