"""What is shown of an engine's words. Pure."""

from __future__ import annotations


def last(words: str) -> str:
    """The end of a long complaint, without the help that docker adds."""
    lines = [line for line in words.splitlines() if line.strip() and "--help" not in line]
    return "\n".join(lines)[-700:].removeprefix("it ended: ").removeprefix("it could not be started: ")
