"""The disk that virtual machines start from: a small Debian with a kernel and NFS.

Owns building it once, without root's services and without a network of its own, and
keeping it. Refuses to know anything of one lab: name, keys and role come to a machine
on a second disk at its first boot.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .engine import cache_dir
from .packages import debian_mirror
from .proc import run

_SUITE = "bookworm"
_PACKAGES = (
    "linux-image-cloud-amd64,initramfs-tools,kmod,openssh-server,nfs-kernel-server,"
    "nfs-common,iproute2,iptables,procps"
)
_SIZE = "2G"
# First process of a machine: everything else comes with the lab's own disk.
_INIT = """\
#!/bin/sh
mount -o remount,rw /
[ -e /etc/lab/boot ] || tar -xf /dev/vdc -C /
exec /bin/sh /etc/lab/boot
"""


@dataclass(frozen=True)
class VmImage:
    """What qemu needs to start a machine."""

    disk: Path
    kernel: Path
    initrd: Path


def vm_image() -> VmImage:
    """The cached image; made if nobody has yet."""
    digest = hashlib.sha256(f"{_SUITE}{_PACKAGES}{_SIZE}{_INIT}".encode()).hexdigest()[:12]
    place = cache_dir() / f"vm-{digest}"
    image = VmImage(place / "root.img", place / "vmlinuz", place / "initrd")
    with (cache_dir() / "vm.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not place.exists():
            _build(place)
    return image


def _build(place: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix="vm-new-", dir=place.parent))
    try:
        root, made = work / "root", work / "made"
        argv = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root)]
        run([*argv, *debian_mirror()], timeout=900)
        init = root / "sbin" / "lab-init"
        init.write_text(_INIT)
        init.chmod(0o755)
        for litter in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc"):
            shutil.rmtree(root / litter, ignore_errors=True)
        made.mkdir()
        shutil.copy(next((root / "boot").glob("vmlinuz-*")), made / "vmlinuz")
        shutil.copy(next((root / "boot").glob("initrd.img-*")), made / "initrd")
        disk = ["-d", str(root), str(made / "root.img"), _SIZE]
        run(["mke2fs", "-q", "-t", "ext4", *disk], timeout=300)
        for old in place.parent.glob("vm-[0-9a-f]*"):
            shutil.rmtree(old)
        made.rename(place)
    finally:
        shutil.rmtree(work)
