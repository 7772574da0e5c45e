"""What a node has before a shipment: its image, its layers, its room, what an earlier try left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from clusterft.findings import Finding
from clusterft.remote import Remote
from clusterft.ship import layout, scripts, words
from clusterft.ship.convoy import Convoy

_SPOOL, _ROOT = "spool", "target"  # the words of the script
_SLACK = 64 << 20  # bytes; directories, journals, the documents
_LOOK_SECONDS = 60.0


class Names(NamedTuple):
    """What the session goes by."""

    reference: str
    session: str
    owner: str


def berth(scratch: PurePosixPath) -> str:
    """How the names of images that arrive begin: an engine is everybody's, a scratch one user's and cluster's."""
    return f"clusterft-arriving:{layout.digest_of(str(scratch).encode())[:16]}"


def passing(scratch: PurePosixPath, owner: str) -> str:
    """The image's name until it is proven; of this shipment alone."""
    return f"{berth(scratch)}-{owner}"


class Room(NamedTuple):
    """What is free where."""

    name: str
    place: str
    free: int
    device: str


@dataclass(frozen=True, slots=True)
class Look:
    """What one node has."""

    has: str  # the Id of the image under its name, proven by creating a container; "" if none
    layers: tuple[tuple[str, ...], ...]  # of every image of its engine
    platform: tuple[str, str]  # os, architecture
    rooms: tuple[Room, ...]  # the spool, then Docker's root; where df said nothing, the disk itself will
    blobs: dict[str, int]  # what an earlier try left: bytes
    zstd: bool = False

    def room_for(self, node: str, need: dict[str, int]) -> Finding | None:
        """Whether the missing layers fit: once in the spool, and twice in Docker's root, which unpacks the stream
        before it registers the layers."""
        whole = sum(need.values())
        if not whole:
            return None
        here = whole - sum(min(self.blobs.get(digest, 0), size) for digest, size in need.items()) + _SLACK
        there = 2 * whole + _SLACK
        takes = {_SPOOL: here, _ROOT: there}
        for room in self.rooms:
            needed = sum(takes[other.name] for other in self.rooms if other.device == room.device)
            if room.free < needed:
                return words.no_room(node, room.place, room.free, needed)
        return None


def look(convoy: Convoy, node: str, remote: Remote, names: Names) -> Look | Finding:
    """Ask the engine, and make the session's directory."""
    target = convoy.targets[node]
    argv = scripts.sh(scripts.LOOK, names.reference, berth(target.scratch), *target.command)
    looked = list(scripts.said(remote.run(argv, seconds=_LOOK_SECONDS).out.splitlines()))
    found = dict(looked)
    if "mute" in found or "looked" not in found:
        return words.mute(node, found.get("mute") or "the look at it broke off")
    session, root = target.scratch / names.session, found["root"]
    opened = open_session(node, remote, str(session), names.owner, root)
    if isinstance(opened, Finding):
        return opened
    system, architecture, *_ = found["engine"].split(" ")
    return Look(
        has=found.get("has", "").partition(" ")[0],
        layers=tuple(_layers(rest) for word, rest in looked if word == "layers"),
        platform=(system, architecture),
        rooms=opened.rooms,
        blobs=opened.blobs,
        zstd="zstd" in found,
    )


class Opened(NamedTuple):
    """A session's directory, ready."""

    rooms: tuple[Room, ...]
    blobs: dict[str, int]


def open_session(node: str, remote: Remote, session: str, owner: str, root: str = "") -> Opened | Finding:
    """Make the session's directory, or find it; `root` is where else room is needed."""
    argv = scripts.sh(scripts.OPEN, session, owner, *filter(None, [root]))
    opened = list(scripts.said(remote.run(argv).out.splitlines()))
    words_of = dict(opened)
    if "full" in words_of:
        return words.full(node, "nothing had arrived")
    if "refused" in words_of or "opened" not in words_of:
        return words.foreign(node, words_of.get("refused", session))
    rooms = _rooms(
        (rest for word, rest in opened if word == "room"), {_SPOOL: "/var/tmp", _ROOT: f"docker's {root}"}
    )
    return Opened(tuple(rooms), dict(_blobs(rest for word, rest in opened if word == "blob")))


def _rooms(lines: Iterable[str], places: Mapping[str, str]) -> Iterable[Room]:
    for line in lines:
        name, free, device = (line.split(" ", 2) + ["", ""])[:3]
        if free.isdecimal():
            yield Room(name, places[name], int(free) * 1024, device)


def _blobs(lines: Iterable[str]) -> Iterable[tuple[str, int]]:
    for line in lines:
        name, _, size = line.rpartition(" ")
        if size.isdecimal():
            yield name.removesuffix(".part"), int(size)


def _layers(rest: str) -> tuple[str, ...]:
    """RootFS of one image; one that its engine cannot read has no layers."""
    _, _, document = rest.partition(" ")
    try:
        return tuple(json.loads(document).get("Layers") or ())
    except ValueError:
        return ()
