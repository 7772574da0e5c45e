"""Proves what a plan decides: golden plans of typical clusters, no secret in it, one YAML for all nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import scenes
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clusterft import plan
from clusterft.checks import Survey
from clusterft.errors import UsageError
from clusterft.plan import LaunchPlan, network
from clusterft.ui import text as views
from clusterft_trainer import assignment
from clusterft_trainer.config import TrainConfig

PYTHON = "/opt/clusterft/bin/python"
GPU_JOB = scenes.JOB.replace("device: cpu", "device: cuda").replace("builtin:tiny", "/models/sdxl")


def build(text: str, survey: Survey, directory: Path, python: str = PYTHON) -> LaunchPlan:
    """The plan of a job on a survey."""
    roots = {node.name: PurePosixPath("/home/me/.clusterft") for node in survey.cluster.active}
    request = plan.Request("lighthouse-20261120-1432-7f3a", roots, python)
    return plan.build(scenes.job(text, directory), survey, request)


def two_local() -> Survey:
    """This machine twice, as in the demo."""
    cluster = scenes.cluster("left slots=1 transport=local\nright slots=1 transport=local\n")
    same = {"boot_id": "one", "cores": 6, "listening": frozenset({29500, 29501})}
    return scenes.survey(cluster, scenes.facts("left", **same), scenes.facts("right", **same))


def three_ssh() -> Survey:
    """One node with addr= on a fast network, two that the routes decide, and a spare."""
    cluster = scenes.cluster(
        "gpu0 slots=8\ngpu1 slots=8 addr=192.168.100.12\ngpu2 slots=8\ngpu3 slots=8 spare=true\n"
    )
    contacts = {f"gpu{i}": f"10.0.0.1{i}" for i in range(3)}
    known = [
        scenes.facts(
            name,
            cores=64,
            routes=tuple(
                (peer, "lo" if peer == own else "enp65s0" if name == "gpu1" else "eno1", own)
                for peer in contacts.values()
            ),
            controller_route=("wlan0", "172.16.0.9"),
        )
        for name, own in contacts.items()
    ]
    return scenes.survey(cluster, *known, contacts=contacts)


def mixed() -> Survey:
    """A controller that trains too, beside a node over SSH."""
    cluster = scenes.cluster("here slots=2 transport=local\nrig slots=2 gpus=0,3\n")
    here = scenes.facts("here", routes=(("10.0.0.7", "eth1", "10.0.0.2"),))
    rig = scenes.facts("rig", routes=(("10.0.0.7", "lo", "10.0.0.7"),), controller_route=("eth0", "10.0.0.7"))
    return scenes.survey(cluster, here, rig, contacts={"rig": "10.0.0.7"})


CASES: Mapping[str, tuple[Survey, str]] = {
    "two_local": (two_local(), scenes.JOB),
    "three_ssh": (three_ssh(), GPU_JOB + "env: {NCCL_DEBUG: WARN}\nsecrets: [HF_TOKEN]\n"),
    "mixed_torchrun": (mixed(), GPU_JOB + "launcher: torchrun\nport: 4000\n"),
    "ddp_fp32": (two_local(), scenes.JOB + "  engine: {kind: ddp}\n  precision: fp32\n"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_as_it_was_decided(name: str, tmp_path: Path) -> None:
    survey, job = CASES[name]
    body = build(job, survey, tmp_path).to_dict()
    scenes.same_as_golden(json.dumps(body, indent=1) + "\n", scenes.GOLDEN / "plan" / f"{name}.json")


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
        assert set(files) == {"assignment.json", "config.json", "hostfile", "accelerate.yaml"}
        assert assignment.parse(files["assignment.json"].text) == node.assignment
        assert files["assignment.json"].mode == 0o600
        assert TrainConfig.model_validate_json(files["config.json"].text).learn.unet is not None
        assert files["hostfile"].text == "gpu0 slots=8\ngpu1 slots=8\ngpu2 slots=8\n"
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
    assert "  secrets HF_TOKEN=***" in everything


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
    return [file.text for node in planned.nodes for file in node.files if file.path.name == "accelerate.yaml"]


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
        argv = node.assignment.argv
        assert argv[:3] == (PYTHON, "-m", "torch.distributed.run")
        assert argv[3:8] == (
            "--nnodes=2",
            "--nproc-per-node=2",
            f"--node-rank={rank}",
            "--master-addr=10.0.0.2",
            "--master-port=29500",
        )
        assert argv[9:12] == ("-m", "clusterft_trainer", "train")
        assert "accelerate.yaml" not in {file.path.name for file in node.files}


def test_a_python_that_the_node_must_find_brings_no_directory_into_its_path(tmp_path: Path) -> None:
    paths = [
        build(scenes.JOB, two_local(), tmp_path, python).head.assignment.env["PATH"].split(":")[0]
        for python in ("python3", "venv/bin/python", PYTHON)
    ]
    assert paths == ["/usr/local/sbin", "/usr/local/sbin", "/opt/clusterft/bin"]


def test_the_job_may_set_threads_and_any_variable_not_reserved(tmp_path: Path) -> None:
    job = scenes.JOB.replace("device: cpu", "device: cpu, threads: 7") + "env: {LANG: de_DE.UTF-8}\n"
    env = build(job, two_local(), tmp_path).head.assignment.env
    assert env["OMP_NUM_THREADS"] == "7" and env["LANG"] == "de_DE.UTF-8"


def test_unequal_slots_are_refused_with_the_number_to_write(tmp_path: Path) -> None:
    survey = scenes.survey(scenes.cluster("a slots=4\nb slots=2\n"), scenes.facts("a"), scenes.facts("b"))
    with pytest.raises(UsageError, match=r"unequal slots \(a 4, b 2\)") as caught:
        build(scenes.JOB, survey, tmp_path)
    assert caught.value.remedy == "give all nodes slots=2, and gpus= where a node has more cards"


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
