"""The process group and the device: the only module that knows how ranks meet.

Owns the environment variables of a training process, the rendezvous check and the few collectives
that the rest uses. Knows no model. Refuses to train in a smaller world than the
launcher announced: a rank that believes itself alone would train on its own and ruin the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from clusterft_trainer.errors import ConfigError, RunError, TrainerError

T = TypeVar("T")
# How long a rank waits for another: rank 0 may prepare data or write a large file meanwhile.
PATIENCE = timedelta(minutes=30)
# An accelerate YAML describes how to start ranks; what they compute is decided by the job alone.
_FOREIGN = ("ACCELERATE_DEEPSPEED_", "ACCELERATE_USE_", "ACCELERATE_DYNAMO_", "ACCELERATE_FP8_")
_FOREIGN_NAMES = (
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "ACCELERATE_GRADIENT_CLIPPING",
    "ACCELERATE_CONFIG_DS_FIELDS",
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands in the run."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    device: str  # "cpu" or "cuda:N"

    @property
    def leads(self) -> bool:
        """Whether this is global rank 0, the one that writes shared files."""
        return self.rank == 0


def settle() -> Place:
    """Read and complete the environment; must run before torch and deepspeed are first imported."""
    wanted = os.environ.get("CLUSTERFT_DEVICE", "auto")
    if wanted not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"CLUSTERFT_DEVICE={wanted} is unknown.", "Use auto, cpu or cuda.")
    for name in list(os.environ):
        if name.startswith(_FOREIGN) or name in _FOREIGN_NAMES:
            del os.environ[name]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    if wanted == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    threads = max(1, len(os.sched_getaffinity(0)) // local_world)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "CLUSTERFT_DEVICE=cuda, but torch sees no CUDA device.",
            "Check the driver and the container's GPU access, or set CLUSTERFT_DEVICE=cpu.",
        )
    place = Place(
        rank=int(os.environ.setdefault("RANK", "0")),
        world=int(os.environ.setdefault("WORLD_SIZE", "1")),
        local_rank=int(os.environ.setdefault("LOCAL_RANK", "0")),
        local_world=local_world,
        device=f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu",
    )
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(local_world))
    if place.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    return place


def join(place: Place) -> None:
    """Enter the process group, and believe only what it says about the size of the world."""
    import torch
    import torch.distributed as td

    # It keeps the process group that is current when it is first imported: later, that group would outlive its
    # end, and gloo's threads would abort a process that has done everything well.
    import torch.distributed.nn.functional

    if place.device != "cpu":
        if place.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"Slot {place.local_rank} has no GPU: torch sees {torch.cuda.device_count()}.",
                "Lower slots in the hostfile, or check which GPUs the container was given.",
                everywhere=False,
            )
        torch.cuda.set_device(place.local_rank)
    # Objects and flags travel over gloo in both cases, so that they never wait for a GPU stream.
    backend = "gloo" if place.device == "cpu" else "cpu:gloo,cuda:nccl"
    if place.world == 1 and "MASTER_PORT" not in os.environ:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = td.TCPStore("127.0.0.1", 0, 1, is_master=True)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port))
        td.init_process_group(backend, store=store, rank=0, world_size=1, timeout=PATIENCE)
    else:
        td.init_process_group(backend, timeout=PATIENCE)
    if td.get_world_size() != place.world or td.get_rank() != place.rank:
        raise RunError(
            "rendezvous",
            f"The launcher announced rank {place.rank} of {place.world}, the process group says "
            f"{td.get_rank()} of {td.get_world_size()}.",
            "Start every rank through the launcher, with one rendezvous address.",
            everywhere=False,
        )
    runs = sorted(set(gather(os.environ.get("CLUSTERFT_RUN", ""))))
    if len(runs) > 1:
        # Two runs that chose one port on one machine can meet; their ranks would stop and spoil each other.
        raise RunError(
            "rendezvous",
            f"Ranks of several runs met at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: "
            + ", ".join(runs),
            "Set port: in one of the jobs to another number, then start it again.",
        )


def sum_all(values: list[float]) -> list[float]:
    """Element-wise sum over all ranks, in float64 over gloo; also the step's meeting point."""
    import torch
    import torch.distributed as td

    total = torch.tensor(values, dtype=torch.float64)
    td.all_reduce(total)
    return [float(v) for v in total]


def barrier() -> None:
    """Wait until every rank is here; on the CPU, so that no GPU stream is held."""
    sum_all([0.0])


def leads() -> bool:
    """Whether this is rank 0 of the process group."""
    import torch.distributed as td

    return bool(td.get_rank() == 0)


def gather(item: T) -> list[T]:
    """The item of every rank, in rank order, on every rank."""
    import torch.distributed as td

    items: list[Any] = [None] * td.get_world_size()
    td.all_gather_object(items, item)
    return items


def agree(problem: TrainerError | None) -> None:
    """All ranks raise what the first of them has met, if any has, and know whose it was; all ranks call this."""
    for rank, told in enumerate(gather(problem)):
        if told is None:
            continue
        if not told.everywhere:  # else they have agreed on it before, and know whose it was
            told.everywhere, told.met_by = True, rank
        raise told


def together(action: Callable[[], T]) -> T:
    """Every rank does something by itself; if one of them fails, all of them do."""
    try:
        result = action()
    except TrainerError as error:
        agree(error)
        raise
    agree(None)
    return result


def on_lead(place: Place, action: Callable[[], T]) -> T:
    """Let rank 0 do something and give all ranks its result, or all of them its failure."""
    import torch.distributed as td

    outcome: list[Any] = [None, None]
    if place.leads:
        try:
            outcome[0] = action()
        except TrainerError as error:
            outcome[1] = error
    td.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        outcome[1].everywhere = True
        raise outcome[1]
    return outcome[0]
