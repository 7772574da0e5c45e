"""What nvidia-smi, the driver and the PCI bus say -> cards and who uses them. Pure.

`[N/A]`, `[Not Supported]`, `ERR!` and their like are all one thing here: not known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from clusterft.facts.frames import whole
from clusterft.facts.probe import CARD_FIELDS

_DISPLAY = "0x03"  # the PCI class of cards; bridges and switches of the same maker have others


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory of a card; `kind` is C (computes), G (draws) or both."""

    pid: int
    kind: str
    name: str
    memory: int | None  # MiB


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA card as nvidia-smi describes it; memory in MiB, None where the driver does not tell."""

    index: int
    uuid: str
    name: str
    memory: int | None
    used: int | None
    driver: str
    bus_id: str | None = None
    display: bool | None = None  # whether a screen is lit by it
    pcie_gen: tuple[int, int] | None = None  # now, at most; it falls while the card is idle
    pcie_width: tuple[int, int] | None = None
    compute_cap: str | None = None  # drivers before 495 do not tell
    processes: tuple[GpuProcess, ...] | None = None


@dataclass(frozen=True, slots=True)
class Nvidia:
    """The driver on a node, whether nvidia-smi works or not."""

    module: str | None  # version of the loaded kernel module; None when none is loaded
    plugged: int | None  # display controllers of NVIDIA on the PCI bus
    words: str = ""  # what nvidia-smi said instead of cards, or of a card that is lost


def nvidia(sections: dict[str, str]) -> Nvidia | None:
    """The driver's state; None where nothing tells of it."""
    module = re.search(r"^NVRM version:.*?(\d+\.\d+(?:\.\d+)?)\s", sections["nvidia"], re.MULTILINE)
    classes = sections["pci"].split()
    cards, words = _rows(sections["gpus"])
    found = Nvidia(
        module=module.group(1) if module else None,
        plugged=sum(each.startswith(_DISPLAY) for each in classes) if classes[:1] == ["seen"] else None,
        words=words,
    )
    return None if found == Nvidia(None, None) and not cards else found


def cards(sections: dict[str, str]) -> tuple[Gpu, ...]:
    """All cards, in nvidia-smi's order."""
    using = _processes(sections["gpu.processes"])
    rows, _ = _rows(sections["gpus"])
    return tuple(_card(row, using) for row in rows)


def _rows(text: str) -> tuple[list[list[str]], str]:
    rows, words = [], []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) - len(CARD_FIELDS) in (0, 1) and whole(fields[0]) is not None:
            rows.append(fields)
        elif line.strip():
            words.append(line.strip())
    return rows, "\n".join(words)


def _card(row: list[str], using: dict[str, tuple[GpuProcess, ...]] | None) -> Gpu:
    said = dict(zip((*CARD_FIELDS, "compute_cap"), row, strict=False))
    bus = said["pci.bus_id"]
    known_bus = bus if re.fullmatch(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.\d", bus) else None
    capability = said.get("compute_cap", "")
    return Gpu(
        index=whole(said["index"]) or 0,
        uuid=said["uuid"],
        name=said["name"],
        memory=whole(said["memory.total"]),  # "[N/A]" on some boards
        used=whole(said["memory.used"]),  # "[Insufficient Permissions]" under MIG
        driver=said["driver_version"],
        bus_id=known_bus,
        display={"Enabled": True, "Disabled": False, "Yes": True, "No": False}.get(said["display_active"]),
        pcie_gen=_pair(said["pcie.link.gen.current"], said["pcie.link.gen.max"]),
        pcie_width=_pair(said["pcie.link.width.current"], said["pcie.link.width.max"]),
        compute_cap=capability if re.fullmatch(r"\d{1,2}\.\d", capability) else None,
        processes=None if using is None or known_bus is None else using.get(_slot(known_bus)),
    )


def _pair(now: str, most: str) -> tuple[int, int] | None:
    current, highest = whole(now), whole(most)
    return None if current is None or highest is None else (current, highest)


def _slot(bus: str) -> str:
    return bus.upper()[-12:]  # the domain has four digits in some drivers' answers and eight in others'


def _processes(text: str) -> dict[str, tuple[GpuProcess, ...]] | None:
    """Of `nvidia-smi -q -d PIDS`: bus id -> processes. A card without the heading told nothing."""
    found: dict[str, tuple[GpuProcess, ...]] = {}
    for part in re.split(r"^GPU (?=[0-9A-Fa-f]+:)", text, flags=re.MULTILINE)[1:]:
        heading = re.search(r"^ +Processes(?: +: None)? *$", part, re.MULTILINE)
        if heading:
            found[_slot(part.split()[0])] = tuple(_users(part[heading.end() :]))
    return found or None


def _users(text: str) -> list[GpuProcess]:
    users = []
    for entry in re.split(r"^ +Process ID +: ", text, flags=re.MULTILINE)[1:]:
        pid = whole(entry.split("\n", 1)[0])
        said = {key: value for key, value in re.findall(r"^ +(\S[^:\n]*?) +: (.*?) *$", entry, re.MULTILINE)}
        if pid is not None:
            memory = re.match(r"(\d{1,9}) MiB", said.get("Used GPU Memory", ""))
            name, kind = said.get("Name", ""), said.get("Type", "")
            users.append(GpuProcess(pid, kind, name, int(memory.group(1)) if memory else None))
    return users
