"""What the launcher inside a node is given: accelerate's YAML or torchrun's arguments. Pure.

Either only starts the ranks. What they compute, and with which engine, the trainer reads from the job alone; the
YAML says the same, so that one who reads it is told the truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from clusterft.spec import JobSpec
from clusterft_trainer.config import Zero


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where all machine ranks meet, and how many they are."""

    address: str
    port: int
    machines: int
    slots: int  # on each machine


def accelerate_yaml(spec: JobSpec, meeting: Rendezvous, machine_rank: int) -> str:
    """The configuration file of one node; the same for all nodes but for machine_rank."""
    engine = spec.train.engine
    config: dict[str, object] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        # Also on CPUs: accelerate's CPU path would start one process only, whatever num_processes says. Also for
        # FSDP2, which the trainer sets up itself: all that a launcher has to do is to start the ranks.
        "distributed_type": "DEEPSPEED" if isinstance(engine, Zero) else "MULTI_GPU",
        "downcast_bf16": "no",
        "enable_cpu_affinity": False,
        "machine_rank": machine_rank,
        "main_process_ip": meeting.address,
        "main_process_port": meeting.port,
        "main_training_function": "main",
        "mixed_precision": "no" if spec.train.precision == "fp32" else spec.train.precision,
        "num_machines": meeting.machines,
        "num_processes": meeting.machines * meeting.slots,  # accelerate counts all machines' processes
        "rdzv_backend": spec.rendezvous,
        "same_network": True,
        "use_cpu": False,
    }
    if isinstance(engine, Zero):
        config["deepspeed_config"] = {
            "deepspeed_multinode_launcher": "standard",
            "gradient_accumulation_steps": spec.train.batch.accumulate,
            "offload_optimizer_device": "cpu" if engine.offload == "optimizer" else "none",
            "offload_param_device": "none",
            "zero3_init_flag": False,
            "zero_stage": engine.stage,
        }
    return yaml.safe_dump(config, sort_keys=True)


def command(spec: JobSpec, meeting: Rendezvous, machine_rank: int, python: str, directory: str) -> tuple[str, ...]:
    """The argv that starts one node's ranks, up to the module they run."""
    if spec.launcher == "accelerate":
        config, logs = f"{directory}/accelerate.yaml", f"{directory}/elastic"
        return (python, "-m", "accelerate.commands.launch", "--config_file", config, "--log_dir", logs, "-m")
    return (
        python,
        "-m",
        "torch.distributed.run",
        f"--nnodes={meeting.machines}",
        f"--nproc-per-node={meeting.slots}",
        f"--node-rank={machine_rank}",
        f"--master-addr={meeting.address}",
        f"--master-port={meeting.port}",
        f"--log-dir={directory}/elastic",  # without it torch leaves a directory in /tmp for every run
        "-m",
    )
