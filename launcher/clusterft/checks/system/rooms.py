"""Checks of the room that a node's own directories have: bytes, inodes, and whether they can be written at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clusterft.checks import docker_room
from clusterft.checks.host import FEW_INODES
from clusterft.checks.sizes import size
from clusterft.facts import Mount, NodeFacts
from clusterft.facts.health.host import DOCKER, HOME, SCRATCH, SHARED, TMP, HostHealth, Volume
from clusterft.findings import Finding

_MIB, _GIB = 2**20, 2**30
_LITTLE = 0.05  # of a filesystem: what is left before it is full, if that is also few bytes
_LITTLE_INODES = 0.01
_DISKS = frozenset("ext2 ext3 ext4 xfs btrfs f2fs jfs reiserfs bcachefs zfs".split())


@dataclass(frozen=True, slots=True)
class Need:
    """A directory of a run on a node: below `least` bytes nothing starts, below `enough` it soon ends."""

    volume: Volume
    directory: str
    least: int
    enough: int
    vital: bool
    free_up: str
    files: int = FEW_INODES


def needs(facts: NodeFacts, health: HostHealth, shared: str | None, shared_bytes: int) -> Iterator[Need]:
    """The directories that matter. What Docker keeps is judged by its own figures, see `docker`."""
    home = facts.home or "the home directory"
    biggest = "sudo du -xh {} --max-depth=2 | sort -h | tail -n 20   names what is big"
    for name, directory, least, enough, vital in (
        (HOME, home, 16 * _MIB, _GIB, True),
        (SCRATCH, SCRATCH, 64 * _MIB, _GIB, True),
        (TMP, TMP, 16 * _MIB, 256 * _MIB, False),
        (SHARED, shared or "", shared_bytes, 20 * _GIB, True),
    ):
        volume = health.volume(name)
        if volume and directory:
            yield Need(volume, directory, least, enough, vital, biggest.format(volume.mounted_on))


def disk_full(node: str, need: Need) -> Iterator[Finding]:
    """os.disk-full: a fail when the run cannot have what it needs, a warning when little is left."""
    volume = need.volume
    share = volume.free / volume.size if volume.size > 0 else 1.0
    full = volume.free < need.least
    if not full and not (share < _LITTLE and volume.free < need.enough):
        return
    fail = full and need.vital
    yield Finding(
        id="os.disk-full",
        status="fail" if fail else "warn",
        nodes=(node,),
        summary=f"{'no room' if full else 'little room is left'} for {need.directory}",
        evidence=f"{size(volume.free)} of {size(volume.size)} free on {volume.mounted_on}; "
        f"{size(need.least if full else need.enough)} {'needed' if full else 'is soon used'}",
        cause="the disk is full" if full else "less than 5 % of the disk is free",
        fix=(need.free_up, f"then remove what is not needed any more from {volume.mounted_on}"),
        needs_root=True,
        blast_radius=f"what is removed from {volume.mounted_on}",
    )


def inodes(node: str, need: Need) -> Iterator[Finding]:
    """os.inodes: room for bytes, and none for files."""
    volume = need.volume
    if volume.inodes is None or volume.free_inodes is None:
        return
    none = volume.free_inodes < min(need.files, volume.inodes // 10)
    few = volume.free_inodes < volume.inodes * _LITTLE and volume.free_inodes < 10 * need.files
    if none or few:
        yield Finding(
            id="os.inodes",
            status="fail" if none and need.vital else "warn",
            nodes=(node,),
            summary=f"{'no' if none else 'few'} more files can be made in {need.directory}: inodes run out",
            evidence=f"{volume.free_inodes} of {volume.inodes} inodes free on {volume.mounted_on}; "
            f"{size(volume.free)} free",
            cause="very many small files",
            fix=(
                f"sudo du -x --inodes {volume.mounted_on} | sort -n | tail -n 20   names where they lie",
                f"then delete small files on {volume.mounted_on}, such as caches",
            ),
            needs_root=True,
            blast_radius=f"what is removed from {volume.mounted_on}",
        )


def read_only(node: str, facts: NodeFacts, health: HostHealth, wanted: dict[str, str]) -> Iterator[Finding]:
    """os.ro-fs: a directory that a run writes to lies on a read-only filesystem; `wanted` is path -> for what.

    Others may be so on purpose: the root of an immutable system counts only if /etc/fstab means it otherwise.
    """
    told: set[str] = set()
    mounts = {mount.target: mount for mount in facts.mounts or ()}  # the last one mounted on a place lies on top
    remounted = [line.words for line in health.kernel or () if "emounting filesystem read-only" in line.words]
    for place, purpose in wanted.items():
        mount = mounts.get(place)
        if mount and place not in told and mount.read_only:
            told.add(place)
            yield _read_only(node, mount, purpose, remounted)
    root = mounts.get("/")
    meant = health.root_options is None or "ro" in health.root_options
    if root and "/" not in told and root.fstype in _DISKS and root.read_only and not meant:
        yield _read_only(node, root, "the system itself; /etc/fstab says it can be written", remounted)


def _read_only(node: str, mount: Mount, purpose: str, remounted: list[str]) -> Finding:
    device = mount.source.rpartition("/")[2]
    lines = [line for line in remounted if f"({device}" in line]
    disk = mount.source.startswith("/dev/")
    broken = disk and bool(lines)
    steps = (
        f"sudo dmesg | grep {device}   tells whether the disk has errors",
        f"sudo umount {mount.target} && sudo fsck {mount.source} && sudo mount {mount.target}"
        if mount.target != "/"
        else f"boot a rescue system and run: fsck {mount.source}",
    )
    remount = f"sudo mount -o remount,rw {mount.target}"
    return Finding(
        id="os.ro-fs",
        status="fail",
        nodes=(node,),
        summary=f"{mount.target} is mounted read-only ({purpose})",
        evidence="\n".join((f"{mount.source} {mount.target} {mount.fstype} {mount.options}", *lines[-3:])),
        cause="the kernel stopped writing after an error of the disk"
        if broken
        else "mounted so by somebody, or by the kernel after an error of the disk",
        fix=(*steps, f"{remount}   (once the disk is found well)")
        if broken
        else (remount, *(steps if disk else ())),
        needs_root=True,
        blast_radius=f"all that uses {mount.target}",
    )


def docker(facts: NodeFacts, health: HostHealth) -> Need | None:
    """Where the engine keeps images; how big that is, is known from whatever lies on the same disk."""
    seen = facts.docker
    if seen is None or seen.free_bytes is None or seen.mounted_on is None:
        return None
    beside = next((one for one in health.volumes if one.mounted_on == seen.mounted_on), None)
    size, total = (beside.size, beside.inodes) if beside else (0, None)
    volume = Volume(DOCKER, seen.mounted_on, size, seen.free_bytes, total, seen.free_inodes)
    return Need(volume, seen.store or "Docker's data", 256 * _MIB, 20 * _GIB, True, docker_room.PRUNE)
