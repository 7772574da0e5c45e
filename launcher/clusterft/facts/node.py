"""The probe's output -> NodeFacts. Pure; what could not be read is None, never a default."""

from __future__ import annotations

import re
from dataclasses import dataclass

from clusterft.facts.probe import FRAME


class Unreadable(ValueError):
    """The output holds no complete answer of the probe."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA card as nvidia-smi describes it; memory in MiB."""

    index: int
    uuid: str
    name: str
    memory: int
    used: int
    driver: str


@dataclass(frozen=True, slots=True)
class Disk:
    """Room in a directory (or in the parent it would be made in)."""

    directory: str
    device: str
    mounted_on: str
    free_bytes: int
    free_inodes: int | None
    writable: bool


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node at one moment; `routes` are (peer, interface, source address)."""

    node: str
    clock_offset: float | None  # seconds that the node's clock is ahead of the controller's
    boot_id: str | None
    hostname: str | None
    kernel: str | None
    uid: int | None
    gid: int | None
    user: str | None
    home: str | None
    cores: int | None
    memory: int | None  # bytes
    memory_available: int | None
    shm: int | None  # bytes
    listening: frozenset[int] | None
    gpus: tuple[Gpu, ...]
    disks: tuple[Disk, ...]
    routes: tuple[tuple[str, str, str], ...]
    controller_route: tuple[str, str] | None  # (interface, own address) towards the controller


@dataclass(frozen=True, slots=True)
class Asked:
    """What the probe was given and when it was away, both needed to read its answer."""

    word: str
    peers: tuple[str, ...] = ()
    disks: tuple[str, ...] = ()
    sent: float = 0.0  # unix seconds on the controller
    received: float = 0.0


def parse(node: str, output: str, asked: Asked) -> NodeFacts:
    """Read one node's answer; Unreadable when the frames are not all there."""
    sections = _sections(output, asked.word)
    user = sections["user"].split()
    memory = dict(re.findall(r"(\w+):\s+(\d+) kB", sections["memory"]))
    return NodeFacts(
        node=node,
        clock_offset=_offset(sections["clock"], asked),
        boot_id=sections["boot"].strip() or None,
        hostname=sections["hostname"].strip() or None,
        kernel=sections["kernel"].strip() or None,
        uid=int(user[0]) if len(user) == 3 else None,
        gid=int(user[1]) if len(user) == 3 else None,
        user=user[2] if len(user) == 3 else None,
        home=sections["home"].rstrip("\n") or None,
        cores=_whole(sections["cpu"]),
        memory=_kilobytes(memory.get("MemTotal")),
        memory_available=_kilobytes(memory.get("MemAvailable")),
        shm=_df(sections["shm"], 1),
        listening=_ports(sections["listening"]),
        gpus=tuple(_gpus(sections["gpus"])),
        disks=_disks(sections, asked.disks),
        routes=_routes(sections, asked.peers),
        controller_route=_route(sections["controller"]),
    )


def _sections(output: str, word: str) -> dict[str, str]:
    frame = FRAME.format(word=word)
    sections: dict[str, str] = {}
    name = None
    for line in output.splitlines(keepends=True):
        # A .bashrc may print without a newline, so a frame is looked for at the end of a line too.
        before, found, after = line.partition(frame)
        if found:
            if name is not None and before:
                sections[name] += before
            name = after.strip()
            sections[name] = ""
        elif name is not None:
            sections[name] += line
    if name != "end":
        raise Unreadable(f"the probe's answer ends after section {name!r}")
    return sections


def _offset(text: str, asked: Asked) -> float | None:
    try:
        there = float(text)
    except ValueError:
        return None  # a date without %N prints a letter
    return there - (asked.sent + asked.received) / 2


def _whole(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdigit() else None


def _kilobytes(text: str | None) -> int | None:
    return None if text is None else int(text) * 1024


def _df(text: str, column: int) -> int | None:
    """A figure of the last line of `df -Pk`, in bytes; counted from the percent sign, as names may hold spaces."""
    match = re.search(r"(\d+)\s+(\d+)\s+(-?\d+)\s+\d+%\s+/.*\Z", text.rstrip("\n").rpartition("\n")[2])
    return int(match.group(column)) * 1024 if match else None


def _ports(text: str) -> frozenset[int] | None:
    ports = frozenset(int(entry.rpartition(":")[2], 16) for entry in text.split())
    return ports or None  # no listener at all means that it could not be read


def _gpus(text: str) -> list[Gpu]:
    cards = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 6 and fields[0].isdigit() and fields[3].isdigit() and fields[4].isdigit():
            cards.append(Gpu(int(fields[0]), fields[1], fields[2], int(fields[3]), int(fields[4]), fields[5]))
    return cards


def _disks(sections: dict[str, str], directories: tuple[str, ...]) -> tuple[Disk, ...]:
    found = []
    for index, directory in enumerate(directories):
        lines = sections[f"disk.{index}"].splitlines()
        blocks = re.match(r"(.+?)\s+\d+\s+\d+\s+(-?\d+)\s+\S+\s+(/.*)", lines[2]) if len(lines) == 5 else None
        if blocks:
            # A filesystem that makes inodes as it goes (btrfs) says 0 of 0, which is not "full".
            inodes = re.match(r".+?\s+0*[1-9]\d*\s+\d+\s+(\d+)\s+\S+\s+/", lines[4])
            found.append(
                Disk(
                    directory=directory,
                    device=blocks.group(1),
                    mounted_on=blocks.group(3),
                    free_bytes=int(blocks.group(2)) * 1024,
                    free_inodes=int(inodes.group(1)) if inodes else None,
                    writable=lines[0] == "yes",
                )
            )
    return tuple(found)


def _routes(sections: dict[str, str], peers: tuple[str, ...]) -> tuple[tuple[str, str, str], ...]:
    found = []
    for index, peer in enumerate(peers):
        route = _route(sections[f"route.{index}"])
        if route:
            found.append((peer, *route))
    return tuple(found)


def _route(text: str) -> tuple[str, str] | None:
    device, source = re.search(r"\bdev (\S+)", text), re.search(r"\bsrc (\S+)", text)
    return (device.group(1), source.group(1)) if device and source else None
