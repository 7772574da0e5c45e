"""What df and /proc/mounts tell -> Disk and Mount. Pure; counts columns from the end, as names hold spaces."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SHARED_KINDS = frozenset(
    "nfs nfs4 cifs smb3 ceph lustre gpfs beegfs glusterfs afs 9p fuse.glusterfs fuse.ceph fuse.sshfs".split()
)

# Those of a disk, or of memory, that one machine has for itself.
_OWN_KINDS = frozenset(
    "ext2 ext3 ext4 xfs btrfs zfs f2fs jfs nilfs2 bcachefs overlay tmpfs vfat msdos exfat ntfs ntfs3".split()
)


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted filesystem of those that hold files."""

    source: str
    target: str
    fstype: str
    options: str

    @property
    def shared(self) -> bool:
        """Whether its kind is one that other machines see too."""
        return self.fstype in _SHARED_KINDS

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written there, whoever asks."""
        return "ro" in self.options.split(",")

    @property
    def own(self) -> bool:
        """Whether its kind is known to be of this machine alone; of many kinds neither is known."""
        return self.fstype in _OWN_KINDS


@dataclass(frozen=True, slots=True)
class Disk:
    """Room in a directory (or in the parent it would be made in)."""

    directory: str
    device: str
    mounted_on: str
    free_bytes: int
    free_inodes: int | None
    writable: bool
    mount: Mount | None = None
    above: str | None = None  # the nearest directory above, of one that is not there
    beside: tuple[str, ...] = ()  # and the directories in that one


def disk(directory: str, text: str, mounts: tuple[Mount, ...] = ()) -> Disk | None:
    """Read what the probe's `room` says of one directory."""
    lines, above, beside = _there(text)
    blocks = re.match(r"(.+?)\s+\d+\s+\d+\s+(-?\d{1,18})\s+\S+\s+(/.*)", lines[2] if len(lines) in (3, 5) else "")
    if not blocks:
        return None
    # A filesystem that makes inodes as it goes (btrfs) says 0 of 0, which is not "full".
    inodes = re.match(r".+?\s+0*[1-9]\d*\s+\d+\s+(\d{1,18})\s+\S+\s+/", lines[-1] if len(lines) == 5 else "")
    over = [mount for mount in mounts if mount.target == blocks.group(3)]
    return Disk(
        directory=directory,
        device=blocks.group(1),
        mounted_on=blocks.group(3),
        free_bytes=int(blocks.group(2)) * 1024,
        free_inodes=int(inodes.group(1)) if inodes else None,
        writable=lines[0] == "yes",
        mount=over[-1] if over else None,  # the last one mounted lies on top
        above=above,
        beside=beside,
    )


def _there(text: str) -> tuple[list[str], str | None, tuple[str, ...]]:
    """What is said of the room; and of a directory that is not there, what is above it and beside its place."""
    lines = text.splitlines()
    at = next((number for number, line in enumerate(lines) if line.startswith("@above ")), None)
    if at is None:
        return lines, None, ()
    names = (line[:-1] for line in lines[at + 1 :] if line.endswith(("/", "@")))  # a link may lead to a directory
    return lines[:at], lines[at].partition(" ")[2], tuple(names)


@dataclass(frozen=True, slots=True)
class Room:
    """What is free on one of the node's own filesystems."""

    mounted_on: str
    device: str
    free_bytes: int


def rooms(text: str) -> tuple[Room, ...] | None:
    """Lines of `df -Pkl`."""
    lines = (re.match(r"(.+?)\s+\d+\s+\d+\s+(\d{1,18})\s+\d+%\s+(/.*)", line) for line in text.splitlines())
    found = [Room(line.group(3), line.group(1), int(line.group(2)) * 1024) for line in lines if line]
    return tuple(found) or None


def size(text: str, column: int) -> int | None:
    """A figure of the last line of `df -Pk`, in bytes; counted from the percent sign."""
    last = text.rstrip("\n").rpartition("\n")[2]
    match = re.search(r"(\d{1,18})\s+(\d{1,18})\s+(-?\d{1,18})\s+\d+%\s+/.*\Z", last)
    return int(match.group(column)) * 1024 if match else None


def mounts(text: str) -> tuple[Mount, ...] | None:
    """Lines of /proc/mounts; None if there are none, as a machine has at least its root."""
    found = []
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) == 6:
            source, target, fstype, options = (plain(field) for field in fields[:4])
            found.append(Mount(source, target, fstype, options))
    return tuple(found) or None


def private(text: str) -> tuple[str, ...]:
    """Where the mounts are that spread nothing, of the same lines."""
    return tuple(plain(line.partition(" ")[2]) for line in text.splitlines() if line.startswith("private /"))


def over(mounts: tuple[Mount, ...], directory: str) -> Mount | None:
    """The mount that a directory lies on: of the longest target, the last one, which lies on top."""
    found = None
    for mount in mounts:
        if (directory + "/").startswith(mount.target.rstrip("/") + "/"):
            found = mount if found is None or len(mount.target) >= len(found.target) else found
    return found


def plain(field: str) -> str:
    """The kernel writes blanks and backslashes as three octal digits."""
    return re.sub(r"\\([0-3][0-7]{2})", lambda match: chr(int(match.group(1), 8)), field)
