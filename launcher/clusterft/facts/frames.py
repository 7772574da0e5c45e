"""The probe's output -> its sections, whatever a noisy shell has printed around them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from clusterft.facts.probe import FRAME, section_names


class Unreadable(ValueError):
    """The output holds no complete answer of the probe."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the probe was given and when it was away, both needed to read its answer."""

    word: str
    peers: tuple[str, ...] = ()
    disks: tuple[str, ...] = ()
    sent: float = 0.0  # unix seconds on the controller
    received: float = 0.0


def sections(output: str, asked: Asked) -> dict[str, str]:
    """The answer to `facts.script`: section -> its text."""
    return framed(output, asked.word, section_names(asked.peers, asked.disks))


def framed(output: str, word: str, names: Iterable[str]) -> dict[str, str]:
    """Section -> its text; Unreadable when the frames are not all there."""
    frame = FRAME.format(word=word)
    found: dict[str, str] = {}
    name = None
    for line in output.splitlines(keepends=True):
        # A .bashrc may print without a newline, so a frame is looked for at the end of a line too.
        before, framed, after = line.partition(frame)
        if framed:
            if name is not None and before:
                found[name] += before
            name = after.strip()
            found[name] = ""
        elif name is not None:
            found[name] += line
    if name != "end":
        raise Unreadable(f"the probe's answer ends after section {name!r}")
    missing = set(names) - found.keys()
    if missing:
        raise Unreadable(f"the probe's answer lacks {', '.join(sorted(missing))}")
    return found


def whole(text: str) -> int | None:
    """A whole number, or None for anything else that a program prints in its place."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None
