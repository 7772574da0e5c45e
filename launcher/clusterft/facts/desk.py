"""What is true of this machine, the controller, that matters to a cluster: the modes of its own files. Pure."""

from __future__ import annotations

from typing import NamedTuple


class OwnFile(NamedTuple):
    """A file or directory of ours with another mode than it must have."""

    path: str
    mode: int
    wanted: int


class Desk(NamedTuple):
    """The controller at one moment."""

    loose: tuple[OwnFile, ...] = ()
