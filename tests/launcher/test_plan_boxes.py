"""Proves what a plan decides of containers, cards, scripts and secrets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import scenes
from plans import BOXED, CASES, GPU_JOB, HEAD, SCRIPT, TOKEN, build, cards_and_fabric, three_ssh

from clusterft import plan
from clusterft.checks.examination import Wanted
from clusterft.errors import UsageError
from clusterft.probing import box
from clusterft.spec import Mount
from clusterft.ui import text as views


def test_containers_are_asked_for_with_all_that_a_run_needs(tmp_path: Path) -> None:
    planned = build(*reversed(CASES["boxes_elastic"]), tmp_path)
    rig0, rig1 = (node.container for node in planned.nodes)
    assert rig0 and rig1 and rig0.command == planned.head.supervisor("run")
    assert rig0.command == ("python3", "-P", "-m", "clusterft_trainer.supervisor", "run", "/run/clusterft")
    assert (str(rig0.person), rig0.person.name, rig0.restart) == ("1005:100", "clusterft", "on-failure")
    assert (rig0.gpus, rig1.gpus) == (("all",), ("3", "1")) and rig0.devices == ("/dev/infiniband",)
    host = rig0.to_dict()["HostConfig"]
    assert host["IpcMode"] == "private" and host["ShmSize"] == 16 * 10**9
    assert {mount["Source"]: mount.get("ReadOnly", False) for mount in host["Mounts"]} == {
        "/mnt/out": False,
        "/models/sdxl": True,
    }
    # A container numbers the cards that it sees by their bus, whatever the hostfile's order.
    assert planned.nodes[1].env["CLUSTERFT_CARDS"] == "0000:2a:00.0;0000:4a:00.0"
    assert "CUDA_VISIBLE_DEVICES" not in planned.nodes[1].env and "PATH" not in planned.nodes[1].env
    assert planned.nodes[1].assignment.contained and planned.nodes[1].assignment.lock_file is None


def test_the_box_of_doctor_gets_what_a_runs_container_gets(tmp_path: Path) -> None:
    """But for its other mounts, and for a shared dir that does not answer."""
    survey, text = CASES["boxes_elastic"]
    wanted = Wanted("cuda", shared="/mnt/out", job=scenes.job(text, tmp_path))
    for node in build(text, survey, tmp_path).nodes:
        facts = survey.facts[node.node.name]
        own = box.fittings(node.node, replace(facts, disks=(scenes.disk("/mnt/out"),)), wanted)
        theirs = node.container
        assert theirs and own.host() == replace(theirs, binds=(Mount("/mnt/out"),)).host()
        assert not box.fittings(node.node, replace(facts, disks=()), wanted).binds


def test_plain_processes_see_their_cards_in_the_hostfiles_order(tmp_path: Path) -> None:
    job = GPU_JOB + "launcher: torchrun\n"
    assert build(job, cards_and_fabric(), tmp_path).nodes[1].env["CLUSTERFT_CARDS"] == "0000:4a:00.0;0000:2a:00.0"


def test_a_job_on_cpus_takes_no_cards(tmp_path: Path) -> None:
    job = BOXED.replace("device: cuda", "device: cpu") + "launcher: torchrun\n"
    boxes = [node.container for node in build(job, cards_and_fabric(), tmp_path).nodes]
    assert [box and box.gpus for box in boxes] == [(), ()]


def test_a_container_needs_an_image(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cluster rack has no image yet") as caught:
        build(BOXED, three_ssh(), tmp_path, tag=None)
    assert "clusterft up" in caught.value.remedy


def test_a_script_starts_in_its_shipped_folder(tmp_path: Path) -> None:
    planned = build(HEAD + SCRIPT, three_ssh(), tmp_path)
    for node in planned.nodes:
        assert node.command[-5:] == (
            "clusterft_trainer.rank",
            "/mnt/out/.clusterft/code/0c0de/go.py",
            "--lr",
            "4e-7",
            "/run/clusterft/attempt-0/hostfile",
        )
        assert node.assignment.work_dir == "/mnt/out/.clusterft/code/0c0de" and node.assignment.kind == "script"
        assert [file.path.name for file in node.files] == ["assignment.json"]
        assert "HF_HUB_OFFLINE" not in node.env


def test_the_digest_is_of_what_is_computed(tmp_path: Path) -> None:
    def digest(text: str, code: str | None = None) -> str:
        (tmp_path / "go.py").touch()
        return plan.config_digest(scenes.job(text, tmp_path), code)

    same = {digest(scenes.JOB), digest(scenes.JOB.replace("lighthouse", "other", 1) + "restarts: 1\n")}
    assert len(same) == 1 and digest(scenes.JOB.replace("4e-7", "5e-7")) not in same
    assert digest(HEAD + SCRIPT, "a") != digest(HEAD + SCRIPT, "b")


def test_parts_can_be_written_down_and_read_again(tmp_path: Path) -> None:
    for name in ("boxes", "two_local"):
        for part in build(CASES[name][1], CASES[name][0], tmp_path).parts:
            assert plan.Part.from_dict(json.loads(json.dumps(part.to_dict()))) == part
    with pytest.raises(ValueError, match="lacks python"):
        plan.Part.from_dict({"node": "a", "machine_rank": 0, "runtime": "docker", "directory": "/d"})


@pytest.mark.parametrize(("gpus", "fine"), [("0,1", True), ("1,0", False), ("0,3", False)])
def test_deepspeed_is_not_asked_for_cards_that_it_would_not_take(gpus: str, fine: bool, tmp_path: Path) -> None:
    cluster = scenes.cluster(f"rig slots=2 gpus={gpus}\n")
    survey = scenes.survey(cluster, scenes.facts("rig"), contacts={"rig": "10.0.0.7"})
    job = GPU_JOB + "launcher: deepspeed\n"
    assert build(job.replace("runtime: process\n", ""), survey, tmp_path).world_size == 2
    if fine:
        assert build(job, survey, tmp_path).world_size == 2
        return
    with pytest.raises(UsageError, match="takes the first cards of rig") as caught:
        build(job, survey, tmp_path)
    assert caught.value.where == "rack:1"


@pytest.mark.parametrize("name", CASES)
def test_the_token_of_the_gang_is_in_its_0600_file_alone(name: str, tmp_path: Path) -> None:
    planned = build(CASES[name][1], CASES[name][0], tmp_path)
    shown = [json.dumps(planned.to_dict()), repr(planned), *views.plan(planned)]
    assert not any(TOKEN in part for part in shown)
    for node in planned.nodes:
        assert {file.mode for file in node.files if TOKEN in file.text} == {0o600}
        assert TOKEN not in json.dumps(node.container and node.container.to_dict())


def test_a_secret_without_a_value_is_told(tmp_path: Path) -> None:
    planned = build(BOXED + "secrets: [HF_TOKEN, OTHER]\n", three_ssh(), tmp_path, unset=("OTHER",))
    lines = list(views.plan(planned))
    assert "  secret    HF_TOKEN=***" in lines
    assert "  secret    OTHER=***   (it has no value in this shell)" in lines
    assert planned.to_dict()["unset_secrets"] == ["OTHER"]


@pytest.mark.parametrize("name", ["boxes", "boxes_elastic", "boxes_script"])
def test_a_plan_reads_well(name: str, tmp_path: Path) -> None:
    survey, job = CASES[name]
    lines = list(views.plan(build(job, survey, tmp_path, unset=("HF_TOKEN",) if "secrets" in job else ())))
    scenes.same_as_golden("\n".join(lines) + "\n", scenes.GOLDEN / "plan" / f"{name}.txt")
