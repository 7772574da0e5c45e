"""How busy this node is: processors, memory and network from /proc, cards from one nvidia-smi now and then.

Owns the parsers. A card's driver may hang: it is asked by a process that is let go after some seconds, and what is
not known is None, never 0.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clusterft_trainer.stream import Card, Usage
from clusterft_trainer.supervisor.processes import Child

_INTERVAL = 5.0
_ASK = 4.0  # seconds for nvidia-smi
_MIB = 1 << 20
_QUERY = "index,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw"


@dataclass(frozen=True, slots=True)
class Counters:
    """What the kernel counts since it started, at one moment."""

    at: float
    busy: int
    total: int
    sent: int
    received: int


class Gauge:
    """Measures the node, every few seconds."""

    def __init__(self, now: float) -> None:
        self._smi = shutil.which("nvidia-smi")
        self._before = _counters(now)
        self._next = now + _INTERVAL
        self._child: Child | None = None
        self._lines: list[str] = []
        self._until = 0.0

    def turn(self, now: float) -> Usage | None:
        """A line, if one is due and the cards have answered, or had their time for it."""
        if self._child is None:
            if now < self._next:
                return None
            if self._smi is None:
                return self._usage(now, ())
            argv = (self._smi, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits")
            self._child, self._lines, self._until = Child(argv), [], now + _ASK
            return None
        self._lines += self._child.lines()
        code = self._child.code()
        if code is None and now < self._until:
            return None
        self._lines += self._child.lines()
        self._child.kill()
        self._child = None
        return self._usage(now, cards(self._lines) if code == 0 else ())

    def close(self) -> None:
        """Ask no more."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _usage(self, now: float, found: tuple[Card, ...]) -> Usage:
        before, after = self._before, _counters(now)
        self._before, self._next = after, now + _INTERVAL
        seconds = max(after.at - before.at, 0.001)
        used, total = memory(Path("/proc/meminfo").read_text(encoding="ascii"))
        return Usage(
            at=time.time(),
            cpu=(after.busy - before.busy) / max(after.total - before.total, 1),
            memory=used,
            memory_total=total,
            sent=max(0, after.sent - before.sent) / seconds,
            received=max(0, after.received - before.received) / seconds,
            cards=found,
        )


def cards(lines: Sequence[str]) -> tuple[Card, ...]:
    """From nvidia-smi's table; a line that is none (a warning of the driver) is left out."""
    rows = [[word.strip() for word in line.split(",")] for line in lines]
    return tuple(_card(row) for row in rows if len(row) == 6 and row[0].isdigit())


def processors(text: str) -> tuple[int, int]:
    """Busy and all ticks, of /proc/stat; waiting for a disk is not busy."""
    ticks = [int(word) for word in text.split("\n", 1)[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def memory(text: str) -> tuple[int, int]:
    """Bytes in use and bytes there are, of /proc/meminfo; what the kernel would give back is not in use."""
    rows = (line.split(":") for line in text.splitlines() if ":" in line)
    kib = {name: int(rest.split()[0]) for name, rest in rows}
    return (kib["MemTotal"] - kib["MemAvailable"]) * 1024, kib["MemTotal"] * 1024


def network(text: str) -> tuple[int, int]:
    """Bytes sent and received, of /proc/net/dev, without loopback."""
    sent = received = 0
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        if colon and name.strip() != "lo":
            numbers = rest.split()
            received, sent = received + int(numbers[0]), sent + int(numbers[8])
    return sent, received


def _counters(now: float) -> Counters:
    busy, total = processors(Path("/proc/stat").read_text(encoding="ascii"))
    sent, received = network(Path("/proc/net/dev").read_text(encoding="ascii"))
    return Counters(now, busy, total, sent, received)


def _card(row: Sequence[str]) -> Card:
    use, used, total = _number(row[1]), _number(row[2]), _number(row[3])
    return Card(
        index=int(row[0]),
        use=None if use is None else use / 100,
        memory=None if used is None else int(used * _MIB),
        memory_total=None if total is None else int(total * _MIB),
        temperature=_number(row[4]),
        power=_number(row[5]),
    )


def _number(word: str) -> float | None:
    """`[N/A]`, `[Not Supported]`, `[GPU requires reset]`: the driver does not tell."""
    try:
        return float(word)
    except ValueError:
        return None
