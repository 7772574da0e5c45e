"""Proves doctor's judgement of engines, images, containers of ours and containers of the image."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import scenes
from hypothesis import given
from hypothesis import strategies as st

from clusterft.agent import box as agent_box
from clusterft.checks import occupants, report, suite
from clusterft.checks.engines import containers
from clusterft.checks.examination import Examination, Wanted
from clusterft.checks.occupants import Occupant
from clusterft.facts import DockerGroup, Mount, box, health
from clusterft.facts import docker as docker_facts
from clusterft.facts.box import Box, Threads, Torch
from clusterft.facts.health import Health, HostHealth, NetworkHealth, StorageHealth, confines
from clusterft.facts.health import docker as docker_health
from clusterft.facts.health.docker import Container, DockerHealth
from clusterft.facts.health.gpu import Card, GpuHealth
from clusterft.facts.health.ours import OursHealth
from clusterft.facts.image import Identity
from clusterft.facts.mounted import Mounted, over
from clusterft.facts.storage import Disk, disk
from clusterft.findings import Finding
from clusterft.plan.container import Fittings
from clusterft.probing import box as box_probe
from clusterft.probing.crew import Silent

THREE = scenes.cluster("a slots=1\nb slots=1\nc slots=1\n")
NAMES = ("a", "b", "c")
NOW = 1_800_000_000.0
IMAGE = Identity("sha256:aa", ("sha256:1", "sha256:2"), "amd64", "linux", "", 1)
NFS = Mounted("0:52", Mount("nas:/out", "/mnt/out", "nfs4", "rw,relatime,rw,vers=4.2,rsize=1048576,hard"))
ROOT = Mounted("259:2", Mount("/dev/nvme0n1p2", "/", "ext4", "rw,relatime,rw,errors=remount-ro"))
LABELS = {
    "clusterft.cluster": "rack",
    "clusterft.run": "moon-1",
    "clusterft.node": "b",
    "clusterft.owner": "1000",
    "clusterft.config-digest": "aa",
}
WORD = "5eed5eed5eed5eed"


def engine(**changes: Any) -> DockerHealth:
    """One that has the image and sees the share."""
    whole: dict[str, Any] = {"now": NOW, "image": IMAGE, "missing": False, "containers": (), "here": NFS}
    return DockerHealth(**{**whole, **changes})


def node_health(name: str, docker: DockerHealth, gpu: GpuHealth) -> Health:
    """Of the layers that are judged here."""
    return Health(name, HostHealth(), docker, gpu, NetworkHealth(), StorageHealth(), OursHealth())


def container(**changes: Any) -> Container:
    """One of a run of ours, under way."""
    whole: dict[str, Any] = {
        "id": "c0" * 32,
        "name": "clusterft-b-all",
        "state": "running",
        "labels": LABELS,
        "since": NOW - 7200,
        "binds": ("/mnt/out",),
        "sees": NFS,
    }
    return Container(**{**whole, **changes})


def seen(
    b: DockerHealth | None = None,
    *,
    boxes: Mapping[str, Box] | None = None,
    wanted: Mapping[str, Any] | None = None,
    gpu: GpuHealth | None = None,
    **facts: Any,
) -> Examination:
    """Three healthy nodes, but for what is said of b."""
    told = {name: node_health(name, engine(), gpu or GpuHealth()) for name in NAMES}
    if b is not None:
        told["b"] = node_health("b", b, gpu or GpuHealth())
    known = (scenes.facts(name, **(facts if name == "b" else {})) for name in NAMES)
    made = {name: Box(name, sees=NFS) for name in NAMES}
    return Examination(
        Wanted(**{"device": "cpu", "shared": "/mnt/out", "tag": "x:1", **(wanted or {})}),
        scenes.survey(THREE, *known),
        health=told,
        boxes={**made, **(boxes or {})},
    )


def judged(of: Examination) -> list[Finding]:
    """All above info, of these layers alone."""
    mine = ("dk.", "gpu.", "nccl.version", "os.memlock", "os.disk-full", "os.inodes")
    found = report.judge(of, suite.CHECKS)
    return [one for one in found if one.status in ("fail", "warn") and one.id.startswith(mine)]


def only(of: Examination) -> Finding:
    """The one finding."""
    found = judged(of)
    assert len(found) == 1, found
    return found[0]


def test_healthy_engines_give_no_finding() -> None:
    assert judged(seen()) == []
    assert judged(seen(engine(containers=(container(),)))) == [], "a run that is under way is none either"


def test_a_login_older_than_its_group_and_one_without_are_told_apart() -> None:
    docker = scenes.docker(state="denied", words="permission denied")
    stale = only(seen(docker=docker, docker_group=DockerGroup(998, listed=True, held=False)))
    assert (stale.id, stale.nodes) == ("dk.perm", ("b",)) and "ssh -O stop" in stale.fix[0]
    without = only(seen(docker=docker, docker_group=DockerGroup(998, listed=False, held=False)))
    assert without.fix[0].startswith("sudo usermod -aG docker me") and "root" in without.fix[0]


def test_an_engine_that_was_slow_once_and_then_answered_is_there() -> None:
    silent = scenes.docker(state="down", words="no answer to `docker version` within 4 s")
    assert judged(seen(docker=silent)) == []
    hangs = only(seen(DockerHealth(), docker=silent))
    assert (hangs.id, hangs.nodes, hangs.fix[0]) == ("dk.down", ("b",), "sudo systemctl restart docker")


def test_behind_an_engine_that_is_down_nothing_is_said_of_it() -> None:
    of = seen(DockerHealth(), docker=scenes.docker(state="down", words="Cannot connect"))
    assert only(of).id == "dk.down"
    rest = [one for one in report.judge(of, suite.CHECKS) if one.id == "dk.leftover" and "b" in one.nodes]
    assert [(one.status, one.summary) for one in rest] == [("skipped", "(dk.down)")]


# -- images ------------------------------------------------------------------------------------


def test_an_image_that_lacks_or_differs_is_named_with_the_command_that_brings_it() -> None:
    missing = only(seen(engine(image=None, missing=True)))
    assert (missing.id, missing.status, missing.nodes) == ("dk.image-missing", "fail", ("b",))
    assert missing.fix == ("clusterft up",)
    other = replace(IMAGE, layers=("sha256:1", "sha256:3"))
    drift = only(seen(engine(image=other)))
    assert (drift.id, drift.nodes, drift.evidence) == ("dk.image-drift", ("b",), "layer 2 of 2 differs")


def test_without_a_record_the_many_are_the_measure_and_with_one_that_is() -> None:
    other = replace(IMAGE, config_digest="sha256:bb")
    of = seen()
    odd_head = {**of.health, "a": node_health("a", engine(image=other), GpuHealth())}
    assert only(replace(of, health=odd_head)).nodes == ("a",)
    brought = replace(of.wanted, image=other)
    assert only(replace(of, wanted=brought)).nodes == NAMES


def test_without_a_tag_nothing_good_is_said_of_images() -> None:
    found = {one.id: one.status for one in report.judge(seen(wanted={"tag": None}), suite.CHECKS)}
    assert found["dk.image-drift"] == found["dk.image-missing"] == "skipped"


def test_an_image_that_could_not_be_looked_at_is_unknown() -> None:
    found = report.judge(seen(engine(image=None, missing=None)), suite.CHECKS)
    assert [one.status for one in found if one.id == "dk.image-drift" and "b" in one.nodes] == ["unknown"]


# -- containers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({"state": "exited", "since": NOW - 61, "code": 0}, True),
        ({"state": "exited", "since": NOW - 20, "code": 0}, False),  # its controller may be at it
        ({"state": "exited", "since": None}, False),
        ({"state": "created", "since": NOW - 61}, False),
        ({"state": "created", "since": NOW - 301}, True),
        ({"state": "paused"}, False),
        ({"state": "restarting"}, False),
        ({"labels": {"clusterft.run": "old"}}, False),  # it runs, of another version of ours
        ({"labels": {"clusterft.run": "old"}, "state": "exited"}, True),
        ({"labels": {**LABELS, "clusterft.owner": "1007"}, "state": "exited"}, False),  # another person's
        ({"labels": {**LABELS, "clusterft.config-digest": ""}}, False),  # opened by hand
        ({"labels": {"clusterft.doctor": "clusterft-b-all"}, "since": NOW - 300}, False),  # a doctor at work
        ({"labels": {"clusterft.doctor": "clusterft-b-all"}, "since": NOW - 1300}, True),
        ({"labels": {"clusterft.doctor": "other"}, "since": NOW - 1300}, False),  # a copy's labels
    ],
    ids=str,
)
def test_what_is_left_behind_and_what_is_not(change: dict[str, Any], left: bool) -> None:
    found = judged(seen(engine(containers=(container(**change),))))
    assert [(one.id, one.status, one.nodes) for one in found] == (
        [("dk.leftover", "warn", ("b",))] if left else []
    )
    if left:
        assert "on b: docker rm -f c0c0c0c0c0c0" in found[0].fix[-1]
        assert ("clusterft stop moon-1 --now" in found[0].fix[0]) == (
            "clusterft.node" in change.get("labels", LABELS)
        )


def test_an_engine_that_did_not_tell_in_time_is_unknown_and_not_well() -> None:
    found = report.judge(seen(DockerHealth()), suite.CHECKS)
    for identity in ("dk.leftover", "dk.early-mount", "dk.image-drift"):
        assert [one.status for one in found if one.id == identity and "b" in one.nodes] == ["unknown"]


def test_an_ended_container_of_a_run_that_lives_elsewhere_is_not_left_behind() -> None:
    of = seen(engine(containers=(container(state="exited", since=NOW - 900),)))
    lives = node_health(
        "c", engine(containers=(container(labels={**LABELS, "clusterft.node": "c"}),)), GpuHealth()
    )
    assert judged(replace(of, health={**of.health, "c": lives})) == []


@pytest.mark.parametrize("lost", ["unreached", "silent"])
def test_of_a_run_that_may_live_on_an_unseen_node_nothing_is_said(lost: str) -> None:
    of = seen(engine(containers=(container(state="exited", since=NOW - 900),)))
    assert [one.id for one in judged(of)] == ["dk.leftover"]
    known = {name: one for name, one in of.health.items() if name != "c"}
    of = replace(
        of, health=known if lost == "unreached" else {**known, "c": node_health("c", DockerHealth(), GpuHealth())}
    )
    assert list(containers.left_behind(of)) == [], "nothing is taken away either"
    (told,) = (one for one in containers.leftover(of) if "b" in one.nodes)
    assert (told.status, told.nodes) == ("unknown", ("b",)) and "containers of c" in told.summary


def test_a_doctors_own_container_is_judged_whatever_else_is_unseen() -> None:
    left = container(labels={"clusterft.doctor": "clusterft-b-all"}, since=NOW - 1300)
    of = seen(engine(containers=(left,)))
    of = replace(of, health={name: one for name, one in of.health.items() if name != "c"})
    assert [words for _, _, words in containers.left_behind(of)] == ["of a doctor that was killed"]


@pytest.mark.parametrize(("over", "left"), [(NOW - 121, True), (NOW - 60, False), (None, False)])
def test_a_container_that_outlives_its_run_is_left_behind(over: float | None, left: bool) -> None:
    ended = {} if over is None else {"moon-1": over}
    found = judged(seen(engine(containers=(container(),), ended=ended)))
    assert [one.id for one in found] == ["dk.leftover"] * left


def test_a_container_that_sees_beneath_the_mount_is_told_with_both_sides() -> None:
    found = only(seen(engine(containers=(container(sees=ROOT),))))
    assert (found.id, found.status, found.nodes) == ("dk.early-mount", "fail", ("b",))
    assert "nas:/out" in found.evidence and "/dev/nvme0n1p2" in found.evidence
    assert found.fix == (
        "clusterft stop moon-1, then clusterft resume moon-1",
        "or on b: docker restart c0c0c0c0c0c0",
    )


@pytest.mark.parametrize(
    "change",
    [
        {"sees": None},
        {"sees": ROOT, "binds": ("/data",)},  # it has no share at all
        {"sees": ROOT, "binds": ("/mnt/outer",)},
        {"sees": replace(ROOT, mount=replace(ROOT.mount, fstype="autofs"))},  # which comes and goes
        {"sees": replace(NFS, mount=replace(NFS.mount, target="/mnt/out/sub"))},
    ],
    ids=str,
)
def test_nothing_is_guessed_of_mounts(change: dict[str, Any]) -> None:
    assert judged(seen(engine(containers=(container(**change),)))) == []


LOST = "Failed to initialize NVML: Unknown Error"
CARD = Card(0, "GPU-0000-0", "NVIDIA GeForce RTX 3090", "00000000:01:00.0", "580.65.06")


def test_cards_lost_in_a_container_alone_are_told_and_not_those_lost_outside_too() -> None:
    blind = engine(containers=(container(cards=True, smi=LOST),))
    here = GpuHealth(cards=(CARD,), driver=True, xids=())
    cuda = {"wanted": {"device": "cuda"}, "gpus": (scenes.card(0),)}
    found = [one for one in judged(seen(blind, gpu=here, **cuda)) if one.id == "dk.nvml-lost"]
    assert [one.nodes for one in found] == [("b",)] and "cgroupfs" in found[0].fix[-1]
    outside = replace(here, cards=())
    assert not [one for one in judged(seen(blind, gpu=outside, **cuda)) if one.id == "dk.nvml-lost"]
    well = engine(containers=(container(cards=True, smi="GPU 0: NVIDIA GeForce RTX 3090 (UUID: GPU-1)"),))
    assert not [one for one in judged(seen(well, gpu=here, **cuda)) if one.id == "dk.nvml-lost"]


# -- a container of the image ------------------------------------------------------------------

REFUSALS = json.loads((scenes.GOLDEN / "doctor" / "docker" / "refusals.json").read_text())


@pytest.mark.parametrize("one", REFUSALS, ids=lambda one: f"{one['kind']}: {one['from']}")
def test_a_refusal_is_read_from_the_engines_own_words(one: dict[str, str]) -> None:
    assert box.refusal(one["words"]) == one["kind"]
    assert box.refusal(f"it ended: {one['words']}") == one["kind"]


NAMED = {
    "no toolkit": ("dk.nogpu", "nvidia-ctk runtime configure"),
    "no runtime": ("dk.runtime", "nvidia-ctk runtime configure"),
    "runtime gone": ("", "--reinstall"),  # by whose it is, see below
    "old driver": ("gpu.old-driver", "newer NVIDIA driver"),
    "mismatch": ("gpu.mismatch", "sudo reboot"),
    "no driver": ("dk.nogpu", "ldconfig"),
    "no card": ("gpu.count", "gpus="),
    "room": ("os.disk-full", "docker image prune"),
    "nvml": ("dk.box", "journalctl -u docker"),
    "other": ("dk.box", "journalctl -u docker"),
    "hung": ("dk.box", "restart containerd docker"),
}


@pytest.mark.parametrize("one", [one for one in REFUSALS if one["kind"] in NAMED], ids=lambda one: one["kind"])
def test_a_refused_container_is_a_finding_under_the_id_of_its_reason(one: dict[str, str]) -> None:
    refused = Box("b", refused=one["kind"], words=one["words"])  # type: ignore[arg-type]
    found = only(seen(boxes={"b": refused}))
    identity, fix = NAMED[one["kind"]]
    assert (found.id, found.status, found.nodes) == (identity or found.id, "fail", ("b",))
    assert fix in "\n".join(found.fix) and found.evidence and "--help" not in found.evidence


@pytest.mark.parametrize(
    ("program", "default", "device", "identity", "first"),
    [
        ("/usr/bin/nvidia-container-runtime", "nvidia", "cpu", "dk.runtime", 'remove "default-runtime": "nvidia"'),
        ("/usr/bin/nvidia-container-runtime", "nvidia", "cuda", "dk.runtime", "nvidia-container-toolkit again"),
        ("/usr/bin/nvidia-container-runtime", None, "cpu", "dk.runtime", "nvidia-container-toolkit again"),
        ("/usr/bin/runc", "runc", "cpu", "dk.box", "--reinstall runc"),
    ],
)
def test_a_runtime_whose_program_is_gone_is_known_to_docker(
    program: str, default: str | None, device: str, identity: str, first: str
) -> None:
    """Found blind as "Docker does not know the NVIDIA runtime", which it does."""
    words = next(one["words"] for one in REFUSALS if "fork/exec" in one["words"])
    words = words.replace("/usr/bin/nvidia-container-runtime", program)
    assert box.refusal(words) == "runtime gone" and box.gone(words) == program
    of = seen(boxes={"b": Box("b", refused="runtime gone", words=words)}, wanted={"device": device})
    known = dict(of.survey.facts)
    known["b"] = replace(known["b"], docker=replace(scenes.docker(), default_runtime=default))
    found = [one for one in judged(replace(of, survey=replace(of.survey, facts=known))) if program in one.summary]
    assert [(one.id, one.nodes) for one in found] == [(identity, ("b",))]
    assert first in found[0].fix[0] and "does not know" not in found[0].summary


def test_an_engine_that_sees_other_mounts_than_its_node_must_be_restarted() -> None:
    found = only(seen(boxes={"b": Box("b", sees=ROOT)}))
    assert (found.id, found.nodes) == ("dk.early-mount", ("b",))
    assert found.fix == ("on b: sudo systemctl restart docker",)


def test_too_little_locked_memory_counts_only_with_infiniband() -> None:
    found = only(seen(boxes={"b": Box("b", pinned=True, memlock=65536)}))
    assert (found.id, found.nodes) == ("os.memlock", ("b",)) and "64 KiB" in found.evidence
    assert judged(seen(boxes={"b": Box("b", pinned=True, memlock=-1)})) == []
    assert judged(seen(boxes={"b": Box("b", pinned=False, memlock=65536)})) == []


TORCH = Torch("2.4.0", "12.4", "2.20.5", ("sm_80", "sm_86", "sm_90", "compute_90"), True)


def boxed(torch: Torch, name: str = "b", **changes: Any) -> Box:
    """One with cards."""
    return Box(name, carded=True, smi_code=0, smi="GPU 0: ...", torch=torch, **changes)


def with_cards(b: Box, cap: str = "8.6", **wanted: Any) -> Examination:
    """All have the same card."""
    card = replace(scenes.card(0), compute_cap=cap)
    of = seen(boxes={"b": b}, wanted={"device": "cuda", **wanted})
    known = {name: replace(facts, gpus=(card,)) for name, facts in of.survey.facts.items()}
    return replace(of, survey=replace(of.survey, facts=known))


def test_a_healthy_box_with_cards_gives_no_finding() -> None:
    assert judged(with_cards(boxed(TORCH))) == []


@pytest.mark.parametrize(
    ("archs", "cap", "serves"),
    [
        (("sm_80", "sm_86"), "8.9", True),  # code runs on later cards of its generation
        (("sm_86",), "8.0", False),
        (("sm_80", "sm_90"), "12.0", False),
        (("sm_80", "compute_90"), "12.0", True),  # PTX is compiled there
        (("sm_90a",), "9.0", True),
        (("sm_100a", "compute_100a"), "12.0", False),
        (("sm_75", "compute_75"), "6.1", False),
        (("sm_120",), "12.0", True),
        ((), "12.0", True),
    ],
)
def test_code_for_a_card(archs: tuple[str, ...], cap: str, serves: bool) -> None:
    found = judged(with_cards(boxed(replace(TORCH, archs=archs)), cap))
    assert [(one.id, one.nodes) for one in found] == ([] if serves else [("gpu.arch", ("b",))])


BLIND = [
    ("CUDA initialization: Unexpected error from cudaGetDeviceCount(). ... Error 802: system not yet initialized",
     "12.4", "gpu.fabric"),
    ("The NVIDIA driver on your system is too old (found version 11040)", "12.4", "gpu.old-driver"),
    ("Error 804: forward compatibility was attempted on non supported HW", "12.4", "gpu.old-driver"),
    ("", None, "dk.box"),
    ("Error 999: unknown error", "12.4", "dk.box"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "cuda", "identity"), BLIND)
def test_torch_without_cards_is_told_by_its_words(words: str, cuda: str | None, identity: str) -> None:
    blind = replace(TORCH, available=False, cuda=cuda, complaints=words, archs=())
    found = only(with_cards(boxed(blind)))
    assert (found.id, found.status, found.nodes) == (identity, "fail", ("b",)) and found.fix


def test_an_nccl_of_ones_own_is_told() -> None:
    of = with_cards(boxed(replace(TORCH, nccl="2.19.3")))
    others = {name: boxed(TORCH, name) for name in ("a", "c")}
    found = only(replace(of, boxes={**of.boxes, **others}))
    assert (found.id, found.nodes) == ("nccl.version", ("b",)) and "2.19.3" in found.evidence


def test_a_program_that_answers_nonsense_breaks_nothing() -> None:
    assert box.shaped({"memlock": True, "mounts": {"x": 1}}) == {"memlock": None, "sees": None}
    assert box.torch({"archs": 3, "available": "yes", "torch": 2}).version is None


# -- the look ----------------------------------------------------------------------------------

MOUNTINFO = """\
22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw,errors=remount-ro
95 22 0:52 / /mnt/out rw,relatime shared:50 - nfs4 nas:/out rw,vers=4.2,rsize=1048576,hard
96 22 0:60 / /mnt/o\\040t rw - tmpfs none rw
"""


def test_the_nearest_mount_and_the_last_on_a_place_count() -> None:
    lines = MOUNTINFO.splitlines()
    assert over(lines[:2]) == NFS
    assert over([*lines[:2], "97 22 0:61 / /mnt/out rw master:3 propagate_from:2 - tmpfs none rw"]) == Mounted(
        "0:61", Mount("none", "/mnt/out", "tmpfs", "rw,rw")
    )
    assert over([lines[0], lines[1].rpartition(" ")[0]]) == ROOT, "a line that was cut off"
    assert over(lines[:1]) == ROOT and over(["nonsense"]) is None and over([]) is None and over(None) is None
    assert (blank := over(lines[2:])) and blank.mount.target == "/mnt/o t", "as a user writes it"


SHELLS = [("sh",), ("dash",), ("bash", "--posix"), ("busybox", "sh")]


def look(shell: tuple[str, ...], tmp_path: Path, docker: str, **asked: Any) -> DockerHealth:
    """The look here, with a docker command of a test's own."""
    (tmp_path / "docker").write_text("#!/bin/sh\n" + docker)
    (tmp_path / "docker").chmod(0o755)
    question = health.Asked(WORD, shared=str(tmp_path), tag="x:1", cuda=False, **asked)
    done = subprocess.run(
        shell,
        input=health.script(question).encode(),
        capture_output=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)},
        timeout=60,
    )
    assert done.returncode == 0 and done.stderr == b""
    return health.parse("here", done.stdout.decode(), question).docker


IMAGE_SAID = json.dumps(
    {
        "Config": {"Env": ["PATH=/bin", "NVIDIA_REQUIRE_CUDA=cuda>=12.4 brand=tesla,driver>=470"]},
        "RootFS": {"Layers": ["sha256:1"]},
        "Architecture": "amd64",
        "Os": "linux",
    }
)
CONTAINER_SAID = json.dumps(
    {
        "id": "ab" * 32,
        "name": "/box",
        "created": "2026-11-26T09:44:07.495336731Z",
        "state": {"Status": "running", "StartedAt": "2026-11-26T11:44:08.1+02:00", "ExitCode": 0},
        "labels": {"clusterft.run": "moon-1"},
        "cards": [{"Count": -1}],
        "runtime": "runc",
        "mounts": [{"Type": "bind", "Destination": "/mnt/out"}],
    }
)
ENGINE = f"""\
case $1 in
  version) echo 28.5.2 ;;
  image) echo 'WARNING: something'; echo '{IMAGE_SAID}' ;;
  ps) echo 'CONTAINER ID  STATE  LABELS'
      echo "{"ab" * 32}   running   clusterft.run=moon-1,clusterft.cluster=rack"
      echo "{"cd" * 32}   running   some=other" ;;
  inspect) case $3 in *Pid*) echo 1 ;; *) [ $# = 6 ] || exit 1; echo '{CONTAINER_SAID}' ;; esac ;;
  exec) printf '22 1 259:2 / / rw - ext4 /dev/x rw\\n' ;;
esac
"""


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_every_shell_reads_the_same(shell: tuple[str, ...], tmp_path: Path) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    (tmp_path / "moon-1").mkdir()
    (tmp_path / "moon-1" / "outcome.json").write_text("{}")
    found = look(shell, tmp_path, ENGINE)
    assert found.now and found.missing is False and found.image and found.image.layers == ("sha256:1",)
    assert found.requires == "cuda>=12.4 brand=tesla,driver>=470"
    assert found.containers is not None and len(found.containers) == 1
    (one,) = found.containers
    assert (one.name, one.run, one.state, one.cards, one.binds) == (
        "box",
        "moon-1",
        "running",
        True,
        ("/mnt/out",),
    )
    assert one.since == 1795686248.0 and str(one.sees) == "ext4 /dev/x (device 259:2, mounted on /)"
    assert found.here and found.ended and found.ended["moon-1"]


def test_an_engine_that_hangs_costs_its_own_layer(tmp_path: Path) -> None:
    found = look(("sh",), tmp_path, "exec sleep 60\n")
    assert found == DockerHealth()


@pytest.mark.parametrize(
    ("listing", "inspect"),
    [
        ("echo 'Error response from daemon: too busy'; exit 1", ":"),
        ("sleep 20", ":"),
        (f"echo 'CONTAINER ID  STATE  LABELS'; echo '{'ab' * 32} exited clusterft.run=x'", "sleep 20"),
    ],
)
def test_containers_that_the_engine_did_not_tell_of_are_not_none(
    listing: str, inspect: str, tmp_path: Path
) -> None:
    found = look(
        ("sh",), tmp_path, f"case $1 in version) echo 28.5.2 ;; ps) {listing} ;; inspect) {inspect} ;; esac"
    )
    assert found.containers is None and found.now
    gone = "echo 'Error: No such container: abab'; exit 1"
    listing = f"echo 'CONTAINER ID'; echo '{'ab' * 32} exited clusterft.run=x'"
    found = look(("sh",), tmp_path, f"case $1 in version) echo 28.5.2 ;; ps) {listing} ;; inspect) {gone} ;; esac")
    assert found.containers == (), "it went in between"


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_slow_answers_together_cost_what_comes_after_and_not_the_node(
    shell: tuple[str, ...], tmp_path: Path
) -> None:
    """Each within its own time, all of them not: what was told by then is kept, and the rest is not known."""
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    slow = f"""\
case $1 in
  version) sleep 3; echo 28.5.2 ;;
  image) sleep 3; echo '{IMAGE_SAID}' ;;
  ps) sleep 3; echo 'CONTAINER ID  STATE  LABELS'; echo '{"ab" * 32} running clusterft.run=moon-1' ;;
  inspect) sleep 4; touch {tmp_path}/late ;;
esac
"""
    began = time.monotonic()
    found = look(shell, tmp_path, slow)
    assert time.monotonic() - began < 14, "a look is given up on after 15 s"
    assert found.image and found.now and found.containers is None


def test_without_containers_the_engine_is_left_alone(tmp_path: Path) -> None:
    assert look(("sh",), tmp_path, f"touch {tmp_path}/asked\n", contained=False) == DockerHealth()
    assert not (tmp_path / "asked").exists()


@given(st.text(max_size=400))
def test_no_answer_breaks_the_parser(text: str) -> None:
    names = ("docker.now", "docker.image", "docker.containers", "docker.here", "docker.inside", "docker.ended")
    said = {**dict.fromkeys(names, text), "docker.now": "1800000000"}
    found = docker_health.parse(said, health.Asked(WORD, tag="x:1"))
    assert isinstance(found, DockerHealth)


def test_a_hostile_answer_of_the_engine_is_left_out() -> None:
    lines = [
        '{"id": 3}',
        '{"id":"x","labels":{},"state":{"Status":"gone"}}',
        "{" * 5000,
        '{"id":"x","labels":[],"state":{}}',
        "asked 3",
    ]
    said = {"docker.now": "5", "docker.containers": "\n".join(lines), "docker.image": '{"Architecture": 1}'}
    found = docker_health.parse(said, health.Asked(WORD, tag="x:1"))
    assert found.containers == () and found.missing is None


def test_a_run_in_containers_holds_its_nodes_and_one_that_was_left_behind_holds_none() -> None:
    assert occupants.found(seen(engine(containers=(container(),)))) == (Occupant("moon-1", ("b",)),)
    assert occupants.found(seen(engine(containers=(container(state="exited"),)))) == ()
    over = engine(containers=(container(),), ended={"moon-1": NOW - 3600})
    assert [one.id for one in judged(seen(over))] == ["dk.leftover"] and occupants.found(seen(over)) == ()


# -- what is full, and what cannot be done in a container that runs ------------------------------

RUN_FULL = (
    "docker: Error response from daemon: failed to start shim: symlink /var/lib/docker/containerd/daemon/io.x/ab "
    "/var/run/docker/containerd/daemon/io.x/ab/work: no space left on device: unknown."
)


def df(mounted_on: str, free: int, inodes: int | None = 1000) -> Disk:
    """As the node was asked once the engine had complained."""
    return Disk(mounted_on, "tmpfs", mounted_on, free, inodes, writable=False)


@pytest.mark.parametrize("room", [df("/run", 0), None], ids=("asked", "not asked"))
def test_a_full_run_is_named_and_no_image_is_to_go_for_it(room: Disk | None) -> None:
    """Found blind with `docker image prune` as the remedy, of another disk."""
    assert box.refusal(RUN_FULL) == "room"
    assert box.full(RUN_FULL) == "/run/docker/containerd/daemon/io.x/ab/work"
    found = only(seen(boxes={"b": Box("b", refused="room", words=RUN_FULL, room=room)}))
    assert (found.id, found.nodes) == ("os.disk-full", ("b",)) and "/run" in found.summary
    assert found.fix[0].startswith("sudo du -xah /run | sort -h | tail")
    assert "prune" not in "\n".join(found.fix) and ("df: 0 MiB" in found.evidence) == (room is not None)


def test_an_images_own_disk_that_is_full_is_pruned() -> None:
    words = "docker: Error response from daemon: mkdir /var/lib/docker/overlay2/ab-init: no space left on device."
    found = only(seen(boxes={"b": Box("b", refused="room", words=words, room=df("/", 0, 99999))}))
    assert found.id == "os.disk-full" and "docker image prune" in found.fix[0] and "/ is full" in found.summary


def test_no_inodes_and_a_disk_that_has_room_are_told_apart() -> None:
    few = only(seen(boxes={"b": Box("b", refused="room", words=RUN_FULL, room=df("/run", 2**26, 0))}))
    assert few.id == "os.inodes" and "du -x --inodes /run" in few.fix[0]
    roomy = only(seen(boxes={"b": Box("b", refused="room", words=RUN_FULL, room=df("/run", 2**36))}))
    assert "is full" not in roomy.summary and "quota" in roomy.cause


@pytest.mark.parametrize(
    ("words", "kind", "cause"),
    [
        ("mkdir /sys/fs/cgroup/memory/docker/ab: no space left on device", "room", "lies on no disk"),
        ("unable to join session keyring: unable to create session key: disk quota exceeded", "keys", "no disk"),
    ],
)
def test_a_limit_of_the_kernels_is_no_full_disk(words: str, kind: str, cause: str) -> None:
    told = f"docker: Error response from daemon: failed to create task: {words}: unknown."
    assert box.refusal(told) == kind
    found = only(seen(boxes={"b": Box("b", refused=kind, words=told)}))  # type: ignore[arg-type]
    assert found.id == "dk.box" and cause in found.cause and "prune" not in "\n".join(found.fix)


def test_where_an_engine_names_no_path_df_is_asked_first() -> None:
    words = "docker: Error response from daemon: no space left on device."
    found = only(seen(boxes={"b": Box("b", refused="room", words=words)}))
    assert found.fix[0].startswith("df -h") and "if that is where" in found.fix[1]


def test_the_room_at_a_path_is_asked_of_the_nearest_directory_that_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "gone" / "deeper")
    done = subprocess.run(box.room(path), capture_output=True, text=True)
    found = disk(path, done.stdout)
    assert found is not None and found.writable and found.free_bytes > 0


TRACEBACK = 'Traceback (most recent call last):\n  File "box", line 99\nRuntimeError: can\'t start new thread'
MOBY = "/etc/docker/seccomp-2020.json"


def threadless(told: Threads | None, **docker: Any) -> Finding:
    """A container in which no thread begins."""
    refused = Box("b", refused="threadless", words="RuntimeError: can't start new thread", threads=told)
    return only(seen(boxes={"b": refused}, docker=scenes.docker(**docker)))


def test_a_seccomp_profile_that_forbids_threads_is_no_engine_that_starts_nothing() -> None:
    """Found blind as "no container can be started" and a limit of the login: neither was so."""
    assert box.refusal(f"it ended: {TRACEBACK}") == "threadless"
    assert confines.stopped(TRACEBACK, contained=True) == "" and confines.stopped(TRACEBACK)
    found = threadless(Threads("EPERM", -1, None), seccomp=MOBY)
    assert (found.id, found.nodes) == ("dk.box", ("b",)) and "starts, and no thread" in found.summary
    assert "answers clone3 with EPERM" in found.cause and MOBY in found.cause
    assert '"seccomp-profile"' in found.fix[0] and "sudo systemctl restart docker" in found.fix[0]
    assert f"seccomp profile {MOBY}" in found.evidence and "login" not in found.evidence


@pytest.mark.parametrize(
    ("told", "docker", "cause", "fix"),
    [
        (None, {"seccomp": MOBY}, "may forbid clone3", "seccomp-profile"),
        (None, {"seccomp": "default", "version": "20.10.5"}, "may forbid clone3", "20.10.10"),
        (Threads("EPERM"), {"seccomp": "default", "version": "20.10.5"}, "answers clone3 with EPERM", "20.10.10"),
        (Threads("EPERM"), {"seccomp": "builtin"}, "old runc", "libseccomp2"),
        (Threads("ENOSYS", -1, 4), {"seccomp": MOBY}, "4 processes (pids.max)", "default-pids-limit"),
        (Threads("EINVAL", 3, None), {"seccomp": "builtin"}, "3 processes of one user", "default-ulimits"),
        (Threads("EINVAL", -1, None), {"seccomp": "builtin", "version": "20.10.5"}, "", "default-ulimits"),
        (None, {}, "", "default-ulimits"),
    ],
)
def test_seccomp_is_blamed_only_where_something_speaks_for_it(
    told: Threads | None, docker: dict[str, Any], cause: str, fix: str
) -> None:
    found = threadless(told, **docker)
    assert cause in found.cause and bool(cause) == bool(found.cause) and fix in found.fix[0]


def test_a_profile_that_others_do_not_have_is_shown_with_theirs() -> None:
    of = seen(
        boxes={"b": Box("b", refused="threadless", words="RuntimeError: x", threads=Threads("EPERM"))},
        docker=scenes.docker(seccomp=MOBY),
    )
    known = dict(of.survey.facts)
    known["a"] = replace(known["a"], docker=scenes.docker(seccomp="builtin"))
    found = only(replace(of, survey=replace(of.survey, facts=known)))
    assert "a: Docker 28.3.3, seccomp profile builtin" in found.evidence


def test_a_container_without_memory_is_no_bug_of_clusterft() -> None:
    words = "it ended: Traceback (most recent call last):\n  x\nMemoryError"
    assert box.refusal(words) == "starved"
    found = only(seen(boxes={"b": Box("b", refused="starved", words=words)}))
    assert found.id == "dk.box" and "gets no memory" in found.summary


def test_what_a_container_without_threads_says_is_read() -> None:
    body = {"threadless": "x", "clone3": "EPERM", "processes": -1, "pids": None}
    assert box.threads(body) == Threads("EPERM", -1, None)
    assert agent_box.clone3() in (None, "EINVAL", "ENOSYS"), "a call without arguments begins nothing"


def test_the_profile_is_read_of_docker_info() -> None:
    def profile(*options: str) -> str | None:
        info = json.dumps({"SecurityOptions": options})
        named = {"docker.path": "/usr/bin/docker", "docker.info": info, "docker.root": "", "docker.store": ""}
        found = docker_facts.parse({**named, "docker.version": 'docker\n{"ApiVersion": "1.41"}'})
        return found.seccomp if found else None

    assert profile("name=apparmor", f"name=seccomp,profile={MOBY}") == MOBY
    assert profile("name=seccomp,profile=default", "name=cgroupns") == "default"
    assert profile("name=apparmor") is None


class _Engine:
    """A node whose program's last words and room are given."""

    def __init__(self, room: str) -> None:
        self.room = room

    def run(self, argv: tuple[str, ...], *, seconds: float) -> Any:
        """What `df` says there."""
        return SimpleNamespace(code=0, out=self.room, err="")


class _Crew:
    """Its container says one line, or nothing but why."""

    def __init__(self, says: dict[str, Any] | str) -> None:
        self.says = says

    def start(self, *_: object, **__: object) -> Any:
        """As a crew does."""
        if isinstance(self.says, str):
            raise Silent(self.says)
        return SimpleNamespace(release="", hear=lambda _: self.says, close=lambda: None)


def tried(says: dict[str, Any] | str, room: str = "") -> Box:
    """What doctor's own trial makes of it."""
    request = box_probe._Request("b", Fittings(), None)
    return box_probe._one(_Crew(says), _Engine(room), request)  # type: ignore[arg-type]


def test_the_trial_asks_for_the_room_and_hears_of_threads() -> None:
    table = "Filesystem 1024-blocks Used Available Capacity Mounted on\ntmpfs 65536 65536 0 100% /run\n"
    full = tried(f"it ended: {RUN_FULL}", f"no\n{table}{table.replace('65536 65536 0', '1000 900 100')}")
    assert full.refused == "room" and full.room is not None
    assert (full.room.mounted_on, full.room.free_bytes, full.room.free_inodes) == ("/run", 0, 100)
    bare = tried({"threadless": "can't start new thread", "clone3": "EPERM", "processes": -1, "pids": None})
    assert (bare.refused, bare.threads) == ("threadless", Threads("EPERM", -1, None))
    assert tried("it ended: docker: Error response from daemon: x").room is None
