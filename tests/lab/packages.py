"""What the lab needs installed on this machine, and installing it on Debian and Ubuntu.

Owns the map from a program to the Debian package that carries it. Refuses to
install anything without root or on another distribution: it says what to install.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path

from .errors import LabUnavailable
from .proc import run, which

_PACKAGE_OF = {
    "ip": "iproute2",
    "tc": "iproute2",
    "iptables": "iptables",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
    "docker": "docker.io",
    "dockerd": "docker.io",
    "debootstrap": "debootstrap",
    "dpkg-deb": "dpkg",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
}
_once = threading.Lock()


def is_root() -> bool:
    """Whether we may change this machine's network and mounts."""
    return os.geteuid() == 0


def can_install() -> bool:
    """Whether we may install Debian packages here."""
    return is_root() and which("apt-get") is not None and Path("/etc/debian_version").exists()


def missing(programs: Iterable[str]) -> list[str]:
    """Those of the programs that this machine lacks."""
    return [program for program in programs if which(program) is None]


def lacking(programs: Iterable[str]) -> LabUnavailable | None:
    """Why the programs cannot be had here, or None when they are there or can be installed."""
    absent = missing(programs)
    if not absent or can_install():
        return None
    packages = " ".join(sorted({_PACKAGE_OF[program] for program in absent}))
    return LabUnavailable(f"this machine lacks {', '.join(absent)}", f"install the packages {packages}")


def ensure(programs: Iterable[str]) -> None:
    """Install what is missing, or say what to install."""
    wanted = list(programs)
    with _once:
        if why := lacking(wanted):
            raise why
        if absent := missing(wanted):
            install(sorted({_PACKAGE_OF[program] for program in absent}))


def install(packages: list[str]) -> None:
    """Install Debian packages without asking anything and without starting services."""
    quiet = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    run(["apt-get", "-q", "update"], timeout=180, env=quiet)
    argv = ["apt-get", "-q", "install", "-y", "--no-install-recommends", *packages]
    run(argv, timeout=600, env=quiet)


def debian_mirror() -> list[str]:
    """Where this machine gets its Debian packages; nothing on another distribution."""
    if "ID=debian" not in Path("/etc/os-release").read_text().splitlines():
        return []
    apt = Path("/etc/apt")
    for path in [
        apt / "sources.list",
        *sorted((apt / "sources.list.d").glob("*.sources")),
        *sorted((apt / "sources.list.d").glob("*.list")),
    ]:
        text = path.read_text() if path.exists() else ""
        for found in re.finditer(r"^(?:URIs:|deb(?:\s+\[[^]]*\])?)\s+(\S+)", text, re.MULTILINE):
            if found[1].rstrip("/").endswith("/debian"):
                return [found[1]]
    return []
