"""The probe's output -> NodeFacts. Pure; what could not be read is None, never a default."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from clusterft.facts import docker, gpu, network, storage
from clusterft.facts.frames import Asked, sections, whole
from clusterft.facts.probe import HOME

UNLIMITED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class System:
    """The operating system, as /etc/os-release names it."""

    name: str | None  # Debian GNU/Linux 12 (bookworm)
    family: tuple[str, ...]  # its id, then what it is like: ("ubuntu", "debian")


@dataclass(frozen=True, slots=True)
class Limits:
    """Soft limits of a login, sizes in bytes; UNLIMITED where there is none."""

    nofile: int | None
    memlock: int | None
    stack: int | None


@dataclass(frozen=True, slots=True)
class DockerGroup:
    """The docker group: who is in it by now, and whether this login already knows."""

    gid: int
    listed: bool  # the user is named as a member
    held: bool  # this very login has the group


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
    gpus: tuple[gpu.Gpu, ...]
    disks: tuple[storage.Disk, ...]
    routes: tuple[tuple[str, str, str], ...]
    controller_route: tuple[str, str] | None  # (interface, own address) towards the controller
    tables: tuple[tuple[str, str], ...] = ()  # (peer, table), where its route is not in main
    login_address: str | None = None  # the node's own IP, on which this SSH login came in
    shm_free: int | None = None
    arch: str | None = None  # as uname says it: x86_64, aarch64
    system: System | None = None
    limits: Limits | None = None
    groups: tuple[str, ...] | None = None
    docker_group: DockerGroup | None = None
    docker: docker.Docker | None = None
    nvidia: gpu.Nvidia | None = None
    addresses: tuple[network.Address, ...] | None = None
    links: tuple[network.Link, ...] | None = None
    infiniband: tuple[network.InfiniBand, ...] | None = None
    mounts: tuple[storage.Mount, ...] | None = None
    firewall: network.Firewall | None = None
    tools: frozenset[str] | None = None  # of probe.TOOLS, those found
    rooms: tuple[storage.Room, ...] | None = None  # on the node's own filesystems
    home_room: storage.Disk | None = None
    private_mounts: tuple[str, ...] = ()  # targets of those that spread nothing into containers

    @property
    def zstd(self) -> bool:
        """Whether zstd can be used; where that is unknown it cannot."""
        return bool(self.tools and "zstd" in self.tools)

    @property
    def home_shared(self) -> bool | None:
        """Whether the home lies on a kind of filesystem that other nodes may see as well."""
        return self.home_room.mount.shared if self.home_room and self.home_room.mount else None

    @property
    def os_name(self) -> str | None:
        """The system's own name for itself."""
        return self.system.name if self.system else None

    @property
    def mtus(self) -> dict[str, int]:
        """Interface -> MTU, of those known."""
        return {link.name: link.mtu for link in self.links or ()}


def parse(node: str, output: str, asked: Asked) -> NodeFacts:
    """Read one node's answer; Unreadable when the frames are not all there."""
    said = sections(output, asked)
    uid, gid, user = _user(said["user"])
    memory = dict(re.findall(r"(\w+):\s+(\d{1,18}) kB", said["memory"]))
    kernel = said["kernel"].strip() or None
    mounts = storage.mounts(said["mounts"])
    rooms = ((disk, f"disk.{index}") for index, disk in enumerate(asked.disks))
    disks = (storage.disk(directory, said[section], mounts or ()) for directory, section in rooms)
    ways = [(peer, said[f"route.{index}"]) for index, peer in enumerate(asked.peers)]
    routes = ((peer, network.route(text)) for peer, text in ways)
    return NodeFacts(
        node=node,
        clock_offset=_offset(said["clock"], asked),
        boot_id=said["boot"].strip() or None,
        hostname=said["hostname"].strip() or None,
        kernel=kernel,
        uid=uid,
        gid=gid,
        user=user,
        home=said["home"].rstrip("\n") or None,
        cores=whole(said["cpu"]),
        memory=_kilobytes(memory.get("MemTotal")),
        memory_available=_kilobytes(memory.get("MemAvailable")),
        shm=storage.size(said["shm"], 1),
        listening=network.ports(said["listening"]),
        gpus=gpu.cards(said),
        disks=tuple(disk for disk in disks if disk),
        routes=tuple((peer, *route) for peer, route in routes if route),
        tables=tuple((peer, table) for peer, text in ways if (table := network.table(text))),
        controller_route=network.route(said["controller"]),
        login_address=network.login(said["login"]),
        shm_free=storage.size(said["shm"], 3),
        arch=kernel.split()[-1] if kernel and len(kernel.split()) == 3 else None,
        system=_system(said["os"]),
        limits=_limits(said["limits"]),
        groups=_groups(said["groups"]),
        docker_group=_docker_group(said["groups"], user),
        docker=docker.parse(said),
        nvidia=gpu.nvidia(said),
        addresses=network.addresses(said["addresses"]),
        links=network.links(said["links"], said["speeds"]),
        infiniband=network.infiniband(said["infiniband"]),
        mounts=mounts,
        firewall=network.firewall(said["firewall"]),
        tools=_tools(said["tools"]),
        rooms=storage.rooms(said["rooms"]),
        home_room=storage.disk(HOME, said["room.home"], mounts or ()),
        private_mounts=storage.private(said["mounts"]),
    )


def _user(text: str) -> tuple[int | None, int | None, str | None]:
    lines = text.splitlines()  # a name from a directory service may hold spaces
    if len(lines) != 3 or whole(lines[0]) is None or whole(lines[1]) is None:
        return None, None, None
    return whole(lines[0]), whole(lines[1]), lines[2]


def _offset(text: str, asked: Asked) -> float | None:
    try:
        there = float(text)
    except ValueError:
        return None  # a date without %N prints a letter
    if not math.isfinite(there):
        return None
    return there - (asked.sent + asked.received) / 2


def _kilobytes(text: str | None) -> int | None:
    return None if text is None else int(text) * 1024


def _system(text: str) -> System | None:
    said = dict(re.findall(r'^(PRETTY_NAME|ID|ID_LIKE)=["\']?(.*?)["\']?$', text, re.MULTILINE))
    if not said:
        return None
    family = f"{said.get('ID', '')} {said.get('ID_LIKE', '')}".split()
    return System(said.get("PRETTY_NAME"), tuple(dict.fromkeys(family)))


def _limits(text: str) -> Limits | None:
    line = re.compile(r"^Max (open files|locked memory|stack size) +(\d{1,18}|unlimited) ", re.MULTILINE)
    said = dict(line.findall(text))
    if not said:
        return None
    figures = {key: UNLIMITED if value == "unlimited" else int(value) for key, value in said.items()}
    return Limits(figures.get("open files"), figures.get("locked memory"), figures.get("stack size"))


def _tools(text: str) -> frozenset[str] | None:
    first, *paths = text.splitlines() or [""]
    return frozenset(path.rpartition("/")[2] for path in paths) if first == "seen" else None


def _groups(text: str) -> tuple[str, ...] | None:
    return tuple(text.split("\n", 1)[0].split()) or None


def _docker_group(text: str, user: str | None) -> DockerGroup | None:
    """By numbers, as names from a directory service may hold spaces."""
    lines = text.splitlines()
    fields = lines[2].split(":") if len(lines) == 3 else []
    gid = whole(fields[2]) if len(fields) == 4 else None
    if gid is None or user is None:
        return None
    held = {whole(word) for word in lines[1].split()}
    return DockerGroup(gid, listed=user in fields[3].split(","), held=gid in held)
