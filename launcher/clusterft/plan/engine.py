"""What the launcher inside a node is given: accelerate's YAML, torchrun's or deepspeed's arguments. Pure.

Each only starts the ranks. What they compute, and with which engine, the trainer reads from the job alone; the
YAML says the same, so that one who reads it is told the truth. What only an attempt knows (how many nodes, where
they meet) stands here as a placeholder of `assignment.Term`.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from clusterft.errors import UsageError
from clusterft.hosts import Node
from clusterft.spec import JobSpec
from clusterft_trainer.config import Zero

_NUMBERS = ("machine_rank", "main_process_port", "num_machines", "num_processes")


@dataclass(frozen=True, slots=True)
class Seat:
    """One node's place, as far as its launcher must know it before there is an attempt."""

    run: str
    slots: int
    address: str  # its own, as the others know it
    head: bool


def fits(spec: JobSpec, nodes: tuple[Node, ...], where: str) -> None:
    """UsageError when this launcher cannot start ranks on these nodes."""
    counts = {node.slots for node in nodes}
    if len(counts) > 1 and spec.launcher == "accelerate":
        listed = ", ".join(f"{node.name} {node.slots}" for node in nodes)
        raise UsageError(
            f"the nodes have unequal slots ({listed}), which accelerate's launcher cannot do",
            where=where,
            remedy="launcher: torchrun   or deepspeed can; "
            f"or give all nodes slots={min(counts)}, and gpus= where a node has more cards",
        )
    for node in nodes:
        # It numbers the cards 0 to N-1 whatever is visible; a container sees none but its own.
        if spec.launcher == "deepspeed" and spec.runtime == "process" and not _first_cards(node):
            raise UsageError(
                f"deepspeed's launcher takes the first cards of {node.name}, not gpus={','.join(node.gpus)}",
                where=f"{where}:{node.line}",
                remedy="runtime: docker   gives it these cards alone; or launcher: torchrun",
            )


def _first_cards(node: Node) -> bool:
    return node.gpus in ((), tuple(str(card) for card in range(node.slots)))


def files(spec: JobSpec) -> dict[str, str]:
    """What is written into @HERE@ for each attempt: name -> text."""
    written = {"hostfile": "@HOSTFILE@"}
    if spec.launcher == "accelerate":
        written["accelerate.yaml"] = accelerate_yaml(spec)
    return written


def accelerate_yaml(spec: JobSpec) -> str:
    """The configuration file; the same on all nodes but for what the attempt fills in."""
    engine = spec.train.engine if spec.train else None
    precision = spec.train.precision if spec.train else "fp32"
    config: dict[str, object] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        # Also on CPUs: accelerate's CPU path would start one process only, whatever num_processes says. Also for
        # FSDP2, which the trainer sets up itself: all that a launcher has to do is to start the ranks.
        "distributed_type": "DEEPSPEED" if isinstance(engine, Zero) else "MULTI_GPU",
        "downcast_bf16": "no",
        "enable_cpu_affinity": False,
        "machine_rank": "@MACHINE_RANK@",
        "main_process_ip": "@MASTER_ADDR@",
        "main_process_port": "@MASTER_PORT@",
        "main_training_function": "main",
        "mixed_precision": "no" if precision == "fp32" else precision,
        "num_machines": "@MACHINES@",
        "num_processes": "@WORLD@",  # accelerate counts all machines' processes
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
    }
    if spec.train and isinstance(engine, Zero):
        config["deepspeed_config"] = {
            "deepspeed_multinode_launcher": "standard",
            "gradient_accumulation_steps": spec.train.batch.accumulate,
            "offload_optimizer_device": "cpu" if engine.offload == "optimizer" else "none",
            "offload_param_device": "none",
            "zero3_init_flag": False,
            "zero_stage": engine.stage,
        }
    text = yaml.safe_dump(config, sort_keys=True)
    for key in _NUMBERS:  # a number in quotes would be a text
        text = text.replace(f"{key}: '{config[key]}'", f"{key}: {config[key]}")
    return text


def command(spec: JobSpec, seat: Seat, python: str) -> tuple[str, ...]:
    """The argv that starts one node's ranks, up to the module they run."""
    if spec.launcher == "accelerate":
        config, logs = "@HERE@/accelerate.yaml", "@HERE@/elastic"
        return (python, "-m", "accelerate.commands.launch", "--config_file", config, "--log_dir", logs, "-m")
    if spec.launcher == "deepspeed":
        return (
            python,
            "-m",
            "deepspeed.launcher.runner",
            "--no_ssh",
            "--hostfile=@HERE@/hostfile",
            "--node_rank=@MACHINE_RANK@",
            "--master_addr=@MASTER_ADDR@",
            "--master_port=@MASTER_PORT@",
            "--module",
            # A script gets --local_rank=N before its own arguments, as deepspeed gives it to any.
            *(("--no_local_rank",) if spec.train else ()),
        )
    # Without a directory for its logs torch leaves one in /tmp for every run.
    ranks = (f"--nproc-per-node={seat.slots}", "--log-dir=@HERE@/elastic", "-m")
    return (python, "-m", "torch.distributed.run", "--nnodes=@MACHINES@", *_meeting(spec, seat), *ranks)


def _meeting(spec: JobSpec, seat: Seat) -> tuple[str, ...]:
    """How torchrun's agents find each other."""
    if spec.rendezvous == "static":
        return (
            "--node-rank=@MACHINE_RANK@",
            "--master-addr=@MASTER_ADDR@",
            "--master-port=@MASTER_PORT@",
        )
    head = "[@MASTER_ADDR@]" if ":" in seat.address else "@MASTER_ADDR@"
    return (
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={head}:@MASTER_PORT@",
        # An agent left over from an earlier attempt must not join this one.
        f"--rdzv-id={seat.run}-@ATTEMPT@",
        # Without these torch asks its resolver, which on many machines says 127.0.1.1 or a name no other knows.
        f"--rdzv-conf=is_host={int(seat.head)}",
        f"--local-addr={seat.address}",
        f"--max-restarts={spec.restarts}",
    )


def environment(spec: JobSpec, slots: int) -> dict[str, str]:
    """What the launchers themselves read."""
    env = {
        # What lies in the directory where the ranks start must not become part of a launcher.
        "PYTHONSAFEPATH": "1",
        "LOCAL_WORLD_SIZE": str(slots),  # deepspeed's launcher does not say it
        # A .deepspeed_env in a home or working directory must not alter a run; a relative name is sought there.
        "DS_ENV_FILE": "/dev/null",
    }
    if spec.rendezvous == "elastic":
        # Or the nodes look for each other under different numbers of restarts in one store, for ever.
        env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return env
