"""What a login of a node may use of it: memory, processors, processes; less than the node has. Pure.

The limits are those on the whole way up from the login's own cgroup, in either version, and the login's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from clusterft.facts.frames import whole
from clusterft.facts.health.asked import Asked

# What programs and shells say when a limit stops them, whichever of them it was.
_STOPPED = re.compile(
    r"can't start new thread|MemoryError|[Cc]annot allocate memory|[Cc]annot fork|failed to map segment|"
    r"fork: (?:retry: )?Resource temporarily unavailable"
)
# Of a container: the engine's own complaint, or words of a Python that was started in it.
_INSIDE = re.compile(
    r"^(?:Traceback \(most recent|MemoryError)|can't start new thread|Error response from daemon", re.MULTILINE
)
STOPPED = "a limit on memory or processes of the login stopped it"
_NO_LIMIT = 2**60  # version 1 writes nearly 2^63 for none
# Of every directory from the login's own up to where the hierarchy is mounted: the least counts, so all are told.
_WAY = r"""
up() {
  base=$1 p=$2; shift 2
  case $p in *..*) p= ;; esac
  while :; do
    p=${p%/}
    for f in "$@"; do [ -r "$base$p/$f" ] && read -r v <"$base$p/$f" && echo "$f $v ${p:-/} $base"; done
    [ "$p" ] || break
    p=${p%/*}
  done
}
echo seen; grep -E '^Max (processes|address space|data size|cpu time) ' /proc/self/limits
grep Cpus_allowed_list: /proc/self/status; echo "online $(cat /sys/devices/system/cpu/online)"
echo "schedule $(sed 's/^.*) //' /proc/self/stat | cut -d ' ' -f 17,39)"
while IFS=: read -r n k own; do
  case ",$k," in
    ,,) for b in /sys/fs/cgroup /sys/fs/cgroup/unified; do
          [ -e $b/cgroup.controllers ] && up $b "$own" memory.max memory.high pids.max cpu.max
        done ;;
    *,memory,*) up /sys/fs/cgroup/memory "$own" memory.limit_in_bytes ;;
    *,pids,*) up /sys/fs/cgroup/pids "$own" pids.max ;;
  esac
  case ",$k," in *,cpu,*) up /sys/fs/cgroup/cpu "$own" cpu.cfs_quota_us cpu.cfs_period_us ;; esac
done </proc/self/cgroup
"""


class Limit(NamedTuple):
    """A cgroup's, that a login is under."""

    name: str  # memory.max, memory.high, memory.limit_in_bytes, pids.max, cpu.max, cpu.cfs_quota_us
    value: int  # bytes, processes, or thousandths of a processor
    path: str  # within its hierarchy; / where that is mounted
    base: str

    @property
    def file(self) -> str:
        """Where it is written."""
        return f"{self.base}{'' if self.path == '/' else self.path}/{self.name}"


@dataclass(frozen=True, slots=True)
class Confines:
    """None where it could not be read; a limit that is none is left out."""

    memory: tuple[Limit, ...] | None = None
    processes: tuple[Limit, ...] | None = None
    address_space: int | None = None  # bytes, of each process
    own_processes: int | None = None  # of all that the user runs; root is under none
    processors: tuple[Limit, ...] = ()
    data: int | None = None  # bytes, of each process: its heap and what it maps for itself
    cpu_seconds: int | None = None  # of each process, which is killed then
    pinned: int | None = None  # processors that a login may run on
    online: int | None = None  # that the node has
    nice: int = 0
    policy: int = 0  # of sched(7): 3 batch, 5 idle

    def least_memory(self, *, contained: bool) -> Limit | None:
        """Under which ranks are: an engine's containers lie beside the logins, and share the top alone."""
        holding = [one for one in self.memory or () if one.path == "/" or not contained]
        return min(holding, key=lambda one: one.value, default=None)


def stopped(words: str, *, contained: bool = False) -> str:
    """The one line that tells of a limit, with what it means; empty where nothing of the kind was said.

    A container is under no limit of the login: what is said in it, or by its engine, is of something else.
    """
    if contained and _INSIDE.search(words):
        return ""
    line = next((one for one in words.splitlines() if _STOPPED.search(one)), "")
    return f"{STOPPED}: {line.strip()[:200]}" if line else ""


def argv() -> tuple[str, ...]:
    """The command for one node, where nothing else of its health is asked."""
    return ("sh", "-c", _WAY)


def sections(asked: Asked) -> dict[str, str]:
    """What ends soon."""
    return {"confines": _WAY}


def stages(asked: Asked) -> dict[str, str]:
    """What may take seconds: nothing here."""
    return {}


def parse(said: Mapping[str, str], asked: Asked) -> Confines:
    """From the section's text."""
    return read(said["confines"])


def read(text: str) -> Confines:
    """From what the command printed."""
    if not text.startswith("seen"):
        return Confines()
    known = tuple(_limits(text))
    figures = dict(re.findall(r"^Max ([a-z ]+?) +(\d{1,18}) ", text, re.MULTILINE))
    schedule = re.search(r"^schedule (-?\d{1,3}) (\d{1,2})$", text, re.MULTILINE)
    return Confines(
        memory=tuple(one for one in known if one.name.startswith("memory.")),
        processes=tuple(one for one in known if one.name == "pids.max"),
        processors=tuple(_shares(text)),
        address_space=whole(figures.get("address space", "")),
        own_processes=whole(figures.get("processes", "")),
        data=whole(figures.get("data size", "")),
        cpu_seconds=whole(figures.get("cpu time", "")),
        pinned=_counted(r"Cpus_allowed_list:\s*", text),
        online=_counted("online ", text),
        nice=int(schedule[1]) if schedule else 0,
        policy=int(schedule[2]) if schedule else 0,
    )


def _counted(before: str, text: str) -> int | None:
    """How many a list of the kernel's names: 0-3,8 are five."""
    found = re.search(rf"^{before}(\d{{1,5}}(?:[-,]\d{{1,5}})*)$", text, re.MULTILINE)
    parts = [part.split("-") for part in found[1].split(",")] if found else []
    return sum(int(part[-1]) - int(part[0]) + 1 for part in parts) or None


def _limits(text: str) -> Iterator[Limit]:
    pattern = r"^((?:memory|pids)\.\w+) (\d{1,19}) (/.*) (/sys/fs/cgroup\S*)$"
    for name, value, path, base in re.findall(pattern, text, re.MULTILINE):
        if int(value) < _NO_LIMIT:
            yield Limit(name, int(value), path, base)


def _shares(text: str) -> Iterator[Limit]:
    """Version 2 writes quota and period into one file, version 1 into two; a quota of max or -1 is none."""
    for quota, period, path, base in re.findall(
        r"^cpu\.max (\d{1,12}) (\d{1,12}) (/.*) (/sys/fs/cgroup\S*)$", text, re.MULTILINE
    ):
        yield Limit("cpu.max", _thousandths(quota, period), path, base)
    old = re.findall(r"^cpu\.cfs_(quota|period)_us (\d{1,12}) (/.*) (/sys/fs/cgroup\S*)$", text, re.MULTILINE)
    periods = {path: value for kind, value, path, _ in old if kind == "period"}
    for kind, quota, path, base in old:
        if kind == "quota" and path in periods:
            yield Limit("cpu.cfs_quota_us", _thousandths(quota, periods[path]), path, base)


def _thousandths(quota: str, period: str) -> int:
    return int(quota) * 1000 // max(1, int(period))
