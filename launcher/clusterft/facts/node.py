"""The probe's output -> NodeFacts. Pure; what could not be read is None, never a default."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass

from clusterft.facts.probe import FRAME, section_names


class Unreadable(ValueError):
    """The output holds no complete answer of the probe."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA card as nvidia-smi describes it; memory in MiB, None where the driver does not tell."""

    index: int
    uuid: str
    name: str
    memory: int | None
    used: int | None
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
    login_address: str | None = None  # the node's own IP, on which this SSH login came in


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
    sections = _sections(output, asked)
    user = sections["user"].splitlines()  # a name from a directory service may hold spaces
    if len(user) != 3 or not (user[0].isdecimal() and user[1].isdecimal()):
        user = []
    memory = dict(re.findall(r"(\w+):\s+(\d+) kB", sections["memory"]))
    return NodeFacts(
        node=node,
        clock_offset=_offset(sections["clock"], asked),
        boot_id=sections["boot"].strip() or None,
        hostname=sections["hostname"].strip() or None,
        kernel=sections["kernel"].strip() or None,
        uid=int(user[0]) if user else None,
        gid=int(user[1]) if user else None,
        user=user[2] if user else None,
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
        login_address=_login(sections["login"]),
    )


def _sections(output: str, asked: Asked) -> dict[str, str]:
    frame = FRAME.format(word=asked.word)
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
    missing = set(section_names(asked.peers, asked.disks)) - sections.keys()
    if missing:
        raise Unreadable(f"the probe's answer lacks {', '.join(sorted(missing))}")
    return sections


def _offset(text: str, asked: Asked) -> float | None:
    try:
        there = float(text)
    except ValueError:
        return None  # a date without %N prints a letter
    if not math.isfinite(there):
        return None
    return there - (asked.sent + asked.received) / 2


def _whole(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() else None


def _kilobytes(text: str | None) -> int | None:
    return None if text is None else int(text) * 1024


def _df(text: str, column: int) -> int | None:
    """A figure of the last line of `df -Pk`, in bytes; counted from the percent sign, as names may hold spaces."""
    match = re.search(r"(\d+)\s+(\d+)\s+(-?\d+)\s+\d+%\s+/.*\Z", text.rstrip("\n").rpartition("\n")[2])
    return int(match.group(column)) * 1024 if match else None


def _ports(text: str) -> frozenset[int] | None:
    ports = frozenset(int(port, 16) for port in re.findall(r"^[0-9A-F]+:([0-9A-F]{4})$", text, re.MULTILINE))
    return ports or None  # no listener at all means that it could not be read


def _gpus(text: str) -> list[Gpu]:
    cards = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 6 and fields[0].isdecimal():
            memory, used = _whole(fields[3]), _whole(fields[4])  # "[N/A]" on some boards, and under MIG
            cards.append(Gpu(int(fields[0]), fields[1], fields[2], memory, used, fields[5]))
    return cards


def _disks(sections: dict[str, str], directories: tuple[str, ...]) -> tuple[Disk, ...]:
    found = []
    for index, directory in enumerate(directories):
        lines = sections[f"disk.{index}"].splitlines()
        blocks = re.match(r"(.+?)\s+\d+\s+\d+\s+(-?\d+)\s+\S+\s+(/.*)", lines[2]) if len(lines) in (3, 5) else None
        if blocks:
            # A filesystem that makes inodes as it goes (btrfs) says 0 of 0, which is not "full".
            inodes = re.match(r".+?\s+0*[1-9]\d*\s+\d+\s+(\d+)\s+\S+\s+/", lines[-1] if len(lines) == 5 else "")
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


def _login(text: str) -> str | None:
    """The own side in $SSH_CONNECTION, if other machines may use it: an IP, and not one of a single link."""
    words = text.split()
    try:
        address = ipaddress.ip_address(words[2] if len(words) == 4 else "")
    except ValueError:
        return None
    return None if address.is_unspecified or address.is_link_local else str(address)
