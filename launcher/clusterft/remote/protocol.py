"""What can be done on a node, whatever carries it. Commands are argv tuples; every one has a deadline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from clusterft.remote.stream import Stream
from clusterft.remote.unreachable import Unreachable

__all__ = ["Asker", "Completed", "Lines", "Remote", "Stream", "Unreachable"]

SILENCE_SECONDS = 45.0  # a follower says something every 10 s; beyond this the line is dead


class Completed(NamedTuple):
    """A command that ended by itself."""

    code: int
    out: str
    err: str


class Lines(Protocol):
    """The output of a running command, line by line; ends when the command does or after close()."""

    def __iter__(self) -> Iterator[str]: ...

    def code(self, seconds: float) -> int:
        """The command's exit code, once all lines are read; Unreachable when the connection broke before it."""

    def complaint(self) -> str:
        """The end of what it said on stderr."""

    def close(self) -> None:
        """Stop reading; safe from another thread, and more than once."""


class Remote(Protocol):
    """An open way to one node."""

    def run(self, argv: tuple[str, ...], *, stdin: bytes = b"", seconds: float = 30.0) -> Completed:
        """Run to the end; Unreachable when the deadline passes or the connection breaks."""

    def lines(self, argv: tuple[str, ...], *, silence: float | None = SILENCE_SECONDS) -> Lines:
        """Start a command and follow its stdout; Unreachable when nothing is heard for so long."""

    def stream(self, argv: tuple[str, ...]) -> Stream:
        """Start a command and talk with it, both ways."""

    def close(self) -> None:
        """Let go of the connection."""


class Asker(Protocol):
    """The person at the terminal. What they type is held in memory, for this command alone."""

    def passphrase(self, key: str) -> str | None:
        """The passphrase of an encrypted key file; None gives the key up."""

    def password(self, login: str) -> str | None:
        """The password of user@host, which then serves for this user on all nodes; None gives up."""
