"""Proves what doctor makes of a node's system, of SSH and of the controller: findings from facts, else silence.

The samples in tests/golden/doctor/host are answers of facts.health.host. Recorded: virtual_machine_*, busybox,
light_node, container_*, debian_with_systemd. Written by hand after the systems' documentation and after reports of
them: all others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import scenes
from hypothesis import given
from hypothesis import strategies as st

from clusterft.checks import Survey, Unreached, catalogue
from clusterft.checks.examination import Examination, Wanted
from clusterft.checks.layers import controller, host, ssh
from clusterft.facts import UNLIMITED, Address, InfiniBand, Limits, Link, Mount, frames, probe
from clusterft.facts.desk import Closed, Desk, OpenKey, SharedLogin
from clusterft.facts.health import Asked, HostHealth, host_settings
from clusterft.facts.health import host as asked_of
from clusterft.facts.health.confines import Confines
from clusterft.facts.health.host import Clock, KernelLine, Shm, Stuck, Volume
from clusterft.findings import Finding
from clusterft.remote import refusal

GIB, MIB = 2**30, 2**20
WORD = "5eed5eed5eed5eed"
GOLDEN = scenes.GOLDEN / "doctor" / "host"
TWO = scenes.cluster("a slots=2\nb slots=2\n")
CPU = Wanted("cpu", contained=False, shared="/shared", owner=(1000, 1000))
CUDA = Wanted("cuda", shared="/shared", owner=(1000, 1000))
ROOM = Volume("home", "/", 900 * GIB, 400 * GIB, 60_000_000, 50_000_000)
SHARE = Volume("shared", "/shared", 9000 * GIB, 4000 * GIB, None, None)
WELL = HostHealth(clock=Clock(0.001, 0.004), volumes=(ROOM, SHARE), stuck=(), kernel=(), shm=Shm({}, frozenset()),
                  port_range=(32768, 60999), reserved_ports=())  # fmt: skip
# What is wrong with a sample, seen by a person's run on cards in containers; the rest must be silent.
EXPECTED: dict[str, set[str]] = {
    "ubuntu_server_driver_from_security": {"os.auto-upgrade"},
    "fedora_desktop_that_sleeps": {"os.suspend"},
    "held_at_its_lowest_clock": {"os.governor"},
    "sleeps_by_logind": {"os.suspend"},
    "removes_ipc": {"os.removeipc"},
    "hangs_on_nfs": {"os.hung-task"},
    "killed_for_memory": {"os.oom"},
    "connections_full": {"os.conntrack"},
    "little_room": {"os.disk-full", "os.inodes"},
}


def sample(name: str) -> HostHealth:
    """A recorded answer."""
    text = (GOLDEN / f"{name}.txt").read_text()
    asked = Asked(WORD, "/shared", sent=100.0, received=100.2, clock="100.1\n")
    names = (*asked_of.sections(asked), *asked_of.stages(asked))
    return asked_of.parse(frames.framed(text, WORD, names), asked)


def facts(name: str, **changes: Any) -> Any:
    """A healthy node."""
    return scenes.facts(name, **{"shm": 8 * GIB, "shm_free": 8 * GIB, **changes})


SDXL = {"unet": 2_567_463_684, "text_encoder_1": 123_060_480, "text_encoder_2": 694_659_840, "vae": 83_653_863}


def seen(wanted: Wanted = CPU, *, of_a: dict[str, Any] | None = None, desk: Desk | None = None,
         **health: HostHealth) -> Examination:  # fmt: skip
    """Two healthy nodes, but for what is given."""
    survey = scenes.survey(TWO, facts("a", **(of_a or {})), facts("b"))
    looks: Any = {name: SimpleNamespace(host=health.get(name, WELL), confines=Confines((), ())) for name in "ab"}
    return Examination(wanted, survey, health=looks, desk=desk or Desk())


def found(examination: Examination, *layers: Any) -> list[Finding]:
    """All that these layers say; calm answers too."""
    checks = [one for layer in layers or (host, ssh, controller) for one in layer.CHECKS]
    return [each for one in checks for each in one.find(examination)]


def loud(examination: Examination, *layers: Any) -> list[Finding]:
    """What blocks or warns."""
    return [one for one in found(examination, *layers) if one.status in ("fail", "warn")]


def only(examination: Examination, identity: str, *nodes: str) -> Finding:
    """The one finding there is, in words that a person can act upon."""
    told = loud(examination)
    assert [one.id for one in told] == [identity], told
    assert told[0].nodes == (nodes or ("a",)) and told[0].fix and told[0].evidence and told[0].blast_radius, told
    assert not told[0].summary.endswith(".") and told[0].cause, told
    return told[0]


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.txt")))
@pytest.mark.parametrize("wanted", [CPU, CUDA], ids=["cpu", "cuda"])
def test_a_sample_gives_what_is_wrong_with_it_and_nothing_else(name: str, wanted: Wanted) -> None:
    expected = EXPECTED.get(name, set())
    if wanted is CPU:
        expected = expected - {"os.removeipc"}  # whose processes are in no container is logged in
    read = sample(name)
    every = found(seen(replace(wanted, owner=(1000, 1000)), a=replace(read, clock=WELL.clock)), host)
    if wanted is CPU:
        every = [one for one in every if one.id != "os.auto-upgrade"]  # asked where cards are
        expected = expected - {"os.auto-upgrade"}
    assert {one.id for one in every if one.status in ("fail", "warn")} == expected
    unknown = {one.id for one in every if one.status == "unknown"}
    silent = {"os.oom"} if read.kernel is None else set()
    silent |= set() if read.volume("shared") else {"os.disk-full"}
    assert unknown == silent - expected


def test_samples_are_read_in_full() -> None:
    desktop = sample("ubuntu_desktop")
    assert desktop.sleep and desktop.sleep.desktop == ("nothing", 1200) and not desktop.sleep.masked
    assert desktop.apt and desktop.apt.upgrades and len(desktop.apt.held) == 3
    assert desktop.apt.from_security == set(desktop.apt.drivers) and len(desktop.apt.drivers) == 3
    assert desktop.kernel == (KernelLine(85223.0, "Out of memory: Killed process 4242 (chrome) total-vm:1200kB"),)
    assert sample("ubuntu_server_cuda_repository").apt.from_security == frozenset()  # type: ignore[union-attr]
    rocky = sample("rocky_server")
    assert rocky.shm == Shm({"nccl-3fPq2k": (1000, 9637888)}, frozenset({"nccl-3fPq2k"}))
    assert rocky.logind and rocky.logind.remove_ipc is False and rocky.conntrack is None
    assert rocky.ntp and rocky.ntp["daemons"] == "chronyd" and rocky.root_options == ("defaults",)
    arch = sample("arch_laptop_on_battery")
    assert arch.governor and arch.governor.names == {"powersave": 8} and arch.governor.highest == 4507000
    assert sample("container_guest").kernel is None and sample("virtual_machine_root").kernel is not None
    fedora = sample("fedora_desktop_that_sleeps").volume("home")
    assert fedora and fedora.mounted_on == "/home" and fedora.inodes is None and fedora.free_inodes is None
    assert sample("busybox").volume("home") and sample("busybox").volume("shared") is None
    assert sample("busy_disk").stuck is not None
    assert {one.pid for one in sample("busy_disk").stuck or ()} == {78, 79}, "tar has run in between"


def test_healthy_nodes_give_no_finding_at_all() -> None:
    assert found(seen()) == [] and found(seen(CUDA)) == []


# -- clock --------------------------------------------------------------------------------------------------


def test_a_clock_is_judged_by_what_is_sure_of_it() -> None:
    ahead = only(seen(a=replace(WELL, clock=Clock(75.0, 0.1))), "os.clock")
    assert ahead.status == "fail" and "75.0 s ahead" in ahead.summary
    assert only(seen(a=replace(WELL, clock=Clock(-5.0, 0.1))), "os.clock").status == "warn"
    assert loud(seen(a=replace(WELL, clock=Clock(5.0, 4.0)))) == [], "a slow round trip tells nothing"
    (unknown,) = found(seen(a=replace(WELL, clock=None)), host)
    assert (unknown.id, unknown.status, unknown.nodes) == ("os.clock", "unknown", ("a",))


def test_when_all_nodes_agree_it_is_this_machine_that_is_wrong() -> None:
    off = replace(WELL, clock=Clock(-300.2, 0.1))
    told = only(seen(a=off, b=replace(off, clock=Clock(-300.0, 0.1))), "os.clock", "a", "b")
    assert told.status == "warn" and "this machine's clock is 300.1 s ahead of" in told.summary
    apart = loud(seen(a=off, b=replace(off, clock=Clock(300.0, 0.1))))
    assert [one.nodes for one in apart] == [("a",), ("b",)] and all(one.status == "fail" for one in apart)


@pytest.mark.parametrize(
    ("ntp", "fix"),
    [
        ({"daemons": "chronyd", "NTP": "yes"}, "sudo chronyc makestep"),
        ({"daemons": "", "NTP": "yes"}, "sudo systemctl restart systemd-timesyncd"),
        ({"daemons": "", "NTP": "no"}, "sudo timedatectl set-ntp true"),
        ({"daemons": "", "NTP": "no", "CanNTP": "yes"}, "sudo timedatectl set-ntp true"),
        ({"daemons": "", "NTP": "no", "CanNTP": "no"}, "sudo apt-get install chrony   (or: sudo dnf install"),
    ],
)
def test_the_clock_is_mended_by_what_sets_it(ntp: dict[str, str], fix: str) -> None:
    told = only(seen(a=replace(WELL, clock=Clock(9.0, 0.1), ntp=ntp)), "os.clock")
    assert told.fix[0].startswith(fix)


@pytest.mark.parametrize(
    ("said", "offset", "noise"),
    [
        ("1000000050.250000000\n", 50.15, ""),
        ("1000000050.N\n", 50.4, ""),  # a date without fractions: half a second more or less
        ("1000000050\n", 50.4, ""),
        ("Welcome!\nNever 1000000001\n1000000050.250000000\n", 50.15, "Welcome!\nNever 1000000001"),
        ("no newline 1000000050.250000000\n", 50.15, "no newline"),
        ("date: command not found\n", None, ""),
        ("", None, ""),
    ],
)
def test_the_date_is_read_whatever_is_around_it(said: str, offset: float | None, noise: str) -> None:
    asked = Asked(WORD, sent=1_000_000_000.0, received=1_000_000_000.2, clock=said)
    clock = asked_of._clock(asked)
    assert (clock and round(clock.offset, 3)) == offset and asked_of._noise(asked) == noise
    assert clock is None or round(clock.error, 3) in (0.1, 0.6)


# -- rooms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("volume", "status"),
    [
        (ROOM._replace(free=8 * MIB), "fail"),
        (ROOM._replace(size=GIB, free=30 * MIB), "warn"),
        (ROOM._replace(size=20_000 * GIB, free=500 * GIB), None),  # 2.5 %, and plenty
        (ROOM._replace(size=256 * MIB, free=200 * MIB), None),
        (ROOM._replace(free=-4096), "fail"),  # the part that is kept for root is in use
    ],
)
def test_room_at_home(volume: Volume, status: str | None) -> None:
    told = loud(seen(a=replace(WELL, volumes=(volume, SHARE))), host)
    assert [one.status for one in told] == ([status] if status else [])
    assert all(one.id == "os.disk-full" and "du -xh /" in one.fix[0] for one in told)


def test_tmp_alone_only_warns_and_the_shared_dir_is_asked_for_what_a_run_needs() -> None:
    full = ROOM._replace(directory="/tmp", mounted_on="/tmp", size=GIB, free=0)
    assert only(seen(a=replace(WELL, volumes=(ROOM, SHARE, full))), "os.disk-full").status == "warn"
    share = ROOM._replace(directory="shared", mounted_on="/shared", free=90 * MIB)
    told = only(seen(a=replace(WELL, volumes=(ROOM, share))), "os.disk-full")
    assert told.status == "fail" and "128 MiB needed" in told.evidence and "/shared" in told.summary


def test_the_shared_dir_is_asked_for_what_the_jobs_checkpoints_take(tmp_path: Path) -> None:
    large = scenes.JOB.replace("builtin:tiny", "/models/base").replace("steps: 3", "steps: 3000")
    share = SHARE._replace(free=100 * 10**9, inodes=9000, free_inodes=100)
    tiny, full = (replace(CPU, job=scenes.job(text, tmp_path)) for text in (scenes.JOB, large))
    roomy = replace(WELL, volumes=(ROOM, share._replace(free_inodes=900)))
    assert loud(seen(tiny, a=roomy), host) == []
    told = only(seen(full, a=roomy), "os.disk-full")
    assert told.status == "warn" and "100 GB are free on /shared" in told.evidence
    none = only(seen(tiny, a=replace(WELL, volumes=(ROOM, share))), "os.inodes")
    assert none.status == "fail"
    # One that the first run makes has the room above it.
    above = {"disks": (scenes.disk("/shared", free_bytes=10**9),)}
    lacking = seen(full, of_a=above, a=replace(WELL, volumes=(ROOM,)))
    assert only(lacking, "os.disk-full").status == "warn", "by a guess at the model"
    assert only(replace(lacking, weights=SDXL), "os.disk-full").status == "fail"
    assert loud(seen(tiny, of_a=above, a=replace(WELL, volumes=(ROOM,))), host) == []


def test_what_docker_keeps_counts_where_containers_are_used() -> None:
    engine = scenes.docker(free_bytes=100 * MIB, mounted_on="/", store="/var/lib/docker")
    assert loud(seen(of_a={"docker": engine}), host) == []
    told = only(seen(CUDA, of_a={"docker": engine}), "os.disk-full")
    assert told.status == "fail" and told.fix[0].startswith("docker image prune")
    little = replace(engine, free_bytes=15 * GIB)
    assert only(seen(CUDA, of_a={"docker": little}), "os.disk-full").status == "warn", "of 900 GiB at home"


def test_room_that_cannot_be_read_is_unknown() -> None:
    told = found(seen(a=replace(WELL, volumes=(ROOM,))), host)
    assert [(one.id, one.status, one.nodes) for one in told] == [("os.disk-full", "unknown", ("a",))]
    assert "/shared" in told[0].summary


def test_a_shared_dir_that_the_first_run_makes_has_the_room_above_it() -> None:
    health = replace(WELL, volumes=(ROOM,))
    roomy, tight = scenes.disk("/shared"), scenes.disk("/shared", free_bytes=2**20)
    assert found(seen(a=health, of_a={"disks": (roomy,)}), host) == []
    (one,) = found(seen(a=health, of_a={"disks": (tight,)}), host)
    assert (one.id, one.status, one.nodes) == ("os.disk-full", "fail", ("a",))


def test_what_lies_beneath_a_share_that_is_not_mounted_says_nothing_of_its_room() -> None:
    beneath = Volume("shared", "/", 64 * 2**10, 0, None, None)
    assert found(seen(a=replace(WELL, volumes=(ROOM, beneath))), host) == []
    full = SHARE._replace(free=0)
    assert {one.id for one in found(seen(a=replace(WELL, volumes=(ROOM, full))), host)} == {"os.disk-full"}


def test_inodes() -> None:
    none = ROOM._replace(inodes=1_000_000, free_inodes=3)
    told = only(seen(a=replace(WELL, volumes=(none, SHARE))), "os.inodes")
    assert told.status == "fail" and "du -x --inodes /" in told.fix[0]
    assert loud(seen(a=replace(WELL, volumes=(ROOM._replace(inodes=None, free_inodes=None),)))) == []
    assert loud(seen(a=replace(WELL, volumes=(ROOM._replace(inodes=2000, free_inodes=900),)))) == []


def mounted(options: str, target: str = "/", fstype: str = "ext4") -> dict[str, Any]:
    """Facts of a node with one mount."""
    return {"mounts": (Mount("/dev/sda1", target, fstype, options),)}


def test_a_directory_that_is_needed_must_not_be_read_only() -> None:
    told = only(seen(of_a=mounted("ro,relatime")), "os.ro-fs")
    assert "mount -o remount,rw /" in told.fix[0] and "ro,relatime" in told.evidence and told.status == "fail"
    assert loud(seen(of_a=mounted("rw,errors=remount-ro"))) == []
    assert loud(seen(of_a=mounted("ro", "/snap/core/1", "squashfs"))) == [], "nobody writes there"
    line = KernelLine(9e5, "EXT4-fs (sda1): Remounting filesystem read-only")
    broken = only(seen(of_a=mounted("ro"), a=replace(WELL, kernel=(line,))), "os.ro-fs")
    assert line.words in broken.evidence and "dmesg | grep sda1" in broken.fix[0] and "error" in broken.cause


def test_a_read_only_root_counts_only_where_fstab_means_otherwise() -> None:
    home = ROOM._replace(mounted_on="/var/home")
    immutable = replace(WELL, volumes=(home, SHARE), root_options=("ro",))
    assert loud(seen(of_a=mounted("ro"), a=immutable)) == []
    assert loud(seen(of_a=mounted("ro"), a=replace(immutable, root_options=None))) == []
    assert only(seen(of_a=mounted("ro"), a=replace(immutable, root_options=("defaults",))), "os.ro-fs")


# -- memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ago", "status"), [(60.0, "warn"), (3500.0, "warn"), (4000.0, None), (None, None), (-900.0, None)]
)
def test_only_what_the_kernel_killed_of_late_counts(ago: float | None, status: str | None) -> None:
    line = KernelLine(ago, "Out of memory: Killed process 7 (python3)")
    told = loud(seen(a=replace(WELL, kernel=(line,))), host)
    assert [one.status for one in told] == ([status] if status else [])


def test_memory_that_is_nearly_gone() -> None:
    told = only(seen(of_a={"memory": 64 * GIB, "memory_available": GIB}), "os.oom")
    assert told.status == "warn" and "1.0 GiB of 64.0 GiB" in told.evidence
    assert loud(seen(of_a={"memory": 8 * GIB, "memory_available": GIB})) == []


def test_what_zfs_gives_back_is_not_gone() -> None:
    """Its cache takes half of the memory, and MemAvailable does not count it."""
    little = {"memory": 64 * GIB, "memory_available": GIB}
    names = (*asked_of.sections(Asked(WORD)), *asked_of.stages(Asked(WORD)))
    stats = f"c_min                           4    {2 * GIB}\nsize                            4    {30 * GIB}\n"
    read = asked_of.parse({**dict.fromkeys(names, ""), "host.arc": stats}, Asked(WORD))
    assert read.reclaimable == 28 * GIB
    assert loud(seen(of_a=little, a=replace(WELL, reclaimable=read.reclaimable))) == []
    told = only(seen(of_a=little, a=replace(WELL, reclaimable=GIB // 2)), "os.oom")
    assert "1.0 GiB of 64.0 GiB, and 0.5 GiB that ZFS" in told.evidence or "512" in told.evidence


def test_a_log_that_only_root_may_read_is_unknown_and_says_how() -> None:
    (one,) = found(seen(a=replace(WELL, kernel=None)), host)
    assert (one.id, one.status, one.needs_root) == ("os.oom", "unknown", True) and "sudo dmesg" in one.fix[0]


@pytest.mark.parametrize(
    ("wanted", "size", "free", "status"),
    [
        (CUDA, 64 * MIB, 64 * MIB, "warn"),
        (CUDA, 2 * GIB, 2 * GIB, None),
        (CPU, 64 * MIB, 64 * MIB, "warn"),
        (CPU, 512 * MIB, 512 * MIB, None),
        (CUDA, 8 * GIB, 10 * MIB, "warn"),
    ],
)
def test_shared_memory(wanted: Wanted, size: int, free: int, status: str | None) -> None:
    told = loud(seen(wanted, of_a={"shm": size, "shm_free": free}), host)
    assert [(one.id, one.status) for one in told] == ([("os.shm", status)] if status else [])


def test_leftovers_are_what_no_process_has_and_we_may_judge() -> None:
    files = {"nccl-aaa": (1000, 200 * MIB), "nccl-bbb": (1000, 200 * MIB), "nccl-root": (0, GIB)}
    health = replace(WELL, shm=Shm(files, frozenset({"nccl-bbb"})))
    told = only(seen(of_a={"uid": 1000}, a=health), "os.shm")
    assert "nccl-aaa" in told.evidence and "nccl-bbb" not in told.evidence and "nccl-root" not in told.evidence
    assert told.fix == ("while nothing trains there: rm /dev/shm/nccl-*",)
    (root,) = [one for one in loud(seen(of_a={"uid": 0}, a=health)) if one.id == "os.shm"]
    assert "nccl-root" in root.evidence and "nccl-bbb" not in root.evidence
    trifle = {"uid": 1000, "shm": 500 * GIB, "shm_free": 499 * GIB}
    assert loud(seen(of_a=trifle, a=replace(WELL, shm=Shm({"nccl-aaa": (1000, MIB)}, frozenset())))) == []


# -- kernel -------------------------------------------------------------------------------------------------


def stuck(place: str, *, age: float = 500.0, name: str = "python3") -> HostHealth:
    """A node with one process that waits."""
    return replace(WELL, stuck=(Stuck(7, age, place, name),))


def test_a_hang_is_told_with_where_it_waits() -> None:
    share = only(seen(a=stuck("rpc_wait_bit_killable")), "os.hung-task")
    assert share.status == "warn" and "network filesystem" in share.cause and "findmnt" in share.fix[0]
    disk = only(seen(a=stuck("__sb_start_write")), "os.hung-task")
    assert loud(seen(a=stuck("rtnl_lock"))) == [], "on a busy machine locks are waited for, and that is no hang"
    assert "dmesg" in disk.fix[0] and "pid 7 python3 waits in __sb_start_write" in disk.evidence
    line = KernelLine(30.0, "INFO: task python3:7 blocked for more than 120 seconds.")
    both = replace(stuck("io_schedule"), kernel=(line,))
    assert only(seen(a=both), "os.hung-task").status == "fail"
    assert loud(seen(a=replace(WELL, kernel=(line,)))) == [], "what the kernel has told of is over"


def test_where_another_users_process_waits_is_for_root_to_see() -> None:
    (one,) = found(seen(a=stuck("")), host)
    assert (one.id, one.status) == ("os.hung-task", "unknown") and one.fix == ("sudo cat /proc/7/stack",)
    line = KernelLine(30.0, "INFO: task python3:7 blocked for more than 120 seconds.")
    assert only(seen(a=replace(stuck(""), kernel=(line,))), "os.hung-task").status == "fail"


@pytest.mark.parametrize(
    "health",
    [
        stuck("__refrigerator"),
        stuck("wait_for_vfork_done"),
        stuck("request_wait_answer", age=3.0, name="df"),  # our own look, at a share that is slow
        stuck("jbd2_log_wait_commit"),  # a disk that has much to write
    ],
)
def test_who_waits_on_purpose_or_for_us_does_not_hang(health: HostHealth) -> None:
    assert loud(seen(a=health)) == []


@pytest.mark.parametrize(
    ("low", "high", "reserved", "port", "bad"),
    [
        (32768, 60999, (), 29500, False),
        (20000, 60999, (), 29500, True),
        (20000, 60999, ((29500, 29500),), 29500, False),
        (1024, 65535, ((8080, 8080),), 29500, True),
        (32768, 60999, (), 40000, True),
    ],
)
def test_the_port_must_not_be_given_away(
    low: int, high: int, reserved: tuple[tuple[int, int], ...], port: int, bad: bool
) -> None:
    health = replace(WELL, port_range=(low, high), reserved_ports=reserved)
    told = loud(seen(replace(CPU, port=port), a=health, b=replace(WELL, port_range=(50000, 51000))))
    assert [one.id for one in told] == (["os.portrange"] if bad else [])
    if reserved and bad:
        assert "ip_local_reserved_ports=8080,29500" in told[0].fix[0], "what was reserved stays so"


def test_a_table_of_connections_that_is_full() -> None:
    assert only(seen(a=replace(WELL, conntrack=(262100, 262144))), "os.conntrack")
    assert loud(seen(a=replace(WELL, conntrack=(200000, 262144)))) == []
    assert loud(seen(a=replace(WELL, conntrack=(0, 0)))) == []
    idle = only(seen(a=replace(WELL, forgotten=120)), "os.conntrack")
    assert "idle for 120 s" in idle.summary and "established=432000" in idle.fix[0]
    assert loud(seen(a=replace(WELL, forgotten=432000))) == []


def cards(*names: str, subnet: str = "10.0.0") -> dict[str, Any]:
    """Facts of a node with cards in one subnet."""
    return {
        "addresses": tuple(Address(name, f"{subnet}.{10 + n}", 24) for n, name in enumerate(names)),
        "links": tuple(Link(name, True, 1500, None, 1000) for name in names),
    }


def test_two_cards_in_one_subnet() -> None:
    strict = replace(WELL, rp_filter={"all": 0, "eno1": 1, "eno2": 1, "docker0": 1, "veth7": 1})
    told = only(seen(of_a=cards("eno1", "eno2"), a=strict), "os.rp-filter")
    assert "eno1 10.0.0.10" in told.evidence and "net.ipv4.conf.eno2.rp_filter=2" in told.fix[1]
    loose = replace(WELL, rp_filter={"all": 2, "eno1": 1, "eno2": 1})
    assert loud(seen(of_a=cards("eno1", "eno2"), a=loose)) == []
    assert loud(seen(of_a=cards("eno1", "docker0", "veth7"), a=strict)) == []
    down = cards("eno1", "eno2")
    down["links"] = down["links"][:1]
    assert loud(seen(of_a=down, a=strict)) == []


# -- limits and upkeep --------------------------------------------------------------------------------------


def test_limits_of_a_login_count_outside_containers() -> None:
    limits = {"limits": Limits(nofile=1024, memlock=8 * MIB, stack=UNLIMITED), "user": "ada"}
    told = only(seen(of_a=limits), "os.stack")
    assert "ada soft stack 8192" in told.fix[0]
    assert loud(seen(CUDA, of_a=limits)) == []
    port = InfiniBand("mlx5_0", 1, "ACTIVE", "200 Gb/sec", "InfiniBand", "ib0")
    rdma = {"limits": Limits(1024, 8 * MIB, 8 * MIB), "infiniband": (port,), "user": "ada"}
    assert only(seen(of_a=rdma), "os.memlock").status == "fail"
    assert loud(seen(of_a={**rdma, "limits": Limits(1024, UNLIMITED, 8 * MIB)})) == []


@pytest.mark.parametrize(
    ("owner", "bad"), [((1000, 1000), True), ((0, 0), False), ((998, 998), False), (None, False)]
)
def test_logind_clears_up_after_people_only(owner: tuple[int, int] | None, bad: bool) -> None:
    health = replace(WELL, logind=sample("removes_ipc").logind)
    told = loud(seen(replace(CUDA, owner=owner), a=health))
    assert [one.id for one in told] == (["os.removeipc"] if bad else [])
    if bad:
        assert "/etc/systemd/logind.conf.d/50-tidy.conf" in told[0].evidence and health.logind
        assert told[0].fix[0].startswith("sudo mkdir -p /etc/systemd/logind.conf.d && printf"), "not all have it"
        lingers = replace(health, logind=replace(health.logind, lingers=True))
        assert loud(seen(replace(CUDA, owner=owner), a=lingers)) == []


def test_users_with_other_numbers_matter_unless_the_job_names_one() -> None:
    of_a = {"uid": 1001, "gid": 1001}
    assert only(seen(of_a=of_a), "os.uid", "b").fix
    job: Any = SimpleNamespace(train=None, user="1000:1000")
    assert loud(seen(replace(CPU, job=job), of_a=of_a)) == []


# -- ssh and controller -------------------------------------------------------------------------------------


def lost(identity: str, desk: Desk | None = None, fix: tuple[str, ...] = ("power it on",)) -> Examination:
    """Node b was not let in to."""
    survey = Survey(TWO, {"a": facts("a")}, (Unreached("b", identity, "b: no answer", fix),), {})
    looks: Any = {"a": SimpleNamespace(host=WELL, confines=Confines((), ()))}
    return Examination(CPU, survey, health=looks, desk=desk or Desk())


def test_what_other_nodes_reach_is_not_off() -> None:
    reached = Closed("b", "10.0.0.2", 22, "10.0.0.9", by=("a",), not_by=())
    told = only(lost("ssh.timeout", Desk(closed=(reached,))), "ssh.timeout", "b")
    assert told.cause == "it is up, and a firewall stops what comes from this machine"
    assert "a can reach sshd at 10.0.0.2 port 22" in told.evidence
    assert (
        told.fix[0].startswith("on b: sudo ufw prepend allow from 10.0.0.9 to any port 22")
        and "power it on" not in told.fix
    )
    off = replace(lost("ssh.timeout"), desk=Desk(closed=(reached._replace(by=(), not_by=("a",)),)))
    told = only(off, "ssh.timeout", "b")
    assert "a cannot reach sshd at 10.0.0.2 port 22 either" in told.evidence and told.fix == ("power it on",)


def test_a_node_that_is_lost_has_passed_nothing_that_comes_later() -> None:
    every = found(lost("ssh.refused"), ssh)
    skipped = {one.id for one in every if one.status == "skipped" and one.nodes == ("b",)}
    assert {"ssh.auth", "ssh.dns", "ssh.kex-hang"} <= skipped and "ssh.refused" not in skipped


def test_a_key_that_others_may_read() -> None:
    desk = Desk(open_keys=(OpenKey("/home/ada/.ssh/my key", 0o644, ("a", "b")),))
    told = only(seen(desk=desk), "ssh.key-perms", "a", "b")
    assert told.fix == ("on this machine: chmod 600 '/home/ada/.ssh/my key'",) and "0644" in told.evidence


def test_a_shell_that_talks_and_an_sshd_with_few_channels() -> None:
    told = only(seen(a=replace(WELL, noise="hello\nthere")), "ssh.noisy-shell")
    assert told.evidence == "hello\nthere"
    assert "MaxSessions 10" in only(seen(desk=Desk(crowded=("a",))), "ssh.maxsessions").fix[0]


def test_a_shared_connection_that_is_older_than_a_membership() -> None:
    desk = Desk(shared=(SharedLogin("a", "/tmp/cm", ("ada",)),))
    told = only(seen(of_a={"groups": ("ada", "docker")}, desk=desk), "ctl.stale-mux")
    assert (
        told.fix == ("on this machine: ssh -O stop -S /tmp/cm a   (what uses the connection now goes on)",)
        and "docker" in told.summary
    )
    assert loud(seen(of_a={"groups": ("ada",)}, desk=desk)) == []


@pytest.mark.parametrize(
    ("took", "words"),
    [(0.02, "firewall turns it away"), (3.05, "power the node on, check its cable"), (None, "check its firewall")],
)
def test_how_soon_no_route_comes_tells_why(took: float | None, words: str) -> None:
    told = refusal.from_errno("root@b:22", OSError(113, "No route to host"), took)
    assert told.id == "ssh.no-route" and words in told.fix[0]
    assert refusal.from_errno("root@b:22", OSError(101, "unreachable"), took).what.endswith(
        "network is unreachable"
    )


# -- words, and the text of the look ------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["controller", "ssh", "host"])
def test_every_entry_is_whole(layer: str) -> None:
    entries = [one for one in catalogue.ALL if one.layer == layer]
    assert len(entries) > 3
    for one in entries:
        assert one.title and one.symptom and one.how and one.mends and one.found, one.id
        assert not one.title.endswith(".") and len(one.how) > 15, one.id


def ask(shell: tuple[str, ...], home: Path, path: str = "") -> HostHealth:
    """The look of this layer, here, with as little around it as a login over SSH gives."""
    asked = Asked(WORD, str(home), cuda=True, sent=time.time(), received=time.time(), clock=f"{time.time():.3f}\n")
    sections, stages = asked_of.sections(asked), asked_of.stages(asked)
    text = probe.framed(WORD, sections, stages)
    environment = {"PATH": path or os.environ["PATH"], "HOME": str(home)}
    done = subprocess.run(shell, input=text.encode(), capture_output=True, env=environment, cwd=home, timeout=30)
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    return asked_of.parse(frames.framed(done.stdout.decode(), WORD, (*sections, *stages)), asked)


@pytest.mark.parametrize("shell", [("sh",), ("dash",), ("bash", "--posix"), ("busybox", "sh")], ids=" ".join)
def test_every_posix_shell_answers(shell: tuple[str, ...], tmp_path: Path) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    read = ask(shell, tmp_path)
    assert read.volume("home") and read.volume("shared") and read.volume("/tmp") and read.port_range
    assert read.stuck is not None and read.ntp is not None and read.shm is not None and read.rp_filter
    assert list(tmp_path.iterdir()) == []


def test_a_desktop_is_asked_with_the_defaults_of_its_own_distribution(tmp_path: Path) -> None:
    """Ubuntu's are for XDG_CURRENT_DESKTOP=ubuntu alone; to a login over SSH gsettings would tell others."""
    told = "case $3 in *type) echo \"'nothing'\" ;; *) echo 0 ;; esac"
    text = f"#!/bin/sh\nif [ $XDG_CURRENT_DESKTOP = ubuntu:GNOME ]; then {told}; else echo \"'suspend'\"; fi\n"
    (tmp_path / "gsettings").write_text(text)
    (tmp_path / "gsettings").chmod(0o755)
    shutil.copy(shutil.which("sleep") or "sleep", tmp_path / "gsd-power")
    with subprocess.Popen([tmp_path / "gsd-power", "60"], env={"XDG_CURRENT_DESKTOP": "ubuntu:GNOME"}) as desktop:
        try:
            read = ask(("sh",), tmp_path, f"{tmp_path}:{os.environ['PATH']}")
        finally:
            desktop.kill()
    assert read.sleep and read.sleep.desktop == ("nothing", 0)


def test_a_node_without_any_tool_answers_too(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "cat", "id", "head", "sed", "tr", "sort", "sleep"):
        (tools / name).symlink_to(shutil.which(name) or name)
    read = ask(("sh",), tmp_path, str(tools))
    assert read.volumes == () and read.apt is None and read.governor is None and read.kernel is None


@pytest.mark.parametrize("shell", [("dash",), ("bash", "--posix"), ("busybox", "sh")], ids=" ".join)
def test_a_stage_is_cut_as_a_whole_and_keeps_what_it_has_said(shell: tuple[str, ...], tmp_path: Path) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    stages = {
        "slow": f"echo one; echo {{frame}}within; echo two; sleep 4; touch {tmp_path}/late; echo three",
        "mute": "sleep 4",
        "short": "printf 'a\\n\\nb'; exit 3",
        "none": ":",
    }
    text = probe.framed(WORD, {"quick": "echo here"}, stages, within=2)
    began = time.monotonic()
    done = subprocess.run(shell, input=text.encode(), capture_output=True, timeout=30)
    assert time.monotonic() - began < 3.8 and done.stderr == b""
    assert frames.framed(done.stdout.decode(), WORD, ("quick", *stages)) == {
        **{"quick": "here\n", "slow": "one\n", "within": "two\n", "slow.cut": "", "mute": "", "mute.cut": ""},
        **{"short": "a\n\nb\n", "none": "", "end": ""},
    }
    time.sleep(3)
    assert not (tmp_path / "late").exists(), "it goes on when nobody listens"


def test_half_an_answer_is_not_taken_for_all_of_it() -> None:
    said = {**dict.fromkeys(SAID, ""), "host.stuck": "1000\n", "host.shm": "seen\n"}
    asked = Asked(WORD, "/s")
    whole = asked_of.parse(said, asked)
    assert whole.stuck == () and whole.shm is not None
    cut = asked_of.parse({**said, "host.stuck.cut": "", "host.shm.cut": ""}, asked)
    assert cut.stuck is None and cut.shm is None


texts = st.text(st.characters(blacklist_categories=("Cs",)), max_size=200)
pieces = st.sampled_from(
    ["==\n", "seen\n", "file /x/logind.conf\n", "86423\n", "1 2 3+4+ x y\n", "0 1 ", "Linux\n"]
)


SAID = sorted({*asked_of.sections(Asked(WORD)), *asked_of.stages(Asked(WORD, "/s"))})
hostile = st.dictionaries(st.sampled_from(SAID), st.lists(texts | pieces, max_size=8).map("".join))


@given(hostile, texts)
def test_no_text_breaks_the_parsers(said: dict[str, str], clock: str) -> None:
    asked = Asked(WORD, "/s", sent=1.0, received=2.0, clock=clock)
    whole = {**dict.fromkeys(SAID, ""), **said}
    read = asked_of.parse(whole, asked)
    found(seen(CUDA, a=read), host)


def test_a_shutdown_that_is_due_is_told_with_the_time_that_is_left(tmp_path: Path) -> None:
    """It was missed in a lab: a run of some hours ends with it."""
    look = host_settings.SECTIONS["host.logind"].replace("/run/systemd/shutdown", str(tmp_path))
    (tmp_path / "scheduled").write_text(f"USEC={int(time.time()) + 7200}000000\nWARN_WALL=1\nMODE=reboot\n")
    done = subprocess.run(["sh", "-c", look], capture_output=True, text=True, timeout=20, check=True)
    logind = host_settings.logind(done.stdout)
    assert logind and logind.ends and logind.ends[0] == "reboot" and 7190 <= logind.ends[1] <= 7200
    told = only(seen(a=replace(WELL, logind=logind)), "os.shutdown")
    assert told.status == "warn" and "goes down (reboot) in 2.0 h" in told.summary and "shutdown -c" in told.fix[1]
    soon = replace(logind, ends=("poweroff", 600))
    told = only(seen(a=replace(WELL, logind=soon)), "os.shutdown")
    assert told.status == "fail" and "in 10 min" in told.summary
    (tmp_path / "scheduled").unlink()
    done = subprocess.run(["sh", "-c", look], capture_output=True, text=True, timeout=20, check=False)
    assert "planned" not in done.stdout


@pytest.mark.parametrize(("high", "told"), [(32799, True), (33768, False)])
def test_hardly_any_ports_for_connections(high: int, told: bool) -> None:
    """The range that doctor itself offers for a firewall is wide enough."""
    of = seen(replace(CPU, port=29500), a=replace(WELL, port_range=(32768, high)))
    assert [one.id for one in loud(of)] == ["os.portrange"] * told
    if told:
        assert "has 32 ports" in loud(of)[0].summary and "32768 60999" in loud(of)[0].fix[0]
