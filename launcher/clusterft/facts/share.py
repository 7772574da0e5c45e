"""What every node could do in the shared directory, and see of the others there: the storage proof. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from clusterft.facts.storage import Mount


class Trouble(NamedTuple):
    """A step that the filesystem refused."""

    step: str  # make, write, see, lock
    errno: int | None
    words: str


class Untried(NamedTuple):
    """Why a node was not asked for something."""

    why: str
    meant: bool = False  # left out on purpose, as others stand for it


class Sight(NamedTuple):
    """When another node's file was read, and whether its directory had to be listed first."""

    seconds: float
    listed: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """One node's part; what it did not get to is None."""

    node: str
    way: Literal["image", "python", "sh"]
    uid: int | None = None
    gid: int | None = None
    hung: str = ""  # the step that did not come back
    trouble: Trouble | None = None
    mount: Mount | None = None  # as seen from inside
    owner: tuple[int, int] | None = None  # of what it wrote, as the filesystem tells it
    free_bytes: int | None = None
    closed: tuple[int, int, str] | None = None  # owner and mode of .clusterft, where runs may not write into it
    too_large: int = 0  # bytes that no file may have there, if that was found
    fsync: float | None = None  # seconds, the best of a few
    rate: float | None = None  # bytes a second at most, while `writers` nodes write
    wanted: tuple[str, ...] = ()  # whose files it looked for
    seen: Mapping[str, Sight] = field(default_factory=dict)
    renewed: Mapping[str, Sight] = field(default_factory=dict)  # the same once they were replaced by a rename
    locks: Mapping[str, str] = field(default_factory=dict)  # fcntl, flock: had, refused, or an error's words
    untried: Mapping[str, Untried] = field(default_factory=dict)  # write, see, renew, lock, speed


@dataclass(frozen=True, slots=True)
class Share:
    """The proof."""

    directory: str
    trials: Mapping[str, Trial] = field(default_factory=dict)
    writers: int = 0  # whose speed was measured, at the same time
    holder: str = ""  # the node that held the locks
    missing: Mapping[str, str] = field(default_factory=dict)  # node -> why it has no trial
    notes: tuple[str, ...] = ()


def sights(body: object) -> dict[str, Sight]:
    """What `see` answered: name -> [seconds, listed]."""
    if not isinstance(body, dict):
        return {}
    return {str(name): Sight(float(one[0]), bool(one[1])) for name, one in body.items() if _pair(one)}


def number(value: Any) -> float | None:
    """A figure of an answer, or None for anything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _pair(one: object) -> bool:
    return isinstance(one, list) and len(one) == 2 and number(one[0]) is not None
