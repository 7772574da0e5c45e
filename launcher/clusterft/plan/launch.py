"""LaunchPlan: everything that will be put on each node and started there, decided before anything is touched.

Pure: no clock, no randomness, no environment; what depends on those comes in through Request. Holds the names of
secrets, never their values.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from clusterft.checks import Survey
from clusterft.errors import UsageError
from clusterft.hosts import Node, deepspeed_hostfile
from clusterft.places import NodePlaces, RunPlaces
from clusterft.plan import engine, network
from clusterft.spec import JobSpec
from clusterft_trainer.assignment import Assignment

_ATTEMPT = 0  # the first; restarts count up from it


@dataclass(frozen=True, slots=True)
class Request:
    """What a plan is made from, beside the job and the survey."""

    run: str
    roots: dict[str, PurePosixPath]  # node -> its ~/.clusterft, absolute
    python: str


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to be written on a node before the start."""

    path: PurePosixPath
    text: str
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node's part."""

    node: Node
    machine_rank: int
    address: str
    interface: str | None
    python: str
    directory: PurePosixPath  # of this run on this node
    files: tuple[PlannedFile, ...]
    assignment: Assignment

    def supervisor(self, verb: str) -> tuple[str, ...]:
        """The command that starts, follows or stops this node's part."""
        # -P: a json.py that lies in the directory of whoever calls must not become part of the supervisor.
        return (self.python, "-P", "-m", "clusterft_trainer.supervisor", verb, str(self.directory))


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """The whole start of one run."""

    run: str
    cluster: str
    runtime: str
    launcher: str
    address: str
    port: int
    world_size: int
    places: RunPlaces
    secrets: tuple[str, ...]
    nodes: tuple[NodePlan, ...]

    @property
    def head(self) -> NodePlan:
        """The node of rank 0."""
        return self.nodes[0]

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `--dry-run --json`, and the plan inside run.json."""
        return {
            "run": self.run,
            "cluster": self.cluster,
            "runtime": self.runtime,
            "launcher": self.launcher,
            "master": {"address": self.address, "port": self.port},
            "world_size": self.world_size,
            "run_dir": str(self.places.dir),
            "secrets": dict.fromkeys(self.secrets, "***"),
            "nodes": [_node_dict(node) for node in self.nodes],
        }


def _node_dict(node: NodePlan) -> dict[str, Any]:
    return {
        "node": node.node.name,
        "machine_rank": node.machine_rank,
        "transport": node.node.transport,
        "address": node.address,
        "interface": node.interface,
        "directory": str(node.directory),
        "argv": list(node.assignment.argv),
        "env": dict(node.assignment.env),
        "files": {str(file.path): file.text for file in node.files},
    }


def build(spec: JobSpec, survey: Survey, request: Request) -> LaunchPlan:
    """Decide the start of one run; UsageError when the job cannot run on these nodes."""
    nodes = survey.cluster.active
    slots = _equal_slots(nodes, survey)
    addresses = network.solve(survey)
    head = nodes[0]
    port = network.free_port(spec.port, survey.facts[head.name].listening)
    meeting = engine.Rendezvous(addresses[head.name].ip, port, len(nodes), slots)
    places = RunPlaces(PurePosixPath(spec.shared), request.run)
    return LaunchPlan(
        run=request.run,
        cluster=survey.cluster.name,
        runtime=spec.runtime,
        launcher=spec.launcher,
        address=meeting.address,
        port=port,
        world_size=len(nodes) * slots,
        places=places,
        secrets=spec.secrets,
        nodes=tuple(
            _node_plan(spec, survey, request, meeting, rank, addresses[node.name])
            for rank, node in enumerate(nodes)
        ),
    )


def _equal_slots(nodes: tuple[Node, ...], survey: Survey) -> int:
    counts = {node.slots for node in nodes}
    if len(counts) > 1:
        listed = ", ".join(f"{node.name} {node.slots}" for node in nodes)
        raise UsageError(
            f"the nodes have unequal slots ({listed})",
            where=str(survey.cluster.path),
            remedy=f"give all nodes slots={min(counts)}, and gpus= where a node has more cards",
        )
    return counts.pop()


def _node_plan(
    spec: JobSpec,
    survey: Survey,
    request: Request,
    meeting: engine.Rendezvous,
    rank: int,
    address: network.Address,
) -> NodePlan:
    node = survey.cluster.active[rank]
    places = NodePlaces(request.roots[node.name], survey.cluster.name, node.name)
    run = RunPlaces(PurePosixPath(spec.shared), request.run)
    directory = places.run(request.run)
    launch = engine.command(spec, meeting, rank, request.python, str(directory))
    assignment = Assignment(
        run=request.run,
        cluster=survey.cluster.name,
        node=node.name,
        machine_rank=rank,
        machines=meeting.machines,
        slots=meeting.slots,
        attempt=_ATTEMPT,
        argv=(*launch, "clusterft_trainer", "train", f"{directory}/config.json", "--run-dir", str(run.dir)),
        env=_environment(spec, survey, request, meeting, node, address),
        work_dir=str(directory),
        log_dir=str(directory / "logs" / f"attempt-{_ATTEMPT}"),
        mirror_dir=str(run.logs(_ATTEMPT, node.name)),
        events_file=str(run.events(node.name)),
        lock_file=str(places.lock),
        secrets_file=str(directory / "secrets.json") if spec.secrets else None,
    )
    files = [
        PlannedFile(directory / "assignment.json", assignment.to_json(), 0o600),
        PlannedFile(directory / "config.json", json.dumps(spec.train.model_dump(mode="json"), indent=2) + "\n"),
        PlannedFile(directory / "hostfile", deepspeed_hostfile(survey.cluster.active)),
    ]
    if spec.launcher == "accelerate":
        text = engine.accelerate_yaml(spec, meeting, rank)
        files.append(PlannedFile(directory / "accelerate.yaml", text))
    return NodePlan(node, rank, address.ip, address.interface, request.python, directory, tuple(files), assignment)


def _environment(
    spec: JobSpec,
    survey: Survey,
    request: Request,
    meeting: engine.Rendezvous,
    node: Node,
    address: network.Address,
) -> dict[str, str]:
    """The whole environment of a rank: nothing is inherited, so a stray variable on a node changes nothing."""
    facts = survey.facts[node.name]
    places = NodePlaces(request.roots[node.name], survey.cluster.name, node.name)
    python = PurePosixPath(request.python)
    first = f"{python.parent}:" if python.is_absolute() else ""
    env = {
        "PATH": f"{first}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": facts.home or "/",
        "USER": facts.user or "",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        # A private cache: a default_config.yaml of the user's own must not alter the run.
        "HF_HOME": str(places.base / "cache" / "huggingface"),
        # Its vocabulary files may be those that an earlier download left in the user's cache.
        "HF_HUB_CACHE": str(PurePosixPath(facts.home or "/") / ".cache" / "huggingface" / "hub"),
        "HF_HUB_OFFLINE": "1",
        "TRITON_CACHE_DIR": str(places.base / "cache" / "triton"),
        "OMP_NUM_THREADS": str(_threads(spec, survey, node)),
        "MASTER_ADDR": meeting.address,
        "MASTER_PORT": str(meeting.port),
        "CLUSTERFT_RUN": request.run,
        "CLUSTERFT_RUN_DIR": str(PurePosixPath(spec.shared) / request.run),
        "CLUSTERFT_MACHINE_RANK": str(survey.cluster.active.index(node)),
        "CLUSTERFT_DEVICE": spec.resources.device,
    }
    if spec.resources.device == "cpu":
        env |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    elif node.gpus:
        # CUDA's own order is fastest first; card numbers in a hostfile are nvidia-smi's, by PCI bus.
        env |= {"CUDA_VISIBLE_DEVICES": ",".join(node.gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if address.interface:
        env |= {"NCCL_SOCKET_IFNAME": f"={address.interface}", "GLOO_SOCKET_IFNAME": address.interface}
    return env | spec.env


def _threads(spec: JobSpec, survey: Survey, node: Node) -> int:
    """A fair share of the machine's cores; nodes that are one machine share them too."""
    if spec.resources.threads:
        return spec.resources.threads
    facts = survey.facts[node.name]
    same = [n for n in survey.cluster.active if survey.facts[n.name].boot_id == facts.boot_id]
    return max(1, (facts.cores or 1) // sum(n.slots for n in same))
