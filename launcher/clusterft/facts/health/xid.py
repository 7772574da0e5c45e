"""Lines of the NVIDIA driver in the kernel's log -> Xid. Pure; only what is of this boot and of the last day."""

from __future__ import annotations

import re
from dataclasses import dataclass

_DAY = 24 * 3600.0
# NVRM: Xid (PCI:0000:c1:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
# NVRM: Xid (0000:03:00): 79, ...   is how drivers before 440 put it.
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2})(?:\.\d)?\): (\d{1,4})\b")
# Newer drivers also say so in lines of their own, without a number (NVSentinel#155):
# NVRM: The NVIDIA GPU 0000:b3:00.0 / NVRM: (PCI ID: ...) / NVRM: fallen off the bus and is not responding ...
_NAMED = re.compile(r"NVRM: The NVIDIA GPU ([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2})\b")
_FALLEN, _FALLEN_XID = "NVRM: fallen off the bus", 79
_JOURNAL = re.compile(r"(\d{9,12}\.\d+) ")  # -o short-unix
_RING = re.compile(r"\[ *(\d{1,10}\.\d+)\]")  # dmesg: seconds since the start


@dataclass(frozen=True, slots=True)
class Xid:
    """One complaint of the driver about one card."""

    card: str  # domain:bus:device, lower case, with a domain of four digits
    number: int
    ago: float | None  # seconds
    line: str


def xids(text: str) -> tuple[Xid, ...] | None:
    """The newest last, one a card and number; None where the log could not be read."""
    lines = text.splitlines()
    if len(lines) < 3 or lines[2] not in ("journal", "ring"):
        return None
    now, up = (float(line) if line.isascii() and line.isdecimal() else None for line in lines[:2])
    if now is None or up is None:
        return None
    found: dict[tuple[str, int], Xid] = {}
    named = None
    for line in lines[3:]:
        numbered, named = _XID.search(line), _NAMED.search(line) or named
        if numbered:
            card, number = numbered.group(1), int(numbered.group(2))
        elif _FALLEN in line and named:
            card, number = named.group(1), _FALLEN_XID
        else:
            continue
        ago = _ago(line, now, up, journal=lines[2] == "journal")
        if ago is None or ago <= _DAY:
            key = (card.lower()[-10:], number)
            found.pop(key, None)
            found[key] = Xid(*key, ago, line.strip()[:400])
    return tuple(found.values())


def _ago(line: str, now: float, up: float, *, journal: bool) -> float | None:
    match = (_JOURNAL if journal else _RING).match(line)
    if not match:
        return None
    return max(0.0, (now if journal else up) - float(match.group(1)))
