"""Proves what a plan decides: golden plans of typical clusters, no secret in it, one YAML for all nodes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scenes
import yaml
from hypothesis import given
from hypothesis import strategies as st
from plans import CASES, GPU_JOB, PYTHON, build, mixed, three_ssh, two_local

from clusterft.errors import UsageError
from clusterft.plan import LaunchPlan, network
from clusterft.ui import text as views
from clusterft_trainer import assignment
from clusterft_trainer.config import TrainConfig


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_as_it_was_decided(name: str, tmp_path: Path) -> None:
    survey, job = CASES[name]
    body = build(job, survey, tmp_path).to_dict()
    # A script's folder is the reader's own.
    text = json.dumps(body, indent=1).replace(str(tmp_path), "/jobs")
    scenes.same_as_golden(text + "\n", scenes.GOLDEN / "plan" / f"{name}.json")


def test_two_names_of_this_machine_meet_on_the_loopback_and_share_its_cores(tmp_path: Path) -> None:
    planned = build(scenes.JOB, two_local(), tmp_path)
    assert (planned.address, planned.port, planned.world_size) == ("127.0.0.1", 29502, 2)
    for node in planned.nodes:
        env = node.assignment.env
        assert env["GLOO_SOCKET_IFNAME"] == "lo" and env["OMP_NUM_THREADS"] == "3"
        assert env["DS_ACCELERATOR"] == "cpu" and env["CUDA_VISIBLE_DEVICES"] == ""


def test_addresses_and_interfaces_come_from_hostfile_and_routes(tmp_path: Path) -> None:
    planned = build(GPU_JOB, three_ssh(), tmp_path)
    assert [node.node.name for node in planned.nodes] == ["gpu0", "gpu1", "gpu2"]
    assert [node.machine_rank for node in planned.nodes] == [0, 1, 2]
    assert [(node.address, node.interface) for node in planned.nodes] == [
        ("10.0.0.10", "eno1"),
        ("192.168.100.12", "enp65s0"),
        ("10.0.0.12", "eno1"),
    ]
    assert planned.world_size == 24 and planned.address == "10.0.0.10"
    assert planned.nodes[1].assignment.env["NCCL_SOCKET_IFNAME"] == "=enp65s0"


def test_chosen_cards_are_numbered_as_nvidia_smi_does(tmp_path: Path) -> None:
    here, rig = build(GPU_JOB, mixed(), tmp_path).nodes
    assert "CUDA_VISIBLE_DEVICES" not in here.assignment.env
    assert rig.assignment.env["CUDA_VISIBLE_DEVICES"] == "0,3"
    assert rig.assignment.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert (here.address, here.interface) == ("10.0.0.2", "eth1")
    assert (rig.address, rig.interface) == ("10.0.0.7", "eth0")


def test_what_a_supervisor_and_a_rank_are_given_is_what_they_read(tmp_path: Path) -> None:
    for node in build(GPU_JOB + "secrets: [HF_TOKEN]\n", three_ssh(), tmp_path).nodes:
        files = {file.path.name: file for file in node.files}
        assert set(files) == {"assignment.json", "config.json"}
        assert assignment.parse(files["assignment.json"].text) == node.assignment
        assert files["assignment.json"].mode == 0o600
        assert TrainConfig.model_validate_json(files["config.json"].text).learn.unet is not None
        assert set(node.assignment.files) == {"hostfile", "accelerate.yaml"}
        now = {file.path.name: file for file in node.attempt_files}
        assert now["hostfile"].text == "gpu0 slots=8\ngpu1 slots=8\ngpu2 slots=8\n"
        assert now["hostfile"].path == node.directory / "attempt-0" / "hostfile"
        assert all(file.path.is_relative_to(node.directory) for file in node.files)
        assert node.assignment.secrets_file == f"{node.directory}/secrets.json"


def test_the_value_of_a_secret_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_veryprivate")
    planned = build(GPU_JOB + "secrets: [HF_TOKEN]\n", three_ssh(), tmp_path)
    assert planned.to_dict()["secrets"] == {"HF_TOKEN": "***"}
    everything = [json.dumps(planned.to_dict()), repr(planned), *views.plan(planned)]
    everything += [file.text for node in planned.nodes for file in node.files]
    assert not any("hf_veryprivate" in part for part in everything)
    assert not any("HF_TOKEN" in node.assignment.env for node in planned.nodes)
    assert "  secret    HF_TOKEN=***" in everything


def test_the_yaml_of_all_nodes_differs_in_the_machine_rank_alone(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = [yaml.safe_load(text) for text in _yamls(build(GPU_JOB, three_ssh(), tmp_path))]
    assert [body.pop("machine_rank") for body in bodies] == [0, 1, 2]
    assert bodies[0] == bodies[1] == bodies[2]
    assert bodies[0]["num_processes"] == 24 and bodies[0]["num_machines"] == 3
    assert bodies[0]["deepspeed_config"]["zero_stage"] == 2


ZERO_3 = "{kind: zero, stage: 3, offload: optimizer}"


@pytest.mark.parametrize(
    ("engine", "precision", "wanted"),
    [
        ("{kind: zero, stage: 1}", "fp16", ("DEEPSPEED", "fp16", 1, "none")),
        ("{kind: zero}", "bf16", ("DEEPSPEED", "bf16", 2, "none")),
        (ZERO_3, "fp32", ("DEEPSPEED", "no", 3, "cpu")),
        ("{kind: fsdp}", "bf16", ("MULTI_GPU", "bf16", None, None)),
        ("{kind: ddp}", "fp16", ("MULTI_GPU", "fp16", None, None)),
    ],
)
def test_the_yaml_says_of_the_engine_what_the_job_says(
    engine: str, precision: str, wanted: tuple[object, ...], tmp_path: Path
) -> None:
    job = f"{GPU_JOB}  engine: {engine}\n  precision: {precision}\n  batch: {{accumulate: 4}}\n"
    body = yaml.safe_load(_yamls(build(job, three_ssh(), tmp_path))[0])
    zero = body.get("deepspeed_config", {})
    said = (body["distributed_type"], body["mixed_precision"])
    assert (*said, zero.get("zero_stage"), zero.get("offload_optimizer_device")) == wanted
    assert zero.get("gradient_accumulation_steps", 4) == 4


def _yamls(planned: LaunchPlan) -> list[str]:
    return [
        file.text for node in planned.nodes for file in node.attempt_files if file.path.name == "accelerate.yaml"
    ]


@pytest.mark.trainer
@pytest.mark.parametrize("engine", ["{kind: zero}", ZERO_3, "{kind: fsdp}", "{kind: ddp}"])
def test_accelerate_itself_takes_the_yaml(engine: str, tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    planned = build(f"{GPU_JOB}  engine: {engine}\n", three_ssh(), tmp_path)
    for rank, text in enumerate(_yamls(planned)):
        path = tmp_path / f"{rank}.yaml"
        path.write_text(text)
        config = load_config_from_file(str(path))
        assert config.machine_rank == rank
        assert str(config.distributed_type).endswith("DEEPSPEED" if "zero" in engine else "MULTI_GPU")


def test_a_node_finds_the_vocabularies_of_an_earlier_download(tmp_path: Path) -> None:
    env = build(GPU_JOB, three_ssh(), tmp_path).head.assignment.env
    assert env["HF_HUB_CACHE"] == "/home/me/.cache/huggingface/hub" and env["HF_HUB_OFFLINE"] == "1"
    assert env["HF_HOME"].startswith("/home/me/.clusterft/"), "a default_config.yaml there would alter the run"


def test_torchrun_is_told_the_same_meeting(tmp_path: Path) -> None:
    planned = build(GPU_JOB + "launcher: torchrun\n", mixed(), tmp_path)
    for rank, node in enumerate(planned.nodes):
        argv = node.command
        assert argv[:4] == (PYTHON, "-m", "torch.distributed.run", "--nnodes=2")
        assert argv[4:7] == (f"--node-rank={rank}", "--master-addr=10.0.0.2", "--master-port=29500")
        assert argv[7:12] == (
            "--nproc-per-node=2",
            f"--log-dir={node.directory}/attempt-0/elastic",
            "-m",
            "clusterft_trainer",
            "train",
        )
        assert "accelerate.yaml" not in node.assignment.files


def test_elastic_agents_of_two_attempts_never_meet(tmp_path: Path) -> None:
    job = GPU_JOB + "launcher: torchrun\nrendezvous: elastic\nrestarts: 5\n"
    here, rig = build(job, mixed(), tmp_path, first_attempt=4).nodes
    assert "--rdzv-id=lighthouse-20261120-1432-7f3a-4" in here.command
    assert "--rdzv-endpoint=10.0.0.2:29500" in rig.command and "--max-restarts=5" in rig.command
    assert "--rdzv-conf=is_host=1" in here.command and "--rdzv-conf=is_host=0" in rig.command
    assert "--local-addr=10.0.0.2" in here.command and "--local-addr=10.0.0.7" in rig.command
    assert here.env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


@pytest.mark.parametrize("name", CASES)
def test_whoever_takes_part_the_attempt_is_filled_in_whole(name: str, tmp_path: Path) -> None:
    """Any gang of those that are left: no placeholder stays, ranks have no gaps, all agree where they meet."""
    planned = build(CASES[name][1], CASES[name][0], tmp_path)
    everyone = planned.head.assignment.members
    for left in ({0}, {0, len(everyone) - 1}, set(range(len(everyone)))):
        members = tuple(one for one in everyone if one.machine_rank in left)
        first = 0
        for place, member in enumerate(members):
            told = planned.nodes[member.machine_rank].assignment
            term = assignment.term(members, member.machine_rank, 7, 31000, "/dir")
            words = [*told.argv, *told.env.values(), *told.files.values()]
            filled = [term.fill(word) for word in words]
            assert not re.search("@[A-Z_]+@", "".join(filled))
            assert (term.machines, term.machine_rank, term.first_rank) == (len(members), place, first)
            assert term.address == everyone[0].address
            first += member.slots
            if "accelerate.yaml" in told.files:
                body = yaml.safe_load(term.fill(told.files["accelerate.yaml"]))
                assert (body["num_machines"], body["machine_rank"]) == (len(members), place)
                assert body["main_process_port"] == 31000 and body["main_process_ip"] == term.address
                assert body["num_processes"] == sum(one.slots for one in members)


def test_the_supervisors_meet_apart_from_every_rendezvous(tmp_path: Path) -> None:
    taken = frozenset({29500, 29502, 29564, 29565})
    survey = scenes.survey(
        scenes.cluster("a slots=1\n"), scenes.facts("a", listening=taken), contacts={"a": "1.2.3.4"}
    )
    told = build(scenes.JOB, survey, tmp_path).head.assignment
    assert (told.first_port, told.ports, told.gang_port) == (29501, 63, 29566)
    assert told.members == (assignment.Member("a", 0, 1, "1.2.3.4"),)


def test_a_spare_is_planned_for_the_gang_that_is_there(tmp_path: Path) -> None:
    before = build(GPU_JOB, three_ssh(), tmp_path)
    survey = three_ssh()
    head, lost, other, spare = survey.cluster.nodes
    nodes = (head, replace(spare, spare=False), other)
    facts = dict(survey.facts)
    facts["gpu3"] = replace(facts["gpu2"], node="gpu3")
    facts["gpu0"] = replace(facts["gpu0"], listening=frozenset({before.port, before.gang_port}))
    contacts = {**survey.contacts, "gpu3": "10.0.0.13"}
    now = replace(survey, cluster=replace(survey.cluster, nodes=nodes), facts=facts, contacts=contacts)
    told = build(GPU_JOB, now, tmp_path, ports=(before.port, before.gang_port)).nodes[1].assignment
    assert (told.first_port, told.gang_port) == (before.port, before.gang_port)
    assert [one.node for one in told.members] == ["gpu0", "gpu3", "gpu2"] and lost.name == "gpu1"
    assert (told.node, told.machine_rank) == ("gpu3", 1)


def test_what_the_job_says_of_survival_arrives(tmp_path: Path) -> None:
    more = (
        "restarts: 5\nmin_nodes: 2\nhang_after: 2min\nfirst_step_after: 1h\npatience: 90\nstagger_seconds: 1.5\n"
    )
    told = build(GPU_JOB + more, three_ssh(), tmp_path, preflight=False).head.assignment
    assert told.survival == assignment.Survival(5, 2, 120.0, 3600.0, 90.0, 1.5)
    assert told.env["CLUSTERFT_STAGGER"] == "1.5"
    assert not told.preflight and told.kind == "train" and not told.contained and told.lock_file


def test_more_nodes_than_there_are_cannot_be_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="min_nodes is 4, and the hostfile has 3 active nodes"):
        build(GPU_JOB + "min_nodes: 4\n", three_ssh(), tmp_path)


def test_a_python_that_the_node_must_find_brings_no_directory_into_its_path(tmp_path: Path) -> None:
    paths = [
        build(scenes.JOB, two_local(), tmp_path, python=python).head.env["PATH"].split(":")[0]
        for python in ("python3", "venv/bin/python", PYTHON)
    ]
    assert paths == ["/usr/local/sbin", "/usr/local/sbin", "/opt/clusterft/bin"]


def test_the_job_may_set_threads_and_any_variable_not_reserved(tmp_path: Path) -> None:
    job = scenes.JOB.replace("device: cpu", "device: cpu, threads: 7") + "env: {LANG: de_DE.UTF-8}\n"
    env = build(job, two_local(), tmp_path).head.assignment.env
    assert env["OMP_NUM_THREADS"] == "7" and env["LANG"] == "de_DE.UTF-8"


UNEVEN = scenes.survey(
    scenes.cluster("a slots=4\nb slots=2\n"),
    scenes.facts("a"),
    scenes.facts("b"),
    contacts={"a": "10.0.0.1", "b": "10.0.0.2"},
)


def test_unequal_slots_are_refused_where_the_launcher_cannot(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"unequal slots \(a 4, b 2\), which accelerate's launcher cannot"
    ) as caught:
        build(scenes.JOB, UNEVEN, tmp_path)
    assert caught.value.remedy.startswith("launcher: torchrun   or deepspeed can; or give all nodes slots=2")
    for launcher in ("torchrun", "deepspeed"):
        planned = build(f"{scenes.JOB}launcher: {launcher}\n", UNEVEN, tmp_path)
        assert planned.world_size == 6 and [node.first.first_rank for node in planned.nodes] == [0, 4]


def test_an_address_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    cluster = scenes.cluster("# two\nhere slots=1 transport=local\nrig slots=1\n")
    survey = scenes.survey(cluster, scenes.facts("here"), scenes.facts("rig"), contacts={"rig": "10.0.0.7"})
    with pytest.raises(UsageError, match="the address of here towards the other nodes is not known") as caught:
        build(scenes.JOB, survey, tmp_path)
    assert caught.value.where == "rack:2" and "addr=ADDRESS" in caught.value.remedy


@pytest.mark.parametrize("contacts", [{"rig": "10.0.0.7"}, {"rig": "10.0.0.7", "far": "127.0.0.1"}])
def test_a_node_behind_a_bastion_without_an_address_of_its_own_is_asked_for_it(contacts: dict[str, str]) -> None:
    survey = scenes.survey(
        scenes.cluster("rig slots=1\nfar slots=1\n"), scenes.facts("rig"), scenes.facts("far"), contacts=contacts
    )
    with pytest.raises(UsageError, match="the address of far towards the other nodes is not known") as caught:
        network.solve(survey)
    assert caught.value.where == "rack:2" and caught.value.remedy == "give it: far slots=1 addr=ADDRESS"


@given(st.integers(1024, 65000), st.frozensets(st.integers(0, 62)))
def test_the_port_is_the_first_free_one(first: int, taken: frozenset[int]) -> None:
    listening = frozenset(first + offset for offset in taken)
    port = network.free_port(first, listening)
    assert port not in listening and set(range(first, port)) <= listening


def test_no_free_port_and_unread_ports_are_told_apart() -> None:
    assert network.free_port(29500, None) == 29500
    assert network.free_port(29500, frozenset(range(29500, 29563))) == 29563
    with pytest.raises(UsageError, match="ports 29500 to 29563 are all in use"):
        network.free_port(29500, frozenset(range(29500, 29564)))
    with pytest.raises(UsageError, match="ports 65530 to 65535 are all in use"):
        network.free_port(65530, frozenset(range(65000, 65536)))
