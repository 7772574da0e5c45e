"""How busy a node is, from what kernels and drivers really print."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from clusterft_trainer.stream import Card, Usage, decode, encode
from clusterft_trainer.supervisor import usage

STAT = """cpu  1000 50 300 8000 200 5 45 0 0 0
cpu0 500 25 150 4000 100 2 22 0 0 0
"""
NETWORK = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier
    lo: 9999999   100    0    0    0     0          0         0  9999999     100    0    0    0     0       0
  eth0:    1000    10    0    0    0     0          0         0     2000      20    0    0    0     0       0
enp1s0:12345678901 3 0 0 0 0 0 0 5 1 0 0 0 0 0 0
"""
# nvidia-smi --query-gpu=... --format=csv,noheader,nounits: a data-centre card, a laptop's that tells no power, one
# that has fallen off, and the line that a driver puts before the table when a card is in trouble.
CARDS = [
    "WARNING: infoROM is corrupted at gpu 0000:3B:00.0",
    "0, 98, 76543, 81559, 61, 412.35",
    "1, [N/A], 512, 8192, 44, [N/A]",
    "2, " + ", ".join(["[GPU requires reset]"] * 5),
]


def test_processors_wait_for_disks_without_being_busy() -> None:
    assert usage.processors(STAT) == (1400, 9600)


def test_memory_that_the_kernel_would_give_back_is_not_in_use() -> None:
    assert usage.memory("MemTotal:  1000 kB\nMemFree: 100 kB\nMemAvailable:  400 kB\n") == (
        600 * 1024,
        1000 * 1024,
    )


def test_loopback_is_no_network() -> None:
    assert usage.network(NETWORK) == (2005, 12345679901)


def test_what_a_driver_does_not_tell_is_not_nothing() -> None:
    found = usage.cards(CARDS)
    assert found[0] == Card(0, 0.98, 76543 << 20, 81559 << 20, 61.0, 412.35)
    assert found[1] == Card(1, None, 512 << 20, 8192 << 20, 44.0, None)
    assert found[2] == Card(2, None, None, None, None, None)
    assert usage.cards(["No devices were found"]) == ()


def measured(gauge: usage.Gauge, seconds: float) -> Usage:
    """Its next line, on a clock that has gone on so far."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = gauge.turn(time.monotonic() + seconds)
        if found is not None:
            return found
        time.sleep(0.02)
    raise AssertionError("no line")


def test_this_machine_can_be_measured() -> None:
    gauge = usage.Gauge(time.monotonic())
    assert gauge.turn(time.monotonic()) is None
    found = measured(gauge, 6.0)
    assert 0 <= found.cpu <= 1 and 0 < found.memory < found.memory_total and found.sent >= 0
    assert decode(encode(found)) == found


def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A program of that name, first in the PATH."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_cards_are_asked_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "echo \"$@\" > $(dirname $0)/asked; echo '0, 7, 10, 20, 30, 40.5'")
    found = measured(usage.Gauge(time.monotonic()), 6.0)
    assert found.cards == (Card(0, 0.07, 10 << 20, 20 << 20, 30.0, 40.5),)
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("--query-gpu=index,") and asked.endswith("--format=csv,noheader,nounits\n")


def test_a_driver_that_hangs_costs_its_cards_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(tmp_path, monkeypatch, "exec sleep 60")
    gauge = usage.Gauge(0.0)
    assert gauge.turn(6.0) is None and gauge.turn(9.0) is None
    found = gauge.turn(10.5)
    assert found is not None and found.cards == () and found.memory > 0
