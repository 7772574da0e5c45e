"""Doctor names faults of the controller, of SSH and of a node's system, on real nodes; mended, it is silent."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import doctor_host_faults as faults
import pytest
from doctoring import Desk, Fault, above_info, clean, finding, on, statuses, suffers

from lab import FullLab, LightLab, VmLab


@pytest.fixture(scope="module")
def light() -> Iterator[LightLab]:
    """Three nodes."""
    with LightLab.up(count=3) as made:
        yield made


SOON = ("wrong key", "shell that talks", "one machine twice", "full disk", "no inodes", "small /dev/shm")
LIGHT = [
    pytest.param(one, id=str(one), marks=[] if one.name in SOON else pytest.mark.long) for one in faults.LIGHT
]


@pytest.mark.lab_light
@pytest.mark.parametrize("fault", LIGHT)
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
@pytest.mark.long
def test_variables_of_a_login_that_no_rank_inherits_are_no_fault(light: LightLab, tmp_path: Path) -> None:
    """A preloaded library that is gone made every program complain, and the share was "too slow to look at"."""
    lines = ("LD_PRELOAD=/usr/lib/gone.so", "GLOO_SOCKET_IFNAME=lo", "PYTHONPATH=/usr/lib/gone")
    on(light, "n2", "".join(f"echo export {line} >>~/.bashrc; " for line in lines))
    try:
        answer = Desk(light, tmp_path).doctor("--quick")
    finally:
        on(light, "n2", "rm ~/.bashrc")
    clean(answer)
    assert statuses(answer, "fs.hung")["n2"] == "ok"


@pytest.mark.lab_light
def test_three_faults_at_once_are_all_named(light: LightLab, tmp_path: Path) -> None:
    """One finding does not hide another, on the same node or on the next."""
    chosen = [
        one for one in faults.LIGHT if one.name in ("full disk", "small /dev/shm", "key that others may read")
    ]
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


@pytest.mark.lab_light
@pytest.mark.long
def test_an_sshd_whose_callers_are_too_many(tmp_path: Path) -> None:
    """Others hold all its places for longer than we try."""
    with LightLab.up(count=2, max_startups="2:100:2") as lab:
        desk = Desk(lab, tmp_path)
        with contextlib.ExitStack() as held:
            for _ in range(3):
                held.enter_context(socket.create_connection((lab.node("n2").address, 22), 5))
            one = finding(desk.doctor("--quick"), "ssh.maxstartups", "n2")
        assert "MaxStartups 100:30:200" in one["fix"][0]
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


@pytest.mark.lab_vm
def test_a_wrong_clock_and_a_hang_in_the_kernel_are_told_by_real_kernels(tmp_path: Path) -> None:
    """Only a machine of its own has a clock of its own, and an NFS client that waits in state D."""
    with VmLab.up(count=2) as lab:
        desk = Desk(lab, tmp_path)
        clean(desk.doctor("--quick"))
        on(lab, "n2", "date -s @$(($(date +%s) + 90))")
        one = finding(desk.doctor("--quick"), "os.clock", "n2")
        assert one["status"] == "fail" and "ahead of the controller's" in one["summary"], one
        assert one["fix"] == ["sudo timedatectl set-ntp true"]
        on(lab, "n2", "date -s @$(($(date +%s) - 90))")
        clean(desk.doctor("--quick"))
        lab.node("n1").pause()
        try:
            on(lab, "n2", "nohup ls /shared/nothing >/dev/null 2>&1 </dev/null &")
            time.sleep(12)
            answer = desk.doctor("--quick")
        finally:
            lab.node("n1").resume()
        finding(answer, "ssh.timeout", "n1")
        hung = finding(answer, "os.hung-task", "n2")
        assert " ls waits in " in hung["evidence"] and "umount -f -l" in hung["fix"][0], hung
