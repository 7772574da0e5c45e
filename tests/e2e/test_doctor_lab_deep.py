"""`clusterft doctor --deep` on light nodes: real torch, gloo and DeepSpeed over a network that is made worse."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from doctoring import Desk, above_info, clean, finding, on, statuses

from clusterft import hosts, spec
from clusterft.checks import report
from clusterft.checks.examination import Absence, Examination, Wanted
from clusterft.checks.layers import deep as layer
from clusterft.facts.deep import Deep
from clusterft.findings import Finding
from clusterft.fleet import Fleet
from clusterft.probing import deep, ways
from clusterft.probing.crew import Crew
from lab import LightLab, LightNode

pytestmark = [pytest.mark.lab_light, pytest.mark.trainer, pytest.mark.long]

SECONDS = 300


@pytest.fixture(scope="module")
def lab() -> Iterator[LightLab]:
    with LightLab.up(count=3) as made:
        yield made


@pytest.fixture
def desk(lab: LightLab, tmp_path: Path) -> Desk:
    """Somebody who examines these three."""
    return Desk(lab, tmp_path / "desk")


def at_work(lab: LightLab) -> list[int]:
    """Processes of ours on the nodes."""
    return [pid for node in lab.nodes for pid in proving(node)]


def proving(node: LightNode) -> list[int]:
    """Those of one node; its first one is the one that all others are forks of."""
    found = []
    for one in node.processes():
        with contextlib.suppress(OSError):
            if b"clusterft_trainer.proving" in Path(f"/proc/{one.pid}/cmdline").read_bytes():
                found.append(one.pid)
    return sorted(found)


def nothing_stays(lab: LightLab) -> None:
    """Neither processes nor files; what was told to end takes a moment."""
    deadline = time.monotonic() + 10
    while left := at_work(lab):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert os.listdir(lab.shared) == []


def look(desk: Desk) -> tuple[Examination, tuple[Finding, ...]]:
    """The part that is ours alone: cheaper checks would have told most of these faults before."""
    job = spec.load(desk.job)
    cluster = hosts.load(desk.hosts)
    wanted = Wanted("cpu", contained=False, shared=str(job.shared), port=job.port, job=job)
    with Fleet(cluster, desk.known_hosts) as fleet:
        survey = fleet.survey(lambda node: (str(job.shared),))
        with Crew(fleet, ways.find(fleet, survey, wanted)) as crew:
            found = deep.run(crew, survey, wanted, lambda words: None)
    absent = {"deep": {name: Absence("", words) for name, words in found.missing.items()}}
    seen = Examination(wanted, survey, deep=found, absent=absent)  # type: ignore[arg-type]
    answers = report.judge(seen, layer.CHECKS)
    return seen, tuple(one for one in answers if one.status in ("fail", "warn"))


def pairs(found: Deep | None) -> dict[tuple[str, ...], bool]:
    """Pair -> whether it ever came back."""
    tried: dict[tuple[str, ...], bool] = {}
    for one in found.groups if found else ():
        if one.kind == "pair":
            tried[one.nodes] = tried.get(one.nodes, False) or one.busbw is not None
    return tried


def test_three_healthy_nodes_are_measured_and_nothing_is_found(lab: LightLab, desk: Desk) -> None:
    answer = desk.doctor("--deep", seconds=SECONDS)
    clean(answer)
    notes = "\n".join(answer["notes"])
    assert "n1-n2" in notes and "n1-n3" in notes and "n2-n3" in notes and "all 3" in notes, notes
    assert "read back on 3 nodes" in notes and "no end" not in notes
    for identity in ("run.straggler", "ckpt.latest"):
        assert statuses(answer, identity) == dict.fromkeys(("n1", "n2", "n3"), "ok")
    assert (desk.root / ".clusterft" / "rack" / "baseline.json").is_file()
    nothing_stays(lab)


@pytest.mark.long
def test_a_throttled_node_is_called_slow_and_is_well_afterwards(lab: LightLab, desk: Desk) -> None:
    lab.node("n2").throttle("20mbit")
    try:
        answer = desk.doctor("--deep", seconds=SECONDS)
    finally:
        lab.node("n2").unthrottle()
    one = finding(answer, "run.straggler", "n2")
    assert one["status"] == "warn" and "on n2: cat /sys/class/net/eth0/speed" in one["fix"][0]
    assert "n1 - n2: 0.00" in one["evidence"] and "without it: n1 - n3" in one["evidence"]
    assert answer["code"] == 0 and {each["id"] for each in above_info(answer)} <= {
        "run.straggler",
        "net.linkspeed",
        "net.loss",
    }
    clean(desk.doctor("--deep", seconds=SECONDS))
    nothing_stays(lab)


def test_a_network_that_was_faster_once_is_told_with_both_figures(lab: LightLab, desk: Desk) -> None:
    clean(desk.doctor("--deep", seconds=SECONDS))
    kept = desk.root / ".clusterft" / "rack" / "baseline.json"
    before = kept.read_text()
    for node in lab.nodes:
        node.throttle("200mbit")
    try:
        answer = desk.doctor("--deep", seconds=SECONDS)
    finally:
        for node in lab.nodes:
            node.unthrottle()
    told = [one for one in above_info(answer) if "slower than they used to be" in one["summary"]]
    assert [(one["id"], one["status"], one["nodes"]) for one in told] == [
        ("net.linkspeed", "warn", ["n1", "n2", "n3"])
    ]
    assert "n1 - n2: now 0.0" in told[0]["evidence"] and "n1 - n2 - n3: now 0.0" in told[0]["evidence"]
    assert kept.read_text() == before, "a bad day is not taken for usual"
    nothing_stays(lab)


def test_two_nodes_that_do_not_meet_are_a_link_and_not_a_node(lab: LightLab, desk: Desk) -> None:
    rule = f"INPUT -p tcp -s {lab.node('n3').address} ! --dport 22 --syn -j DROP"
    back = f"INPUT -p tcp -s {lab.node('n2').address} ! --dport 22 --syn -j DROP"
    on(lab, "n2", f"iptables -w -I {rule}")
    on(lab, "n3", f"iptables -w -I {back}")
    try:
        seen, found = look(desk)
    finally:
        on(lab, "n2", f"iptables -w -D {rule}")
        on(lab, "n3", f"iptables -w -D {back}")
    assert pairs(seen.deep) == {("n1", "n2"): True, ("n1", "n3"): True, ("n2", "n3"): False}
    assert [(one.id, one.status, one.nodes) for one in found] == [("net.high-ports", "fail", ("n2", "n3"))]
    assert f"on n2: sudo iptables -I INPUT -p tcp -s {lab.node('n3').address} -j ACCEPT" in found[0].fix
    # What the fix says, done, does mend it.
    on(lab, "n2", f"iptables -w -I {rule}")
    on(lab, "n2", f"iptables -w -I INPUT -p tcp -s {lab.node('n3').address} -j ACCEPT")
    try:
        assert look(desk)[1] == ()
    finally:
        on(lab, "n2", f"iptables -w -D INPUT -p tcp -s {lab.node('n3').address} -j ACCEPT")
        on(lab, "n2", f"iptables -w -D {rule}")
    nothing_stays(lab)


def test_large_packets_that_are_lost_are_told_from_a_closed_port(lab: LightLab, desk: Desk) -> None:
    rule = "INPUT -i eth0 -p tcp ! --dport 22 -m length --length 1400:65535 -j DROP"
    on(lab, "n2", f"iptables -w -I {rule}")
    try:
        _, found = look(desk)
    finally:
        on(lab, "n2", f"iptables -w -D {rule}")
    assert [(one.id, one.status, one.nodes) for one in found] == [("net.mtu", "fail", ("n2",))], found
    assert found[0].fix == ("on n2: ip link show eth0; sudo ip link set eth0 mtu 1400",)
    nothing_stays(lab)


def test_a_share_that_is_missing_on_one_node_tears_the_checkpoint(lab: LightLab, desk: Desk) -> None:
    on(lab, "n2", f"mount -t tmpfs -o size=8m lab {lab.shared}")
    try:
        _, found = look(desk)
        left = on(lab, "n2", f"ls -A {lab.shared}")
    finally:
        on(lab, "n2", f"umount {lab.shared}")
    assert [(one.id, one.status, one.nodes) for one in found] == [("fs.not-shared", "fail", ("n2",))]
    assert "latest" in found[0].evidence and any(
        f"on n2: mount the same at {lab.shared}" in w for w in found[0].fix
    )
    assert left == "" and look(desk)[1] == ()
    nothing_stays(lab)


def test_a_full_share_is_told_in_its_own_words(lab: LightLab, desk: Desk) -> None:
    for name in ("n1", "n2", "n3"):
        on(lab, name, f"mount -t tmpfs -o size=64k lab {lab.shared}")
    try:
        _, found = look(desk)
    finally:
        for name in ("n1", "n2", "n3"):
            on(lab, name, f"umount {lab.shared}")
    assert {one.id for one in found} == {"os.disk-full"}, found
    nothing_stays(lab)


def test_a_rank_that_is_killed_costs_its_group_and_no_time(lab: LightLab, desk: Desk) -> None:
    hit = threading.Event()

    def kill_one() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not hit.is_set():
            forks = proving(lab.node("n2"))[1:]
            if forks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(forks[-1], signal.SIGKILL)
                    hit.set()
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    began = time.monotonic()
    _, found = look(desk)
    killer.join()
    assert hit.is_set() and time.monotonic() - began < 120
    assert found == ()
    nothing_stays(lab)


def test_a_node_that_dies_meanwhile_is_unknown_and_the_others_are_measured(lab: LightLab, desk: Desk) -> None:
    def kill_all() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if len(mine := proving(lab.node("n3"))) > 1:
                os.kill(mine[0], signal.SIGKILL)
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_all)
    killer.start()
    seen, found = look(desk)
    killer.join()
    assert seen.deep and set(seen.deep.missing) == {"n3"}, seen.deep
    assert pairs(seen.deep)[("n1", "n2")] and found == ()
    nothing_stays(lab)


def test_beside_a_run_nothing_is_loaded(lab: LightLab, desk: Desk) -> None:
    # As its supervisor shows itself to others.
    posing = f"{sys.executable} -c 'import time; time.sleep(300)' -m clusterft_trainer.supervisor run /x"
    pid = on(lab, "n3", f"{posing} </dev/null >/dev/null 2>&1 & echo $!").strip()
    try:
        answer = desk.doctor("--deep", seconds=SECONDS)
    finally:
        on(lab, "n3", f"kill {pid}")
    clean(answer)
    said = [one for one in answer["checks"] if one["id"] == "run.straggler"]
    assert [one["status"] for one in said] == ["skipped"] and "a run is going on on n3" in said[0]["summary"]
    assert not any("all-reduce" in note for note in answer["notes"])


def test_doctor_interrupted_leaves_nothing(lab: LightLab, desk: Desk) -> None:
    argv = [
        sys.executable,
        "-m",
        "clusterft",
        "doctor",
        "--hosts",
        str(desk.hosts),
        "--job",
        str(desk.job),
        "--deep",
    ]
    doctor = subprocess.Popen(
        argv, env=desk.env, cwd=desk.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(at_work(lab)) <= 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    doctor.send_signal(signal.SIGINT)
    doctor.wait(timeout=30)
    nothing_stays(lab)
