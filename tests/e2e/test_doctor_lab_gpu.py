"""Doctor names what is wrong with cards, on light nodes whose nvidia-smi is a stand-in: tests/e2e/smi.py.

No card is behind it, so this proves the way from a driver's answer on a node to a finding with its node and fix,
and nothing about cards. It lies over an empty directory of the node's PATH, which other nodes do not see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from doctoring import AnyLab, Desk, above_info, clean, finding, on

from e2e.smi import Smi, card
from lab import LightLab

pytestmark = [pytest.mark.lab_light, pytest.mark.long]

JOB = """\
name: tiny
shared: {shared}
runtime: process
resources: {{device: cuda}}
train:
  model: builtin:tiny
  output: {{name: tiny}}
  data: {{sources: [{{builtin: shapes}}]}}
  learn: {{unet: {{rate: 1e-3}}}}
  precision: bf16
  steps: 3
"""
PLACE = "/usr/local/sbin"
TWO = (card(0), card(1))


@pytest.fixture(scope="module")
def lab() -> Iterator[LightLab]:
    """Three nodes of two cards that do not exist."""
    with LightLab.up(count=3) as made:
        for node in made.nodes:
            on(made, node.name, f"mount -t tmpfs -o mode=755 cards {PLACE}; mount -o remount,size=2g /dev/shm")
            command(made, node.name, "dmesg", "#!/bin/sh\necho '[    1.000000] Linux version 6.8'\n")
            command(made, node.name, "journalctl", "#!/bin/sh\nexit 1\n")
        yield made


def command(lab: AnyLab, node: str, name: str, body: str) -> None:
    """One in place of the node's own."""
    on(lab, node, f"cat >{PLACE}/{name} <<'END'\n{body}END\nchmod 755 {PLACE}/{name}")


@pytest.fixture
def desk(lab: LightLab, tmp_path: Path) -> Desk:
    """All is well, and doctor is asked of two slots a node."""
    for node in lab.nodes:
        command(lab, node.name, "nvidia-smi", Smi(TWO).program())
    hosts = lab.hostfile.read_text().replace("slots=1", "slots=2")
    return Desk(lab, tmp_path, hosts=hosts, job=JOB.format(shared=lab.shared))


@dataclass(frozen=True)
class Sick:
    """What n2's driver says, and what doctor must make of it."""

    id: str
    smi: Smi
    fix: str
    status: str = "warn"
    words: str = ""

    def __str__(self) -> str:
        return f"{self.id} {self.words}".strip()


def second(**changes: Any) -> Smi:
    """The second card of n2 is another one."""
    return Smi((card(0), card(1, **changes)))


OLD = {"name": "Quadro RTX 6000", "compute_cap": "7.5"}
SICK = [
    Sick("gpu.count", Smi((card(0),)), "slots=", "fail", "1 of 2 cards"),
    Sick("gpu.mismatch", Smi(words="Failed to initialize NVML: Driver/library version mismatch\n"
                                   "NVML library version: 570.158"), "sudo reboot", "fail"),
    Sick("gpu.mixed", Smi(TWO, driver="535.183.01"), "one driver version", "warn", "535.183.01"),
    Sick("gpu.power-limit", second(**{"power.limit": "250.00"}),
         "on n2: sudo nvidia-smi -pm 1; sudo nvidia-smi -i 1 -pl 350", words="250 W"),
    Sick("gpu.throttle", second(**{"clocks_throttle_reasons.active": "0x0000000000000040", "utilization.gpu": 98}),
         "on n2: nvidia-smi -q -i 1", words="too hot"),
    Sick("gpu.throttle", second(**{"clocks_throttle_reasons.active": "0x0000000000000088", "utilization.gpu": 98}),
         "power supply", words="power brake"),
    Sick("gpu.pcie", second(**{"pcie.link.width.current": 4}), "on n2: with the power off, seat card 1 anew",
         words="4 PCIe lanes of 16"),
    Sick("gpu.ecc", Smi(TWO, remapped=("1", "Yes", "No")), "sudo nvidia-smi --gpu-reset -i", "fail", "reset"),
    Sick("gpu.ecc", Smi(TWO, remapped=("8", "No", "Yes")), "replace the card", "fail", "no spare rows"),
    Sick("gpu.ecc", second(**{"ecc.errors.uncorrected.volatile.total": 2}), "--gpu-reset -i 1", words="2 memory"),
    Sick("gpu.busy", Smi(TWO, programs=((1, "python"),)), "ask its owner, or end it: kill 1", "fail", "card 0"),
    Sick("gpu.display", Smi((card(0, display_active="Enabled", **{"memory.used": 312}), card(1))),
         "move the screen", words="312 MiB"),
    Sick("gpu.bf16", Smi((card(0, **OLD), card(1, **OLD))), "precision: fp16", "fail", "7.5"),
]  # fmt: skip


def test_two_healthy_cards_a_node_are_clean(desk: Desk) -> None:
    clean(desk.doctor("--quick"))


@pytest.mark.parametrize("sick", SICK, ids=str)
def test_a_sick_card_is_named_with_node_and_fix(lab: LightLab, desk: Desk, sick: Sick) -> None:
    command(lab, "n2", "nvidia-smi", sick.smi.program())
    answer = desk.doctor("--quick")
    found = [one for one in above_info(answer) if one["id"] == sick.id]
    assert found and all(one["nodes"] == ["n2"] and one["status"] == sick.status for one in found), above_info(
        answer
    )
    assert sick.fix in "\n".join(found[0]["fix"])
    assert sick.words in found[0]["summary"] + found[0]["evidence"]
    others = {one["id"] for one in above_info(answer)} - {sick.id}
    assert not others - {"gpu.mixed"}, above_info(answer)  # another card is another card
    command(lab, "n2", "nvidia-smi", Smi(TWO).program())
    clean(desk.doctor("--quick"))


def test_an_xid_of_today_is_told_and_one_of_a_program_is_not(lab: LightLab, desk: Desk) -> None:
    now = on(lab, "n2", "cut -d. -f1 /proc/uptime").strip()
    line = f"[{now:>5}.000000] NVRM: Xid (PCI:0000:02:00): {{}}, pid=4711, name=python, words"
    for number, told in ((13, False), (79, True), (119, True)):
        command(lab, "n2", "dmesg", f"#!/bin/sh\necho '{line.format(number)}'\n")
        answer = desk.doctor("--quick")
        if told:
            one = finding(answer, "gpu.xid", "n2")
            assert f"Xid {number} of card 1" in one["summary"] and "sudo reboot" in one["fix"][0]
        else:
            clean(answer)
    command(lab, "n2", "dmesg", "#!/bin/sh\necho '[    1.000000] Linux version 6.8'\n")
    clean(desk.doctor("--quick"))


def test_a_driver_that_hangs_is_survived_by_the_rest(lab: LightLab, desk: Desk) -> None:
    command(lab, "n2", "nvidia-smi", "#!/bin/sh\nexec sleep 120\n")
    answer = desk.doctor("--quick")
    assert answer["took"] < 40
    one = finding(answer, "gpu.count", "n2")
    assert one["status"] == "fail" and "does not answer" in one["summary"] and one["fix"][-1] == "sudo reboot"
    assert not [one for one in above_info(answer) if one["nodes"] != ["n2"]], above_info(answer)
