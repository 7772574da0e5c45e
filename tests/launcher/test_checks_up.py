"""Proves each check of `up`: what it says of which nodes, which commands mend it, and that it blocks no others."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import scenes
from hypothesis import given
from hypothesis import strategies as st

from clusterft import checks
from clusterft.checks import Survey, UpDemand, blocked_nodes
from clusterft.facts import Address, DockerGroup, Mount, NodeFacts, Nvidia, Room, System
from clusterft.findings import Finding

GIB = 2**30
CPU = UpDemand("cpu")
CUDA = UpDemand("cuda")
NAMES = ("a", "b", "c")
THREE = scenes.cluster("a slots=2\nb slots=2\nc slots=2\n")
CARDS = (scenes.card(0), scenes.card(1))


def survey(*odd: NodeFacts, **common: Any) -> Survey:
    """Three healthy nodes with cards, but for the odd ones."""
    known = {each.node: each for each in odd}
    whole = (known.get(name) or scenes.facts(name, **{"gpus": CARDS, **common}) for name in NAMES)
    return scenes.survey(THREE, *whole)


def node(name: str, **changes: Any) -> NodeFacts:
    """One with cards and with a change."""
    return scenes.facts(name, **{"gpus": CARDS, **changes})


def judge(of: Survey, demand: UpDemand = CUDA) -> list[Finding]:
    """All findings."""
    return list(checks.judge_up(of, demand))


def one(found: list[Finding]) -> Finding:
    """The only finding."""
    assert len(found) == 1, found
    return found[0]


def test_healthy_nodes_give_no_finding() -> None:
    roomy = UpDemand("cuda", shared="/mnt/out", arch="amd64", image_bytes=dict.fromkeys(NAMES, 20 * GIB))
    assert judge(survey(), roomy) == [] and judge(survey(), CPU) == []


ENGINES: list[tuple[dict[str, Any], str, str, str, str]] = [
    ({"state": "absent", "words": "none"}, "dk.absent", "fail", "has no Docker", "apt-get install -y docker.io"),
    ({"state": "down", "words": "Cannot connect"}, "dk.down", "fail", "not running", "enable --now docker"),
    (
        {"state": "down", "words": "no answer to `docker version` within 4 s"},
        "dk.down",
        "fail",
        "not answer",
        "restart",
    ),
    (
        {"state": "denied", "words": "permission denied"},
        "dk.perm",
        "fail",
        "me may not use",
        "usermod -aG docker me",
    ),
    ({"snap": True, "path": "/usr/bin/snap"}, "dk.snap", "fail", "comes from a snap", "snap remove docker"),
    ({"api": "1.40", "version": "19.03.9"}, "dk.old", "fail", "older than 20.10", "20.10 or later"),
    ({"api": "1.9"}, "dk.old", "fail", "older than 20.10", "20.10 or later"),
    ({"remapped": True}, "dk.userns", "fail", "userns-remap", "daemon.json"),
    ({"rootless": True}, "dk.rootless", "warn", "rootless", "docker context use default"),
    ({"arch": "arm64"}, "dk.arch", "fail", "another architecture", "put nodes of one architecture"),
    ({"runtimes": ("runc",)}, "dk.runtime", "warn", "does not know it", "nvidia-ctk runtime configure"),
]


@pytest.mark.parametrize(("engine", "identity", "status", "summary", "fix"), ENGINES)
def test_an_engine_that_does_not_fit_is_named_once_with_its_nodes(
    engine: dict[str, Any], identity: str, status: str, summary: str, fix: str
) -> None:
    odd = scenes.docker(**engine)
    finding = one(judge(survey(node("b", docker=odd), node("c", docker=odd))))
    assert (finding.id, finding.status, finding.nodes) == (identity, status, ("b", "c"))
    assert summary in finding.summary and fix in "\n".join(finding.fix)
    assert finding.evidence and finding.blast_radius
    assert blocked_nodes([finding]) == ({"b", "c"} if status == "fail" else set())


def test_without_docker_to_be_used_the_engine_is_not_judged() -> None:
    odd = survey(node("b", docker=scenes.docker(state="absent")), node("c", docker=None))
    assert judge(odd, dataclasses.replace(CUDA, with_docker=False)) == []


def test_an_engine_whose_state_could_not_be_read_is_unknown_and_no_pass() -> None:
    finding = one(judge(survey(node("b", docker=None))))
    assert (finding.id, finding.status, finding.nodes) == ("dk.down", "unknown", ("b",))


@pytest.mark.parametrize(
    ("family", "command"),
    [
        (("debian",), "sudo apt-get update && sudo apt-get install -y docker.io"),
        (("linuxmint", "ubuntu", "debian"), "sudo apt-get update && sudo apt-get install -y docker.io"),
        (("fedora",), "sudo dnf install -y moby-engine"),
        (("opensuse-leap", "suse", "opensuse"), "sudo zypper install -y docker"),
        (("arch",), "sudo pacman -S --noconfirm docker"),
        (("nixos",), "install Docker Engine 20.10 or later: https://docs.docker.com/engine/install/"),
        ((), "install Docker Engine 20.10 or later: https://docs.docker.com/engine/install/"),
    ],
)
def test_how_docker_is_installed_depends_on_the_system(family: tuple[str, ...], command: str) -> None:
    bare = node("b", docker=scenes.docker(state="absent"), system=System("Some Linux 1.0", family))
    finding = one(judge(survey(bare)))
    assert finding.fix[0] == command and "Some Linux 1.0" in finding.evidence


def test_rights_name_what_they_mean_and_a_stale_login_is_told_apart() -> None:
    denied = scenes.docker(state="denied", words="permission denied ... docker.sock")
    finding = one(judge(survey(node("b", docker=denied, docker_group=DockerGroup(998, listed=False, held=False)))))
    assert finding.id == "dk.perm" and "root on the node" in finding.fix[0] and finding.needs_root
    stale = one(judge(survey(node("b", docker=denied, docker_group=DockerGroup(998, listed=True, held=False)))))
    assert stale.id == "dk.perm" and "usermod" not in " ".join(stale.fix) and not stale.needs_root
    assert "log in again" in stale.fix[0] and "older than the membership" in stale.summary


@pytest.mark.parametrize(
    ("tools", "runtimes", "cdi", "identity", "status"),
    [
        ((), ("runc",), None, "dk.nogpu", "fail"),
        (("nvidia-ctk",), ("runc",), None, "dk.runtime", "fail"),
        (("nvidia-ctk", "nvidia-container-runtime-hook"), ("runc",), None, "dk.runtime", "warn"),
        (None, ("runc",), None, "dk.nogpu", "unknown"),
        ((), ("runc",), ("nvidia.com/gpu=all",), None, None),
        ((), ("nvidia", "runc"), None, None, None),
    ],
)
def test_cards_that_containers_cannot_get_are_told(
    tools: tuple[str, ...] | None, runtimes: tuple[str, ...], cdi: Any, identity: str | None, status: str | None
) -> None:
    engine = scenes.docker(runtimes=runtimes, cdi=cdi)
    found = judge(survey(node("b", docker=engine, tools=None if tools is None else frozenset(tools))))
    assert [(each.id, each.status, each.nodes) for each in found] == (
        [(identity, status, ("b",))] if identity else []
    )
    no_cards = node("b", docker=engine, tools=frozenset(), gpus=())
    assert judge(survey(no_cards), CPU) == [], "a node without cards needs no runtime for them"


def test_the_image_decides_the_architecture_once_it_is_known() -> None:
    arm = survey(node("b", docker=scenes.docker(arch="arm64")))
    assert one(judge(arm, dataclasses.replace(CUDA, arch="amd64"))).nodes == ("b",)
    assert one(judge(arm, dataclasses.replace(CUDA, arch="arm64"))).nodes == ("a", "c")


FULL = {"free_bytes": 3 * GIB, "mounted_on": "/var"}
NEEDED = dict.fromkeys(NAMES, 9 * GIB)


def test_a_full_engine_is_told_how_to_move_its_data_root() -> None:
    mounts = (Mount("/dev/sda1", "/var", "ext4", "rw"), Mount("/dev/sdb1", "/data", "xfs", "rw,noatime"))
    rooms = (Room("/var", "/dev/sda1", 3 * GIB), Room("/data", "/dev/sdb1", 900 * GIB))
    full = node("b", docker=scenes.docker(**FULL), mounts=mounts, rooms=rooms)
    finding = one(list(checks.judge_room(survey(full), NEEDED)))
    assert (finding.id, finding.status, finding.nodes) == ("os.disk-full", "fail", ("b",))
    assert finding.evidence == "3.0 GiB free in /var/lib/docker (on /var), 9.0 GiB needed"
    assert finding.fix[1:] == (
        "or move Docker's data to a disk with more room:",
        "sudo systemctl stop docker.socket docker",
        "sudo mkdir -p /data/docker",
        "sudo rsync -aHAXP /var/lib/docker/ /data/docker/",
        'in /etc/docker/daemon.json set "data-root": "/data/docker"   (create the file if there is none)',
        "sudo systemctl start docker",
        "docker info -f '{{.DockerRootDir}}'   (when all works: sudo rm -rf /var/lib/docker)",
    )
    assert finding.needs_root
    assert judge(survey(full), dataclasses.replace(CUDA, image_bytes=NEEDED)) == [finding]
    assert judge(survey(full), dataclasses.replace(CUDA, image_bytes={"a": GIB})) == []


@pytest.mark.parametrize(
    ("target", "kind", "options", "device", "gib"),
    [
        ("/data", "xfs", "ro,noatime", "/dev/sdb1", 900),
        ("/data", "nfs4", "rw", "nas:/data", 900),
        ("/data", "vfat", "rw", "/dev/sdb1", 900),
        ("/boot", "ext4", "rw", "/dev/sdb1", 900),
        ("/data", "ext4", "rw", "/dev/sda1", 900),
        ("/data", "ext4", "rw", "/dev/sdb1", 4),
    ],
    ids="read-only share vfat boot same-disk small".split(),
)
def test_only_a_disk_that_could_hold_the_data_is_named(
    target: str, kind: str, options: str, device: str, gib: int
) -> None:
    mounts = (Mount("/dev/sda1", "/var", "ext4", "rw"), Mount(device, target, kind, options))
    rooms = (Room("/var", "/dev/sda1", 3 * GIB), Room(target, device, gib * GIB))
    full = node("b", docker=scenes.docker(**FULL), mounts=mounts, rooms=rooms)
    assert "sudo mkdir -p /mnt/new-disk/docker" in one(list(checks.judge_room(survey(full), NEEDED))).fix


def test_images_that_lie_with_containerd_are_moved_there() -> None:
    full = node("b", docker=scenes.docker(store="/var/lib/containerd", **FULL))
    fix = "\n".join(one(list(checks.judge_room(survey(full), NEEDED))).fix)
    assert 'root = "/mnt/new-disk/containerd"' in fix and "stop docker.socket containerd docker" in fix
    assert "data-root" not in fix


def test_room_and_inodes_of_the_engine_that_lack_or_are_unknown() -> None:
    few = node("b", docker=scenes.docker(free_inodes=900))
    finding = one(list(checks.judge_room(survey(few), NEEDED)))
    assert (finding.id, finding.nodes) == ("os.inodes", ("b",)) and "900 inodes free" in finding.evidence
    unknown = one(list(checks.judge_room(survey(node("b", docker=scenes.docker(free_bytes=None))), NEEDED)))
    assert (unknown.id, unknown.status) == ("os.disk-full", "unknown")
    assert list(checks.judge_room(survey(node("b", docker=scenes.docker(state="down"))), NEEDED)) == []


def test_a_bridge_that_has_taken_the_peers_subnet_is_told_with_a_free_one() -> None:
    mine = (
        Address("docker0", "172.17.0.1", 16),
        Address("eno1", "172.17.5.2", 24),
        Address("x", "10.222.3.1", 24),
    )
    lost = node(
        "b", routes=(("172.17.5.1", "docker0", "172.17.0.1"), ("10.0.0.9", "eno1", "10.0.0.2")), addresses=mine
    )
    finding = one(judge(survey(lost)))
    assert (finding.id, finding.status, finding.nodes) == ("dk.subnet", "fail", ("b",))
    assert finding.evidence == "the route to 172.17.5.1 goes through docker0"
    assert '"bip": "192.168.224.1/24"' in finding.fix[0] and '"base": "192.168.224.0/19"' in finding.fix[0]
    for bridge in ("br-0123456789ab", "docker_gwbridge"):
        assert one(judge(survey(node("b", routes=(("10.0.0.1", bridge, "10.0.0.2"),))))).id == "dk.subnet"
    for own in ("br-lan", "br0", "eno1"):
        assert judge(survey(node("b", routes=(("10.0.0.1", own, "10.0.0.2"),)))) == []


def test_containers_as_peers_of_this_very_machine_are_no_lost_peers() -> None:
    here = scenes.cluster("a slots=2 transport=local\nb slots=2\n")
    bridged = node("a", routes=(("172.18.0.2", "br-0123456789ab", "172.18.0.1"),))
    assert judge(scenes.survey(here, bridged, node("b"))) == []


def test_clones_share_a_hostname_and_are_only_warned_of() -> None:
    finding = one(judge(survey(node("b", hostname="a"))))
    assert (finding.id, finding.status, finding.nodes) == ("ctl.same-hostname", "warn", ("a", "b"))
    assert finding.fix == ("on a: sudo hostnamectl set-hostname a", "on b: sudo hostnamectl set-hostname b")


def test_one_machine_twice_is_that_and_not_a_clone() -> None:
    finding = one(judge(survey(node("b", hostname="a", boot_id="boot-of-a"))))
    assert (finding.id, finding.nodes) == ("ctl.same-host-twice", ("a", "b"))


def test_users_with_other_numbers_are_warned_of_against_the_head() -> None:
    finding = one(judge(survey(node("b", uid=1001), node("c", gid=100))))
    assert (finding.id, finding.status, finding.nodes) == ("os.uid", "warn", ("b", "c"))
    assert finding.evidence == "b: 1001:1000\nc: 1000:100" and "1000:1000" in finding.summary


def test_a_small_shm_is_warned_of_for_cards_alone() -> None:
    small = survey(node("b", shm=64 * 2**20, shm_free=60 * 2**20))
    finding = one(judge(small))
    assert (finding.id, finding.status, finding.evidence) == ("os.shm", "warn", "64 MiB, 60 MiB of it free")
    assert judge(small, CPU) == []


@pytest.mark.parametrize(
    ("changes", "identity", "summary"),
    [
        ({"writable": False}, "fs.squash", "/home/me cannot be written by the SSH user"),
        ({"free_bytes": 2**20}, "os.disk-full", "1 MiB free for /home/me, 16 MiB needed"),
        ({"free_inodes": 3}, "os.inodes", "3 inodes free for /home/me"),
    ],
)
def test_a_home_that_cannot_hold_the_keys_blocks(changes: dict[str, Any], identity: str, summary: str) -> None:
    finding = one(judge(survey(node("b", home_room=scenes.disk("~", **changes)))))
    assert (finding.id, finding.status, finding.nodes, finding.summary) == (identity, "fail", ("b",), summary)


def test_a_home_that_could_not_be_looked_at_is_unknown() -> None:
    finding = one(judge(survey(node("b", home_room=None))))
    assert (finding.id, finding.status, finding.nodes) == ("os.disk-full", "unknown", ("b",))


@pytest.mark.parametrize("kind", ["fuseblk", "fuse.s3fs"])
def test_the_shared_directory_is_judged_where_one_is_wanted(kind: str) -> None:
    bad = Mount("/dev/sdb1", "/mnt/out", kind, "rw")
    odd = survey(node("b", disks=(scenes.disk("/mnt/out", mount=bad),)))
    assert judge(odd) == []
    finding = one(judge(odd, dataclasses.replace(CUDA, shared="/mnt/out")))
    assert (finding.id, finding.status, finding.nodes) == ("fs.type", "warn", ("b",))
    closed = survey(node("b", disks=(scenes.disk("/mnt/out", writable=False),)))
    assert one(judge(closed, dataclasses.replace(CUDA, shared="/mnt/out"))).id == "fs.squash"


def test_cards_or_drivers_unlike_the_rest_are_warned_of_together() -> None:
    newer = tuple(dataclasses.replace(card, driver="590.1") for card in CARDS)
    finding = one(judge(survey(node("b", gpus=newer))))
    assert (finding.id, finding.status, finding.nodes) == ("gpu.mixed", "warn", ("b",))
    assert "driver 590.1" in finding.evidence and "c: NVIDIA GeForce RTX 3090" in finding.evidence
    more = survey(node("b", gpus=(*CARDS, scenes.card(2))))
    assert judge(more) == [], "how many is for slots= to say"


def test_cards_that_are_set_aside_do_not_make_a_mix() -> None:
    screen = (scenes.card(0, "NVIDIA GeForce GT 1030"), scenes.card(1), scenes.card(2))
    picked = scenes.cluster("a slots=2\nb slots=2 gpus=1,2\n")
    assert judge(scenes.survey(picked, node("a"), node("b", gpus=screen))) == []


def test_a_driver_upgraded_under_way_is_told_in_place_of_missing_cards() -> None:
    words = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 570.158"
    broken = [node(name, gpus=(), nvidia=Nvidia("570.86.15", 2, words)) for name in "bc"]
    finding = one(judge(survey(*broken)))
    assert (finding.id, finding.nodes, finding.fix) == ("gpu.mismatch", ("b", "c"), ("sudo reboot",))
    assert "loaded module: 570.86.15" in finding.evidence


def test_missing_cards_are_told_with_what_the_bus_and_the_driver_say() -> None:
    words = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    finding = one(judge(survey(node("b", gpus=(), nvidia=Nvidia(None, 2, words)))))
    assert finding.id == "gpu.count" and finding.evidence == f"{words}\nNVIDIA cards on the PCI bus: 2"
    lost = "Unable to determine the device handle for GPU1: 0000:C1:00.0: Unknown Error"
    one_left = one(judge(survey(node("b", gpus=CARDS[:1], nvidia=Nvidia("580.65.06", 2, lost)))))
    assert lost in one_left.evidence and "card 0" in one_left.evidence and "dmesg" in one_left.fix[0]


def test_clocks_keep_their_own_words() -> None:
    found = judge(survey(node("b", clock_offset=5.0), node("c", clock_offset=-90.0)))
    assert [(each.id, each.status, each.nodes) for each in found] == [
        ("os.clock", "warn", ("b",)),
        ("os.clock", "fail", ("c",)),
    ]


def test_a_finding_blocks_its_own_nodes_alone() -> None:
    lost = scenes.survey(THREE, node("a"), node("b", docker=scenes.docker(state="absent")), lost="c")
    assert blocked_nodes(judge(lost)) == {"b", "c"}
    assert blocked_nodes([]) == frozenset()


reasons = st.builds(
    Finding,
    id=st.sampled_from(["dk.down", "os.clock"]),
    status=st.sampled_from(["fail", "warn"]),
    nodes=st.sets(st.sampled_from(NAMES), min_size=1, max_size=1).map(tuple),
    summary=st.sampled_from(["is so", "is otherwise"]),
    evidence=st.sampled_from(["", "it said this", "it said that"]),
)


@given(st.lists(reasons, max_size=8))
def test_gathering_loses_no_node_and_no_evidence(findings: list[Finding]) -> None:
    together = checks.gathered(findings)
    assert blocked_nodes(together) == blocked_nodes(findings)
    kinds = {(each.id, each.status, each.summary) for each in findings}
    assert len(together) == len(kinds) and kinds == {(each.id, each.status, each.summary) for each in together}
    for finding in findings:
        (whole,) = [
            e for e in together if (e.id, e.status, e.summary) == (finding.id, finding.status, finding.summary)
        ]
        assert finding.evidence in whole.evidence and set(finding.nodes) <= set(whole.nodes)
