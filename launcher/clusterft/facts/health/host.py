"""The host layer of doctor's look at a node: what is asked, and what the answers say. Pure.

What only the kernel's log tells is asked for too, and is None for users who may not read it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from clusterft.facts.frames import whole
from clusterft.facts.health import host_settings
from clusterft.facts.health.asked import Asked
from clusterft.facts.health.host_settings import Apt, Governor, Logind, Sleep
from clusterft.facts.probe import CUT

_TICKS = 100  # of a second, in /proc: the same on all of Linux
HOME, SHARED, DOCKER = "home", "shared", "docker"  # rooms by what they are for; the others are paths
TMP, SCRATCH = "/tmp", "/var/tmp"
_LOCAL = {TMP: TMP, SCRATCH: SCRATCH, DOCKER: "/var/lib/docker"}  # in this order, as the last one may be missing

# None of these texts may change e, which belongs to limit.
# A process that waits in the kernel at three looks, without having run in between. Kernel threads may always wait.
_STUCK = r"""
look() {
  cat /proc/[0-9]*/stat | awk '{ p = $1; s = $0; sub(/^.*\) /, "", s); split(s, f, " ")
    if (f[1] == "D" && int(f[7] / 2097152) % 2 == 0) print p, f[20] }' | head -n 50 |
  while read -r p t; do
    n=$(sed -n 's/^.*ctxt_switches:[[:space:]]*//p' /proc/$p/status | tr '\n' '+')
    echo "$p $t $n $(cat /proc/$p/wchan) $(cat /proc/$p/comm)"
  done
}
cut -d. -f1 /proc/uptime
a=$(look)
[ "$a" ] && { sleep 2; b=$(look); [ "$b" ] && { sleep 3; printf '%s\n==\n%s\n==\n' "$a" "$b"; look; }; }
"""
_KERNEL = (
    "d=$(limit 4 dmesg || limit 5 journalctl -k -b -q -n 20000 -o short-monotonic --no-pager) && echo seen && "
    "cut -d. -f1 /proc/uptime && printf '%s\\n' \"$d\" | "
    "grep -E 'Out of memory: Kill|blocked for more than|emounting filesystem read-only|conntrack: .*table full' | "
    "tail -n 60"
)
# Which of NCCL's files a living process still has; asked only where there are some, as it reads all processes.
_SHM = (
    'echo seen; cd /dev/shm && set -- nccl-* && [ -e "$1" ] && { ls -lnd nccl-* | head -n 300; echo ==; '
    "hear 4 grep -hos '/dev/shm/nccl-[A-Za-z0-9]*' /proc/[0-9]*/maps | sort -u | head -n 600; }"
)
_SECTIONS = {
    "host.ports": "cat /proc/sys/net/ipv4/ip_local_port_range; cat /proc/sys/net/ipv4/ip_local_reserved_ports",
    "host.conntrack": "cd /proc/sys/net/netfilter && "
    "cat nf_conntrack_count nf_conntrack_max nf_conntrack_tcp_timeout_established",
    "host.rp_filter": "grep -s . /proc/sys/net/ipv4/conf/*/rp_filter /dev/null",
    # The kernel does not count ZFS's cache as available, though it is given back.
    "host.arc": "grep -E '^(size|c_min) ' /proc/spl/kstat/zfs/arcstats",
    "host.fstab": "awk '$2 == \"/\" { print $4 }' /etc/fstab",
    **host_settings.SECTIONS,
}
_STAGES = {
    "host.stuck": _STUCK,
    "host.kernel": _KERNEL,
    "host.shm": _SHM,
    **host_settings.STAGES,
}


class Clock(NamedTuple):
    """How far the node's clock is ahead of the controller's, in seconds, and how far that may be off."""

    offset: float
    error: float


class Volume(NamedTuple):
    """The filesystem that a directory lies on; inodes are None where it makes them as it goes."""

    directory: str  # home, shared, or a path
    mounted_on: str
    size: int  # bytes
    free: int  # for those who are not root
    inodes: int | None
    free_inodes: int | None


class Stuck(NamedTuple):
    """A process that slept in the kernel all the while that we looked."""

    pid: int
    age: float  # seconds since it began
    place: str  # in the kernel; empty where this user may not know
    name: str


class KernelLine(NamedTuple):
    """One line of the kernel's log."""

    ago: float | None  # seconds
    words: str


@dataclass(frozen=True, slots=True)
class Shm:
    """NCCL's files in /dev/shm: name -> (owner's UID, bytes), and those that a process still has open."""

    files: Mapping[str, tuple[int, int]]
    held: frozenset[str]


@dataclass(frozen=True, slots=True)
class HostHealth:
    """What could be read; None where it could not."""

    clock: Clock | None = None
    noise: str = ""  # what the shell printed before it ran a command
    ntp: Mapping[str, str] | None = None  # what timedatectl says, and `daemons` that set the clock
    volumes: tuple[Volume, ...] = ()
    stuck: tuple[Stuck, ...] | None = None
    kernel: tuple[KernelLine, ...] | None = None
    shm: Shm | None = None
    port_range: tuple[int, int] | None = None
    reserved_ports: tuple[tuple[int, int], ...] | None = None
    conntrack: tuple[int, int] | None = None  # connections, at most
    forgotten: int | None = None  # seconds after which an idle connection is no longer known
    rp_filter: Mapping[str, int] | None = None  # interface (or all) -> mode
    root_options: tuple[str, ...] | None = None  # of / in /etc/fstab
    logind: Logind | None = None
    sleep: Sleep | None = None
    governor: Governor | None = None
    apt: Apt | None = None
    reclaimable: int | None = None  # bytes of ZFS's cache that it gives back when others want memory

    def volume(self, directory: str) -> Volume | None:
        """The one that a directory lies on."""
        return next((one for one in self.volumes if one.directory == directory), None)


def sections(asked: Asked) -> dict[str, str]:
    """What ends soon."""
    return dict(_SECTIONS)


def stages(asked: Asked) -> dict[str, str]:
    """What may take seconds. Each directory has its own, as any may lie on a share that hangs."""
    rooms = {"host.room.home": _room('"$HOME"'), "host.room.local": _room(" ".join(_LOCAL.values()))}
    if asked.shared:
        rooms["host.room.shared"] = _room(shlex.quote(asked.shared))
    apt = host_settings.APT_STAGE if asked.cuda else {}
    return {**_STAGES, **rooms, **apt}


def parse(said: Mapping[str, str], asked: Asked) -> HostHealth:
    """From the sections' texts."""
    volumes = (
        *_volumes((HOME,), said["host.room.home"]),
        *_volumes(tuple(_LOCAL), said["host.room.local"]),
        *_volumes((SHARED,), said.get("host.room.shared", "")),
    )
    ports = said["host.ports"].splitlines()
    tracked = said["host.conntrack"].split()
    return HostHealth(
        clock=_clock(asked),
        noise=_noise(asked),
        ntp=host_settings.ntp(said["host.ntp"], said["host.sleep"]),
        volumes=volumes,
        stuck=None if "host.stuck" + CUT in said else _stuck(said["host.stuck"]),
        kernel=_kernel(said["host.kernel"]),
        shm=None if "host.shm" + CUT in said else _shm(said["host.shm"]),
        port_range=_pair(ports[0] if ports else ""),
        reserved_ports=_reserved(ports),
        conntrack=_pair(" ".join(tracked[:2])),
        forgotten=whole(tracked[2]) if len(tracked) > 2 else None,
        rp_filter=_rp_filter(said["host.rp_filter"]),
        root_options=tuple(said["host.fstab"].split("\n", 1)[0].split(","))
        if said["host.fstab"].strip()
        else None,
        logind=host_settings.logind(said["host.logind"]),
        sleep=host_settings.sleep(said["host.sleep"]),
        governor=host_settings.governor(said["host.governor"]),
        apt=host_settings.apt(said.get("host.apt", "")),
        reclaimable=_reclaimable(said["host.arc"]),
    )


def _room(directory: str) -> str:
    return f'r=$(hear 3 df -Pk -- {directory}); [ "$r" ] && printf \'%s\\n\' "$r" && hear 3 df -Pi -- {directory}'


def _clock(asked: Asked) -> Clock | None:
    """From one short round trip of its own: the look as a whole may take seconds, which would say nothing."""
    lines = asked.clock.splitlines()
    match = re.search(r"(\d{9,11})(?:\.(\d{1,9})|\.\D*)?$", lines[-1]) if lines else None
    if not match or asked.received < asked.sent:
        return None
    there = float(match.group(1)) + (float(f"0.{match.group(2)}") if match.group(2) else 0.5)
    error = (asked.received - asked.sent) / 2 + (0.0 if match.group(2) else 0.5)  # some date has no fractions
    return Clock(there - (asked.sent + asked.received) / 2, error)


def _noise(asked: Asked) -> str:
    """Whatever came before the date, on lines of its own or on the same."""
    text = asked.clock.rstrip("\n")
    return re.sub(r"\d{9,11}(\.\S*)?$", "", text).strip() if _clock(asked) else ""


def _volumes(names: tuple[str, ...], text: str) -> Iterator[Volume]:
    """df -Pk, then df -Pi, of the same directories; one that is not there has no row, so it comes last."""
    rows = [re.match(r".+?\s+(\d{1,18})\s+\d+\s+(-?\d{1,18})\s+\S+\s+(/.*)", one) for one in text.splitlines()]
    found = [one for one in rows if one]
    blocks, files = found[: len(found) // 2], found[len(found) // 2 :]
    for name, of, inodes in zip(names, blocks, files, strict=False):
        counted = int(inodes.group(1)) > 0  # a filesystem that makes inodes as it goes says 0 of 0
        yield Volume(
            name,
            of.group(3),
            int(of.group(1)) * 1024,
            int(of.group(2)) * 1024,
            int(inodes.group(1)) if counted else None,
            int(inodes.group(2)) if counted else None,
        )


def _stuck(text: str) -> tuple[Stuck, ...] | None:
    """Those that were in all three looks with the same counts of having run."""
    first, _, rest = text.partition("\n")
    uptime = whole(first)
    if uptime is None:
        return None
    looks = [_waiting(one) for one in rest.split("==\n")]
    if len(looks) != 3:
        return ()
    one, two, three = looks
    same = [key for key in three if key in one and key in two]
    return tuple(Stuck(key[0], max(0.0, uptime - key[1] / _TICKS), *three[key]) for key in same)


def _waiting(text: str) -> dict[tuple[int, int, str], tuple[str, str]]:
    found = {}
    for line in text.splitlines():
        match = re.match(r"(\d{1,10}) (\d{1,18}) ([\d+]+) (\S*) ?(.*)$", line)
        if match:
            place = "" if match.group(4) == "0" else match.group(4)
            found[int(match.group(1)), int(match.group(2)), match.group(3)] = (place, match.group(5)[:64])
    return found


def _kernel(text: str) -> tuple[KernelLine, ...] | None:
    first, *lines = text.splitlines() or [""]
    if first != "seen" or not lines:
        return None
    uptime = whole(lines[0])
    found = []
    for line in lines[1:]:
        match = re.match(r"\s*(?:<\d+>)?\s*\[\s*(\d{1,12})\.\d+\]\s*(.*)", line)
        ago = uptime - int(match.group(1)) if match and uptime is not None else None
        found.append(KernelLine(ago, (match.group(2) if match else line)[:400]))
    return tuple(found)


def _shm(text: str) -> Shm | None:
    if not text.startswith("seen"):
        return None
    files, _, held = text.partition("==\n")
    rows = re.findall(
        r"^-\S+\s+\d+\s+(\d{1,10})\s+\d+\s+(\d{1,15})\s.*\s(nccl-[A-Za-z0-9]+)$", files, re.MULTILINE
    )
    names = frozenset(line.rpartition("/")[2] for line in held.splitlines())
    return Shm({name: (int(uid), int(size)) for uid, size, name in rows}, names)


def _pair(text: str) -> tuple[int, int] | None:
    words = text.split()
    if len(words) != 2:
        return None
    low, high = whole(words[0]), whole(words[1])
    return None if low is None or high is None else (low, high)


def _reclaimable(text: str) -> int | None:
    """Of arcstats, name, type and number: what the cache holds above the least that it keeps."""
    found = dict(re.findall(r"^(size|c_min)\s+\d+\s+(\d{1,18})$", text, re.MULTILINE))
    return max(0, int(found["size"]) - int(found["c_min"])) if len(found) == 2 else None


def _reserved(lines: list[str]) -> tuple[tuple[int, int], ...] | None:
    """29500,30000-30100; an empty line reserves none."""
    if not lines:
        return None
    found = re.findall(r"(\d{1,5})(?:-(\d{1,5}))?", lines[1]) if len(lines) > 1 else []
    return tuple((int(low), int(high or low)) for low, high in found)


def _rp_filter(text: str) -> dict[str, int] | None:
    rows = re.findall(r"^/proc/sys/net/ipv4/conf/([^/\n]+)/rp_filter:(\d)$", text, re.MULTILINE)
    return {name: int(mode) for name, mode in rows} or None
