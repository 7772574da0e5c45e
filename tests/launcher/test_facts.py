"""Proves that the probe's answers are read, or honestly unknown, whatever they hold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import scenes
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterft import facts
from clusterft.facts import (
    UNLIMITED,
    Address,
    Asked,
    Disk,
    DockerGroup,
    Firewall,
    GpuProcess,
    InfiniBand,
    Limits,
    Link,
    Mount,
    NodeFacts,
    Nvidia,
    System,
    Unreadable,
)

WORD = "5eed5eed5eed5eed"
ASKED = Asked(WORD, ("10.0.0.11",), ("/mnt/out",), sent=1699999999.0, received=1700000001.0)
ANSWERS = sorted((scenes.GOLDEN / "probe").glob("*.txt"))


def read(name: str) -> NodeFacts:
    """One recorded answer."""
    return facts.parse("gpu1", (scenes.GOLDEN / "probe" / f"{name}.txt").read_text(encoding="utf-8"), ASKED)


def as_json(found: NodeFacts) -> str:
    """All facts, sets in order."""
    return json.dumps(dataclasses.asdict(found), indent=1, default=sorted) + "\n"


@pytest.mark.parametrize("path", ANSWERS, ids=lambda path: path.stem)
def test_a_recorded_answer_is_read_as_before(path: Path) -> None:
    scenes.same_as_golden(as_json(read(path.stem)), path.with_suffix(".json"))


def test_a_healthy_answer_is_read_whole() -> None:
    found = read("ubuntu")
    assert found.clock_offset == 0.25 and found.listening == {22, 631, 29500}
    assert (found.uid, found.user, found.home, found.cores) == (1000, "ubuntu", "/home/ubuntu", 32)
    assert found.memory == 131890232 * 1024 and found.shm == 65945116 * 1024
    assert [(card.index, card.memory, card.used) for card in found.gpus] == [(0, 24576, 312), (1, 24576, 4)]
    root = Mount("/dev/nvme0n1p2", "/", "ext4", "rw,relatime")
    assert found.disks == (Disk("/mnt/out", "/dev/nvme0n1p2", "/", 857902096 * 1024, 60515923, True, root),)
    assert found.routes == (("10.0.0.11", "enp65s0", "10.0.0.12"),)
    assert found.controller_route == ("eno1", "10.0.0.12") and found.login_address == "10.0.0.12"


def test_noise_before_and_between_the_frames_changes_no_later_answer() -> None:
    noisy, clean = read("noisy"), read("ubuntu")
    assert dataclasses.replace(noisy, home=clean.home) == clean


def test_what_a_bare_node_cannot_tell_is_unknown_and_never_a_default() -> None:
    known = {name: value for name, value in dataclasses.asdict(read("bare")).items() if value not in (None, ())}
    kernel = "Linux 6.8.0-48-generic x86_64"
    assert known == {"node": "gpu1", "hostname": "gpu1", "kernel": kernel, "arch": "x86_64"}


def test_filesystems_without_a_count_of_inodes_are_not_full() -> None:
    assert [read(name).disks[0].free_inodes for name in ("btrfs", "busybox")] == [None, None]
    assert read("quota_full").disks[0].free_inodes == 0
    assert read("quota_full").disks[0].free_bytes == -1424 * 1024


def test_shares_with_spaces_in_their_names_are_read() -> None:
    (share,) = read("nas_with_spaces").disks
    assert (share.device, share.mounted_on, share.writable) == ("//nas/my share", "/mnt/my share", False)


def test_a_card_that_hides_its_memory_is_still_a_card() -> None:
    assert [(card.memory, card.used) for card in read("unified_memory").gpus] == [(None, None)]
    assert [(card.memory, card.used) for card in read("mig").gpus] == [(81559, None), (81559, 120)]


def test_cards_of_every_generation_of_drivers_are_read() -> None:
    (old,) = read("driver_470").gpus
    assert (old.compute_cap, old.display, old.bus_id) == (None, True, "00000000:02:00.0")
    assert old.processes == (
        GpuProcess(1628, "C+G", "/usr/lib/xorg/Xorg", 204),
        GpuProcess(20001, "G", "/opt/a name: with colons/b", None),
    )
    (passed_through,) = read("driver_535").gpus
    assert (passed_through.pcie_gen, passed_through.pcie_width, passed_through.processes) == ((1, 3), None, ())
    split, whole = read("mig").gpus
    assert split.processes == (GpuProcess(4711, "C", "python", 9876),) and whole.processes == ()
    (tiny,) = read("unified_memory").gpus
    assert (tiny.compute_cap, tiny.bus_id, tiny.pcie_gen) == ("12.1", "0000000F:01:00.0", (1, 1))


def test_a_recorded_h200_is_read_whole() -> None:
    """Of a real card, at rest and while a process trains on it; the open kernel module names its machine first."""
    idle, busy = read("driver_580_h200_idle"), read("driver_580_h200_busy")
    assert idle.nvidia == busy.nvidia == Nvidia("580.159.04", 1, "")
    (rests,), (works,) = idle.gpus, busy.gpus
    assert (rests.name, rests.memory, rests.used, rests.processes) == ("NVIDIA H200", 143771, 0, ())
    assert (rests.compute_cap, rests.display, rests.pcie_gen, rests.pcie_width) == ("9.0", False, (5, 5), (16, 16))
    held = GpuProcess(890, "C", "python3", 14310)
    assert works == dataclasses.replace(rests, used=14319, processes=(held,))
    assert (idle.kernel, idle.system and idle.system.name) == ("Linux 6.18.44 x86_64", "Ubuntu 24.04.3 LTS")
    assert idle.docker and idle.docker.state == "absent"


def test_a_lost_card_and_one_that_errs_are_told_and_not_guessed() -> None:
    found = read("driver_570")
    well, sick = found.gpus
    assert well.memory == 32607 and well.processes == ()
    assert (sick.memory, sick.used, sick.display, sick.compute_cap, sick.processes) == (None,) * 5
    lost = "Unable to determine the device handle for GPU2: 0000:C1:00.0: Unknown Error"
    assert found.nvidia == Nvidia("570.158.01", 3, lost)


@pytest.mark.parametrize(
    ("name", "module", "plugged", "words"),
    [
        ("driver_mismatch", "570.86.15", 2, "Driver/library version mismatch\nNVML library version: 570.158"),
        (
            "driver_broken",
            None,
            2,
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
        ),
        ("driver_535", "535.183.01", 1, ""),
        ("mig", "550.127.05", 2, ""),
        ("engine_20_10_root", None, 0, ""),
    ],
)
def test_the_driver_is_known_even_where_nvidia_smi_fails(
    name: str, module: str | None, plugged: int, words: str
) -> None:
    found = read(name)
    assert found.nvidia and (found.nvidia.module, found.nvidia.plugged) == (module, plugged)
    assert words in found.nvidia.words and bool(words) == bool(found.nvidia.words)
    assert bool(found.gpus) == (not words and plugged > 0)


@pytest.mark.parametrize(("engine", "api"), [("20_10", "1.41"), ("26_1", "1.45"), ("28_5", "1.51")])
@pytest.mark.parametrize(
    ("user", "state", "command"),
    [
        ("root", "ok", ("docker",)),
        ("worker", "ok", ("docker",)),
        ("sudoer", "ok", ("sudo", "-n", "docker")),
        ("guest", "denied", ()),
    ],
)
def test_each_engine_is_read_as_each_user_meets_it(
    engine: str, api: str, user: str, state: str, command: tuple[str, ...]
) -> None:
    found = read(f"engine_{engine}_{user}")
    docker = found.docker
    assert docker and (docker.state, docker.command, docker.path) == (state, command, "/usr/bin/docker")
    assert found.user == user and found.groups and ("docker" in found.groups) == (user == "worker")
    assert found.docker_group and found.docker_group.held == found.docker_group.listed == (user == "worker")
    if state == "denied":
        assert (
            docker.words.startswith("permission denied") and docker.version is None and docker.free_bytes is None
        )
        return
    assert docker.version and docker.version.startswith(engine.replace("_", ".")) and docker.api == api
    assert (docker.root, docker.store, docker.driver, docker.arch) == (
        *("/var/lib/docker",) * 2,
        "overlay2",
        "amd64",
    )
    assert docker.rootless is False and not docker.snap and docker.words == ""
    assert docker.runtimes and "runc" in docker.runtimes
    assert docker.free_bytes and docker.free_bytes > 2**30 and docker.free_inodes and docker.free_inodes > 10**6


def test_a_containerd_image_store_is_told_by_its_snapshotter() -> None:
    docker = read("engine_28_5_containerd").docker
    assert docker and docker.driver == "overlayfs"
    assert docker.store == "/var/lib/docker"  # the engine's own containerd keeps its files below the engine's root


@pytest.mark.parametrize(
    ("address", "store"),
    [
        ('"Containerd":{"Address":"/run/containerd/containerd.sock"}', "/var/lib/containerd"),
        ('"Containerd":{"Address":"/var/run/docker/containerd/containerd.sock"}', "/var/lib/docker"),
        ('"Warnings":null', "/var/lib/containerd"),  # engines before 27 do not tell
    ],
)
def test_images_that_lie_with_the_systems_containerd_are_looked_for_there(address: str, store: str) -> None:
    whole = (scenes.GOLDEN / "probe" / "ubuntu.txt").read_text(encoding="utf-8")
    told = '"Containerd":{"Address":"/run/containerd/containerd.sock",'
    assert told in whole
    changed = whole.replace(told, f'{address},"Rest":{{').replace('"extfs"', '"io.containerd.snapshotter.v1"')
    docker = facts.parse("gpu1", changed, ASKED).docker
    assert docker and docker.store == store and docker.free_bytes == 857902096 * 1024
    classic = facts.parse("gpu1", whole, ASKED).docker
    assert classic and classic.store == "/var/lib/docker"


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [
        ("engine_28_5_stopped", "down", "Cannot connect to the Docker daemon"),
        ("infiniband", "absent", "there is no docker command"),
    ],
)
def test_an_engine_that_is_not_there_says_why(name: str, state: str, words: str) -> None:
    docker = read(name).docker
    assert docker and docker.state == state and words in docker.words and docker.command == ()


def test_a_snap_and_a_home_on_a_share_are_seen() -> None:
    found = read("snap")
    assert found.docker and found.docker.snap and found.docker.path == "/usr/bin/snap"
    assert found.home_shared is True and read("ubuntu").home_shared is False and read("bare").home_shared is None


def test_the_network_of_a_node_is_read() -> None:
    found = read("ubuntu")
    assert found.addresses and Address("eno1", "10.0.0.12", 24) in found.addresses
    assert Address("eno1", "fe80::a236:9fff:fe12:3456", 64) in found.addresses
    assert (
        Address("wg0", "10.8.0.5", 32) in found.addresses
        and Address("veth1f", "169.254.7.1", 16) in found.addresses
    )
    assert str(Address("eno1", "10.0.0.12", 24).network) == "10.0.0.0/24"
    links = {link.name: link for link in found.links or ()}
    assert links["enp65s0"] == Link("enp65s0", True, 9000, "a0:36:9f:12:34:57", 10000)
    assert not links["docker0"].up and links["docker0"].speed is None and links["veth1f"].up
    assert found.mtus["wg0"] == 1420 and found.infiniband == ()


def test_infiniband_and_firewalls_are_read() -> None:
    found = read("infiniband")
    assert found.infiniband == (
        InfiniBand("mlx5_0", 1, "ACTIVE", "200 Gb/sec (4X HDR)", "InfiniBand", "ibs1"),
        InfiniBand("mlx5_1", 1, "DOWN", "10 Gb/sec (4X SDR)", "Ethernet", None),
    )
    assert found.firewall == Firewall(True, False, ("type filter hook input priority filter; policy drop;",))
    assert read("ubuntu").firewall == Firewall(False, None, None)
    assert read("bare").firewall is None


def test_the_system_its_limits_and_its_filesystems_are_read() -> None:
    found = read("ubuntu")
    assert found.system == System("Ubuntu 24.04.1 LTS", ("ubuntu", "debian")) and found.arch == "x86_64"
    assert found.limits == Limits(1024, UNLIMITED, 8388608)
    assert found.zstd and not read("bare").zstd and found.docker_group == DockerGroup(998, True, True)
    assert Mount("nas:/export/my share", "/mnt/my share", "nfs4", found.mounts[-1].options) == found.mounts[-1]  # type: ignore[index]
    assert found.mounts and found.mounts[-1].shared and not found.mounts[0].shared
    assert found.rooms and [room.mounted_on for room in found.rooms] == ["/", "/dev/shm", "/boot/efi"]
    assert found.home_room and found.home_room.directory == facts.HOME


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("203.0.113.9 50122 10.0.0.12 22", "10.0.0.12"),
        ("2001:db8::9 50122 2001:db8::12 22", "2001:db8::12"),
        ("fe80::9%eth0 50122 fe80::12%eth0 22", None),
        ("UNKNOWN 65535 UNKNOWN 65535", None),
        ("203.0.113.9 50122 10.0.0.12", None),
        ("", None),
    ],
)
def test_only_an_ip_that_others_can_use_is_an_address(said: str, address: str | None) -> None:
    whole = (scenes.GOLDEN / "probe" / "ubuntu.txt").read_text(encoding="utf-8")
    changed = whole.replace("10.0.0.2 50122 10.0.0.12 22", said)
    assert facts.parse("gpu1", changed, ASKED).login_address == address


@pytest.mark.parametrize("share", range(1, 20))
def test_an_answer_cut_short_is_no_answer(share: int) -> None:
    whole = (scenes.GOLDEN / "probe" / "ubuntu.txt").read_text(encoding="utf-8")
    with pytest.raises(Unreadable, match="ends after section"):
        facts.parse("gpu1", whole[: len(whole) * share // 20], ASKED)


def test_an_answer_with_a_hole_is_no_answer() -> None:
    whole = (scenes.GOLDEN / "probe" / "ubuntu.txt").read_text(encoding="utf-8")
    for name in ("boot", "route.0", "disk.0"):
        with pytest.raises(Unreadable, match=f"lacks {name}"):
            facts.parse("gpu1", whole.replace(f"-{WORD}-{name}\n", f"-lost-{name}\n"), ASKED)


def test_another_runs_answer_is_no_answer() -> None:
    whole = (scenes.GOLDEN / "probe" / "ubuntu.txt").read_text(encoding="utf-8")
    with pytest.raises(Unreadable):
        facts.parse("gpu1", whole, dataclasses.replace(ASKED, word="0" * 16))


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(facts.probe.section_names(("a",), ("b",))), st.text() | st.just("² ² ²\n")))
def test_no_content_of_a_section_breaks_the_reader(said: dict[str, str]) -> None:
    names = facts.probe.section_names(("10.0.0.11",), ("/mnt/out",))
    whole = "".join(f"--clusterft-{WORD}-{name}\n{said.get(name, '')}\n" for name in names)
    assert facts.parse("gpu1", f"{whole}--clusterft-{WORD}-end\n", ASKED).node == "gpu1"


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_mutilation_of_a_recorded_answer_breaks_the_reader(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(ANSWERS)).read_bytes()
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(start, min(len(whole), start + data.draw(st.sampled_from([0, 1, 40, 4000])))))
        other = data.draw(st.integers(0, len(whole)))
        put = data.draw(st.binary(max_size=12) | st.just(whole[other : other + 60]) | st.just(b"9" * 25))
        whole = whole[:start] + put + whole[end:]
    try:
        found = facts.parse("gpu1", whole.decode("utf-8", "replace"), ASKED)
    except Unreadable:
        return
    assert isinstance(found, NodeFacts) and json.loads(as_json(found))


@settings(max_examples=200)
@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "replace")))
def test_any_bytes_are_facts_or_unreadable(output: str) -> None:
    with pytest.raises(Unreadable):
        facts.parse("gpu1", output, ASKED)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["ApiVersion", "Version", "Arch", "DockerRootDir", "Driver", "DriverStatus", "Runtimes", "SecurityOptions"]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*KEYS, "DiscoveredDevices", "Containerd"]), anything))
def test_no_json_of_an_engine_breaks_the_reader(said: dict[str, object]) -> None:
    whole = (scenes.GOLDEN / "probe" / "ubuntu.txt").read_text(encoding="utf-8")
    lines = [
        json.dumps(said | ({"ApiVersion": "1.51"} if index == 0 else {})) if line.startswith("{") else line
        for index, line in enumerate(whole.splitlines())
    ]
    found = facts.parse("gpu1", "\n".join(lines) + "\n", ASKED)
    assert found.docker and found.docker.state in ("ok", "down")
