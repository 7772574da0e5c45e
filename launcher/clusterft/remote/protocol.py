"""What can be done on a node, whatever carries it. Commands are argv tuples; every one has a deadline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from clusterft.errors import ClusterftError


class Completed(NamedTuple):
    """A command that ended by itself."""

    code: int
    out: str
    err: str


class Unreachable(ClusterftError):
    """The node did not answer, or not in time; `id` is the catalogue's name of the reason."""

    exit_code = 3
    kind = "unreachable"

    def __init__(self, identity: str, words: str, *, fix: tuple[str, ...] = ()) -> None:
        super().__init__(words, remedy="; ".join(fix))
        self.id = identity
        self.fix = fix


class Lines(Protocol):
    """The output of a running command, line by line; ends when the command does or after close()."""

    def __iter__(self) -> Iterator[str]: ...

    def close(self) -> None:
        """Stop reading; safe from another thread, and more than once."""


class Remote(Protocol):
    """An open way to one node."""

    def run(self, argv: tuple[str, ...], *, stdin: bytes = b"", seconds: float = 30.0) -> Completed:
        """Run to the end; Unreachable when the deadline passes or the connection breaks."""

    def lines(self, argv: tuple[str, ...]) -> Lines:
        """Start a command and follow its stdout."""

    def close(self) -> None:
        """Let go of the connection."""
