"""Doctor names faults of the controller, of SSH and of a node's system, on real nodes; mended, it is silent again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import doctor_host_faults as faults
import pytest
from doctoring import Desk, Fault, above_info, clean, finding, statuses, suffers

from lab import FullLab, LightLab


@pytest.fixture(scope="module")
def light() -> Iterator[LightLab]:
    """Three nodes."""
    with LightLab.up(count=3) as made:
        yield made


@pytest.mark.lab_light
@pytest.mark.parametrize("fault", faults.LIGHT, ids=str)
def test_a_fault_is_named_with_node_and_fix(light: LightLab, fault: Fault, tmp_path: Path) -> None:
    suffers(fault, light, tmp_path)


@pytest.mark.lab_light
def test_what_lies_behind_a_node_that_is_lost_is_skipped(light: LightLab, tmp_path: Path) -> None:
    """Nothing good is said of it, also not under another id of ssh; the others are judged."""
    desk = Desk(light, tmp_path)
    light.node("n2").pause()
    try:
        answer = desk.doctor("--quick")
    finally:
        light.node("n2").resume()
    finding(answer, "ssh.timeout", "n2")
    for one in answer["checks"]:
        if "n2" in one["nodes"] and one["id"] not in ("ssh.timeout", "ssh.key-perms"):
            assert (one["status"], one["summary"]) == ("skipped", "(ssh.timeout)"), one
    assert statuses(answer, "os.disk-full") == {"n1": "ok", "n2": "skipped", "n3": "ok"}
    assert answer["code"] == 3 and answer["verdict"] == "fail"


@pytest.mark.lab_light
def test_three_faults_at_once_are_all_named(light: LightLab, tmp_path: Path) -> None:
    """One finding does not hide another, on the same node or on the next."""
    chosen = [one for one in faults.LIGHT if one.name in ("full disk", "small /dev/shm", "key that others may read")]
    desk = Desk(light, tmp_path)
    for one in chosen:
        one.inject(light, desk)
    try:
        answer = desk.doctor("--quick")
    finally:
        for one in chosen:
            one.mend(light, desk)
    assert {one["id"] for one in above_info(answer)} == {"os.disk-full", "os.shm", "ssh.key-perms"}
    clean(desk.doctor("--quick"))


@pytest.fixture(scope="module")
def full() -> Iterator[FullLab]:
    """Three nodes with files of their own."""
    with FullLab.up(count=3) as made:
        yield made


@pytest.mark.lab_full
@pytest.mark.long
@pytest.mark.parametrize("fault", faults.FULL, ids=str)
def test_a_fault_of_a_machine_with_files_of_its_own(full: FullLab, fault: Fault, tmp_path: Path) -> None:
    full.node("n1").inside(["chmod", "1777", full.shared])
    suffers(fault, full, tmp_path)
