"""What the lab needs installed on this machine, and installing it on Debian and Ubuntu.

Owns the map from a program to the Debian package that carries it. Refuses to
install anything without root or on another distribution: it says what to install.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterable, Iterator
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
    "openssl": "openssl",
    "docker": "docker.io",
    "dockerd": "docker.io",
    "debootstrap": "debootstrap debian-archive-keyring",
    "dpkg-deb": "dpkg",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
}
_POLICY = Path("/usr/sbin/policy-rc.d")
_once = threading.Lock()


def is_root() -> bool:
    """Whether we may change this machine's network and mounts."""
    return os.geteuid() == 0


def may_change_networks() -> bool:
    """Whether we hold what making namespaces, links and mounts takes, in a container too."""
    if not is_root() or not Path("/proc/self/ns/net").exists():
        return False
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    net_admin, sys_admin = 12, 21
    return bool(held >> net_admin & 1 and held >> sys_admin & 1)


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
    return LabUnavailable(
        f"this machine lacks {', '.join(absent)}",
        f"install the packages {' '.join(_carrying(absent))}",
    )


def ensure(programs: Iterable[str]) -> None:
    """Install what is missing, or say what to install."""
    wanted = list(programs)
    with _once:
        if why := lacking(wanted):
            raise why
        if absent := missing(wanted):
            install(_carrying(absent))


def _carrying(programs: list[str]) -> list[str]:
    return sorted({name for program in programs for name in _PACKAGE_OF[program].split()})


def install(packages: list[str]) -> None:
    """Install Debian packages without asking anything and without starting services."""
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    with _services_stay_off():
        run(["apt-get", "-q", "update"], timeout=180, env=quiet)
        argv = ["apt-get", "-q", "install", "-y", "--no-install-recommends", *packages]
        run(argv, timeout=600, env=quiet)


@contextlib.contextmanager
def _services_stay_off() -> Iterator[None]:
    """A lab needs the program sshd, not a machine that listens on port 22 from then on."""
    try:
        with _POLICY.open("x") as policy:
            # 101 is Debian's word for "action forbidden by policy".
            policy.write("#!/bin/sh\nexit 101\n")
            _POLICY.chmod(0o755)
    except FileExistsError:
        # The machine has a policy of its own.
        yield
        return
    try:
        yield
    finally:
        _POLICY.unlink()


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
