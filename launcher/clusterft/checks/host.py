"""Checks of the operating system of each node: clock, users, memory for sharing and room on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from clusterft.checks.sizes import size
from clusterft.checks.survey import Survey
from clusterft.facts import Disk, Mount
from clusterft.findings import Finding

CLOCK_WARN, CLOCK_FAIL = 2.0, 60.0  # seconds; own thresholds: file times mislead, certificates fail
FEW_INODES = 1000
_NO_POSIX = frozenset("vfat msdos exfat ntfs ntfs3 fuseblk fuse.exfat vboxsf prl_fs drvfs".split())
_NO_RENAME = frozenset("fuse.s3fs fuse.gcsfuse fuse.goofys fuse.rclone fuse.mount-s3 fuse.blobfuse".split())
_SHM_WARN = 2**30  # one rank's loader with a few workers fills less
_OWN_FILES = 16 * 2**20  # keys, known_hosts and the files of a run


def clock(survey: Survey) -> Iterator[Finding]:
    """os.clock: offsets against the controller make first causes and file times unreliable."""
    for name, facts in survey.facts.items():
        if facts.clock_offset is None:
            yield Finding("os.clock", "unknown", (name,), "the clock could not be read")
        elif abs(facts.clock_offset) >= CLOCK_WARN:
            status = "fail" if abs(facts.clock_offset) >= CLOCK_FAIL else "warn"
            side = "ahead of" if facts.clock_offset > 0 else "behind"
            yield Finding(
                id="os.clock",
                status="fail" if status == "fail" else "warn",
                nodes=(name,),
                summary=f"the clock is {abs(facts.clock_offset):.1f} s {side} the controller's",
                evidence=f"offset {facts.clock_offset:+.3f} s, round trip corrected",
                fix=("sudo timedatectl set-ntp true",),
                needs_root=True,
                blast_radius="the node's clock",
            )


def disks(survey: Survey, wanted: dict[str, int], elsewhere: int, files: dict[str, int]) -> Iterator[Finding]:
    """os.disk-full, os.inodes, and directories that cannot be written; bytes and files that each is to take."""
    for name, facts in survey.facts.items():
        for directory in wanted.keys() - {disk.directory for disk in facts.disks}:
            yield Finding("os.disk-full", "unknown", (name,), f"the room for {directory} could not be read")
        for disk in facts.disks:
            at = disk.directory
            yield from room(name, disk, wanted.get(at, elsewhere), files.get(at, FEW_INODES))


def users(survey: Survey) -> Iterator[Finding]:
    """os.uid: files on a share that one node writes and another one may not, as numbers decide and not names."""
    known = [(name, facts.uid, facts.gid) for name, facts in survey.facts.items() if facts.uid is not None]
    if not known:
        return
    head, *measure = known[0]
    for name, *own in known[1:]:
        if own != measure:
            yield Finding(
                id="os.uid",
                status="warn",
                nodes=(name,),
                summary=f"the SSH user has another UID:GID than on {head}, {measure[0]}:{measure[1]}",
                evidence=f"{own[0]}:{own[1]}",
                cause="accounts were made by hand on each machine",
                fix=(f"log in as users with one UID:GID on all nodes: user= in {survey.cluster.path}",),
                blast_radius="the hostfile",
            )


def shm(survey: Survey) -> Iterator[Finding]:
    """os.shm: containers share the host's /dev/shm, which loaders and NCCL fill."""
    for name, facts in survey.facts.items():
        if facts.shm is not None and facts.shm < _SHM_WARN:
            yield Finding(
                id="os.shm",
                status="warn",
                nodes=(name,),
                summary="/dev/shm is small: training may end in `Bus error`",
                evidence=f"{size(facts.shm)}, {size(facts.shm_free or 0)} of it free",
                fix=("sudo mount -o remount,size=50% /dev/shm",),
                needs_root=True,
                blast_radius="memory that programs of the node may share",
            )


def homes(survey: Survey) -> Iterator[Finding]:
    """os.disk-full and fs.squash for the login directory, which holds the node's keys and files of runs."""
    for name, facts in survey.facts.items():
        if facts.home_room is None:
            yield Finding("os.disk-full", "unknown", (name,), "the room in the home directory could not be read")
        else:
            home = replace(facts.home_room, directory=facts.home or facts.home_room.directory)
            yield from room(name, home, _OWN_FILES)


def share(survey: Survey, directory: str) -> Iterator[Finding]:
    """The shared dir: writable, with inodes, on a filesystem that knows renames and locks."""
    for name, facts in survey.facts.items():
        for disk in facts.disks:
            if disk.directory != directory:
                continue
            yield from room(name, disk, _OWN_FILES)
            if disk.mount:
                yield from kind(name, directory, disk.mount)


def kind(node: str, directory: str, mount: Mount) -> Iterator[Finding]:
    """fs.type: a filesystem on which renames, permissions or locks are not what training relies on."""
    if mount.fstype not in _NO_POSIX | _NO_RENAME:
        return
    lacks = "safe renames" if mount.fstype in _NO_RENAME else "permissions, safe renames or locks"
    yield Finding(
        id="fs.type",
        status="warn",
        nodes=(node,),
        summary=f"{directory} lies on {mount.fstype}, which lacks {lacks}",
        evidence=f"{mount.source} on {mount.target} type {mount.fstype}",
        fix=("choose a directory on ext4, xfs or NFS for shared:",),
        blast_radius="job.yaml",
    )


def room(node: str, disk: Disk, wanted: int, files: int = FEW_INODES) -> Iterator[Finding]:
    """One directory: may it be written, and does it have the room."""
    if not disk.writable:
        yield Finding(
            id="fs.squash",
            status="fail",
            nodes=(node,),
            summary=f"{disk.directory} cannot be written by the SSH user",
            evidence=f"{disk.device} on {disk.mounted_on}",
            fix=(f"make {disk.directory} writable for this user",),
            blast_radius=disk.directory,
        )
    if disk.free_bytes < wanted:
        yield Finding(
            id="os.disk-full",
            status="fail",
            nodes=(node,),
            summary=f"{size(disk.free_bytes)} free for {disk.directory}, {size(wanted)} needed",
            evidence=f"{disk.device} on {disk.mounted_on}",
            fix=(f"free room on {disk.mounted_on}, or choose another directory",),
            blast_radius=disk.mounted_on,
        )
    if disk.free_inodes is not None and disk.free_inodes < files:
        yield Finding(
            id="os.inodes",
            status="fail",
            nodes=(node,),
            summary=f"{disk.free_inodes} inodes free for {disk.directory}",
            evidence=f"{disk.device} on {disk.mounted_on}",
            fix=(f"delete small files on {disk.mounted_on}",),
            blast_radius=disk.mounted_on,
        )
