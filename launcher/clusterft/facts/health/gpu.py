"""The gpu layer of doctor's look at a node: limits, errors and throttling of its cards, the kernel's log. Pure.

nvidia-smi refuses a whole query for one field that it does not know, so what drivers call differently is asked in
turn. `[N/A]`, `[Not Supported]`, `[Unknown Error]` and their like are all one thing: not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from clusterft.facts.frames import whole
from clusterft.facts.health.asked import Asked
from clusterft.facts.health.xid import Xid, xids
from clusterft.facts.probe import CUT

FIELDS = (
    *("index", "uuid", "name", "pci.bus_id", "driver_version", "persistence_mode"),
    *("power.limit", "power.default_limit", "power.draw", "utilization.gpu", "temperature.gpu"),
    "ecc.errors.uncorrected.volatile.total",
)
# Renamed with driver 535; the older name went on for a while.
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
SILENT = "nvidia-smi gave no answer within 8 s"  # which it never does by itself
_REMAPPED = ("gpu_uuid", "remapped_rows.uncorrectable", "remapped_rows.pending", "remapped_rows.failure")

_QUERY = """\
command -v nvidia-smi >/dev/null && {{
  q='--format=csv,noheader,nounits --query-gpu={fields}'
  # A question costs seconds where cards sleep in between: an older driver is not asked by the newer name first.
  # The open kernel module names the machine before its own version: "Kernel Module for x86_64  515.43.04".
  d=$(sed -n 's/.*Kernel Module.* \\([0-9][0-9]*\\)\\.[0-9].*/\\1/p' /proc/driver/nvidia/version | head -n 1)
  if [ "${{d:-999}}" -lt 535 ]; then set -- {older} ''; else set -- {reasons} ''; fi
  for f; do
    c=$(hear 8 nvidia-smi $q${{f:+,$f}})
    case $c in *'is not a valid field'*) ;; *) break ;; esac
  done
  printf '%s\\n' "${{c:-{silent}}}"
  # Busy ones are looked at again a moment later: one look says little of what changes by the millisecond.
  case $c in *', 9'[0-9]', '* | *', 100, '*)
    echo again; sleep 1
    hear 4 nvidia-smi --format=csv,noheader,nounits --query-gpu=index,uuid,power.draw,utilization.gpu ;;
  esac
}}"""
_REMAP = (
    "command -v nvidia-smi >/dev/null && "
    f"hear 10 nvidia-smi --format=csv,noheader --query-remapped-rows={','.join(_REMAPPED)}"
)
# The driver's most recent CUDA version stands in the head of every full answer.
_CUDA = "command -v nvidia-smi >/dev/null && hear 10 nvidia-smi -q -d COMPUTE | grep -E '^(CUDA|Driver) Version'"
# Of every program that computes: the container that it is in, by the kernel, and whether it is a run of ours.
_PIDS = """\
command -v nvidia-smi >/dev/null && {
  a=$(hear 8 nvidia-smi --format=csv,noheader --query-compute-apps=pid)
  for p in $(printf '%s\\n' "$a" | grep -E '^[0-9]+$' | head -n 64); do
    i=$(grep -Eo '[0-9a-f]{64}' "/proc/$p/cgroup" | head -n 1)
    o=$p; w=other; n=0
    while [ "$o" -gt 1 ] && [ "$n" -lt 8 ]; do
      tr '\\0' ' ' <"/proc/$o/cmdline" | grep -q clusterft_trainer && w=ours
      o=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$o/status"); [ "$o" ] || o=0
      n=$((n + 1))
    done
    echo "$p $w $i"
  done
}"""
# What of it is old is for the parser to say. Without a driver there is nothing to look for. What may be read
# without root differs by system; sudo is tried only by those whose group may use it.
_KERNEL = """\
if [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null; then
  date +%s; cut -d. -f1 /proc/uptime
  lines() { grep -E 'NVRM: (Xid|The NVIDIA GPU|fallen off)' | tail -n 200; }
  if l=$(limit 4 journalctl -k -b -n 1 -q --no-pager -o short-unix) && [ "$l" ]; then
    echo journal; limit 8 journalctl -k -b -q --no-pager -o short-unix --since=-24h | lines
  elif l=$(limit 4 dmesg | tail -n 1) && [ "$l" ]; then
    echo ring; limit 8 dmesg | lines
  else
    case " $(id -Gn) " in *' sudo '* | *' wheel '* | *' admin '*)
      if l=$(limit 4 sudo -n dmesg | tail -n 1) && [ "$l" ]; then echo ring; limit 8 sudo -n dmesg | lines; fi ;;
    esac
  fi
fi"""
# Switches of NVLink are bridges by class. The manager may run as a service, or in a container of its own.
_FABRIC = """\
[ -d /sys/bus/pci/devices ] && echo seen
grep -ls 0x10de /sys/bus/pci/devices/*/vendor | while read -r v; do
  read -r c <"${v%vendor}class" && case $c in 0x0680*) echo switch ;; esac
done
grep -ls '^nv-fabricmanage' /proc/[0-9]*/comm | sed 's/.*/process/'
command -v systemctl >/dev/null && echo "service $(limit 3 systemctl is-active nvidia-fabricmanager)"
v=$(limit 3 nv-fabricmanager --version) && printf 'version %s\\n' "$v" """


@dataclass(frozen=True, slots=True)
class Card:
    """One card at one moment; power in watts."""

    index: int
    uuid: str
    name: str
    bus_id: str
    driver: str
    persistence: bool | None = None
    limit: float | None = None
    default_limit: float | None = None
    draw: float | None = None
    load: int | None = None  # percent of the time in which something ran
    temperature: int | None = None
    reasons: int | None = None  # why its clocks are lower than they could be, as NVML's bits
    uncorrected: int | None = None  # memory errors since the driver was loaded
    draw_again: float | None = None  # a second later, of a busy card
    load_again: int | None = None


@dataclass(frozen=True, slots=True)
class Remapped:
    """What became of rows of memory that were broken."""

    rows: int | None
    pending: bool | None  # a reset is needed before the spare rows are used
    failure: bool | None  # there were no spare rows left


@dataclass(frozen=True, slots=True)
class Fabric:
    """The switches between cards, and the manager without which these cards do not start."""

    switches: int
    running: bool | None
    service: str = ""  # systemd's word
    version: str | None = None


@dataclass(frozen=True, slots=True)
class User:
    """A program that computes on a card."""

    ours: bool
    container: str = ""  # its id, if it is in one


@dataclass(frozen=True, slots=True)
class GpuHealth:
    """What could be read; None where it could not."""

    cards: tuple[Card, ...] = ()
    words: str = ""  # what nvidia-smi said besides
    remapped: Mapping[str, Remapped] | None = None  # by UUID
    cuda: tuple[int, int] | None = None  # the newest that the driver can do
    users: Mapping[int, User] | None = None  # by pid
    xids: tuple[Xid, ...] | None = None  # of the last day and this boot; None: the log cannot be read
    driver: bool | None = None  # whether the node has one at all
    fabric: Fabric | None = None


def sections(asked: Asked) -> dict[str, str]:
    """What ends soon: nothing here, as all of it asks a driver or a service."""
    return {}


def stages(asked: Asked) -> dict[str, str]:
    """What may take seconds: a driver without persistence wakes its cards for every question."""
    if not asked.cuda:
        return {}
    reasons = {"reasons": " ".join(_REASONS), "older": _REASONS[1]}
    return {
        "gpu.now": _QUERY.format(fields=",".join(FIELDS), silent=SILENT, **reasons),
        "gpu.remapped": _REMAP,
        "gpu.cuda": _CUDA,
        "gpu.users": _PIDS,
        "gpu.kernel": _KERNEL,
        "gpu.fabric": _FABRIC,
    }


def parse(said: Mapping[str, str], asked: Asked) -> GpuHealth:
    """From the sections' texts."""
    if not asked.cuda:
        return GpuHealth()
    cards, words = _cards(said["gpu.now"])
    cuda = re.search(r"^CUDA Version\s*:\s*(\d{1,2})\.(\d{1,2})\s*$", said["gpu.cuda"], re.MULTILINE)
    return GpuHealth(
        cards=cards,
        words=words or (SILENT if "gpu.now" + CUT in said and not cards else ""),
        remapped=_remapped(said["gpu.remapped"]),
        cuda=(int(cuda.group(1)), int(cuda.group(2))) if cuda else None,
        users=_users(said["gpu.users"]),
        xids=None if "gpu.kernel" + CUT in said else xids(said["gpu.kernel"]),
        driver=bool(said["gpu.kernel"].strip()) or bool(cards),
        fabric=_fabric(said["gpu.fabric"]),
    )


def _cards(text: str) -> tuple[tuple[Card, ...], str]:
    first, _, second = text.partition("\nagain\n")
    again = {row[1]: row for row in map(_row, second.splitlines()) if len(row) == 4}
    cards, words = [], []
    for line in first.splitlines():
        row = _row(line)
        if len(row) - len(FIELDS) in (0, 1) and whole(row[0]) is not None:
            cards.append(_card(dict(zip((*FIELDS, "reasons"), row, strict=False)), again.get(row[1])))
        elif line.strip():
            words.append(line.strip())
    return tuple(cards), "\n".join(words)


def _row(line: str) -> list[str]:
    return [field.strip() for field in line.split(",")]


def _card(said: Mapping[str, str], again: list[str] | None) -> Card:
    return Card(
        index=whole(said["index"]) or 0,
        uuid=said["uuid"],
        name=said["name"],
        bus_id=said["pci.bus_id"],
        driver=said["driver_version"],
        persistence={"Enabled": True, "Disabled": False}.get(said["persistence_mode"]),
        limit=_watts(said["power.limit"]),
        default_limit=_watts(said["power.default_limit"]),
        draw=_watts(said["power.draw"]),
        load=whole(said["utilization.gpu"]),
        temperature=whole(said["temperature.gpu"]),
        reasons=_bits(said.get("reasons", "")),
        uncorrected=whole(said["ecc.errors.uncorrected.volatile.total"]),
        draw_again=_watts(again[2]) if again else None,
        load_again=whole(again[3]) if again else None,
    )


def _watts(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,5}(\.\d{1,4})?", text) else None


def _bits(text: str) -> int | None:
    return int(text, 16) if re.fullmatch(r"0x[0-9A-Fa-f]{1,16}", text) else None


def _remapped(text: str) -> dict[str, Remapped] | None:
    """None where no card of the node can remap."""
    found = {}
    for line in text.splitlines():
        row = _row(line)
        if len(row) == len(_REMAPPED) and row[0].startswith("GPU-"):
            pending, failure = (_yes(word) for word in row[2:])
            found[row[0]] = Remapped(whole(row[1]), pending, failure)
    return found or None


def _yes(word: str) -> bool | None:
    return {"yes": True, "1": True, "no": False, "0": False}.get(word.lower())


def _users(text: str) -> dict[int, User] | None:
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(\d{1,9}) (ours|other) ([0-9a-f]{64})?", line)
        if match:
            found[int(match.group(1))] = User(match.group(2) == "ours", match.group(3) or "")
    return found or None


def _fabric(text: str) -> Fabric | None:
    lines = text.splitlines()
    if "seen" not in lines:
        return None
    service = next((line[8:].strip() for line in lines if line.startswith("service ")), "")
    version = re.search(r"^version .*?(\d{3}(?:\.\d{1,3}){1,2})", text, re.MULTILINE)
    running = True if "process" in lines or service == "active" else False if service else None
    return Fabric(lines.count("switch"), running, service, version.group(1) if version else None)
