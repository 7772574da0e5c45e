"""A checkpoint of DeepSpeed's own, saved by all nodes through the shared directory and read back.

Owns one directory below SHARED/.clusterft, which every rank takes away as it sees it. Tells what each rank sees of
what the others wrote, before DeepSpeed is asked to load it: without its `latest` it starts from step 0 and says
little. Refuses to make the shared directory itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

from clusterft_trainer.proving import collective
from clusterft_trainer.proving.forks import Tell, wrong

_TAG = "proof"
_SEEN = 15.0  # seconds that an NFS client may go on believing that a file is not there


def run(given: dict[str, Any], tell: Tell) -> None:
    """One rank; every step is agreed on, so that one that fails leaves nobody waiting."""
    import torch
    import torch.distributed as td

    place = Path(given["litter"])
    # DeepSpeed asks the environment for what it could know from the process group.
    named = {"RANK": "rank", "WORLD_SIZE": "world", "MASTER_ADDR": "address", "MASTER_PORT": "port"}
    os.environ.update({name: str(given[key]) for name, key in named.items()} | {"LOCAL_RANK": str(given["card"])})
    if not given["cuda"]:
        os.environ["DS_ACCELERATOR"] = "cpu"
    else:
        torch.cuda.set_device(int(given["card"]))
    collective.join(given, tell)
    tell({"stage": "reach"})
    made = _agreed(lambda: _reach(place, first=int(given["rank"]) == 0), tell)
    if made is None:
        return
    tell({"stage": "start"})
    engine = _engine(bool(given["cuda"]), int(given["card"]))
    tell({"stage": "save"})
    _save(engine, place, tell)
    tell({"stage": "see"})
    missing = _unseen(place)
    tell({"stage": "seen", "missing": missing, "there": _listing(place)})
    views: list[Any] = [None] * td.get_world_size()
    td.all_gather_object(views, missing)
    if not any(views):
        tell({"stage": "load"})
        tell({"stage": "done", "same": _came_back(engine, place)})
    # The others may still be reading. Whoever fails waits for nobody, and takes nothing from under them: what it
    # leaves is swept when all have ended.
    collective.meet(torch.device("cpu"))
    sweep({"path": str(place)}, lambda _: None)


def sweep(given: dict[str, Any], tell: Tell) -> None:
    """Take the directory away, and the one above if it is empty and may be ours."""
    place = Path(given["path"])
    for _ in range(3):  # another rank may be at it
        shutil.rmtree(place, ignore_errors=True)
        if not place.exists():
            break
        time.sleep(0.1)
    with contextlib.suppress(OSError):
        place.parent.rmdir()
    tell({"stage": "done", "left": place.exists()})


def _agreed(step: Any, tell: Tell) -> Any:
    """Everybody's outcome of a step; None if it failed anywhere, and whose it was has told why."""
    import torch.distributed as td

    outcome, told = None, None
    try:
        outcome = step()
    except OSError as error:
        told = wrong(error)
        tell(told)
    all_told: list[Any] = [None] * td.get_world_size()
    td.all_gather_object(all_told, told)
    return None if any(all_told) else outcome


def _reach(place: Path, *, first: bool) -> bool:
    shared = place.parent.parent
    os.listdir(shared)
    if first:
        place.parent.mkdir(exist_ok=True)
        place.mkdir()
    return True


def _engine(cuda: bool, card: int) -> Any:
    """ZeRO-2 over two small layers, one step of which has been made."""
    import torch

    from clusterft_trainer import imports

    deepspeed = imports.deepspeed()
    if not cuda:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled on first use
    deepspeed.init_distributed("nccl" if cuda else "gloo", auto_mpi_discovery=False)
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Linear(256, 8))
    if cuda:
        model.to(f"cuda:{card}")
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1 << 20, "allgather_bucket_size": 1 << 20},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 40,
    }
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        config=settings,
        dist_init_required=False,
    )
    device = next(model.parameters()).device
    engine.backward(engine(torch.ones(1, 64, device=device)).square().mean())
    engine.step()
    return engine


def _save(engine: Any, place: Path, tell: Tell) -> None:
    """torch says of a disk that is full that it found itself at another place in the file than it thought."""
    try:
        engine.save_checkpoint(str(place), tag=_TAG)
    except Exception as error:
        free: dict[str, int] = {}
        with contextlib.suppress(OSError):  # of a share that is stale nothing can be told, and the error counts
            room = os.statvfs(place)
            free["free"] = room.f_bavail * room.f_frsize
        tell({**wrong(error), **free})
        raise


def _unseen(place: Path) -> list[str]:
    """The files of this checkpoint that are not seen here, once an NFS client had its time."""
    import torch.distributed as td

    mine = _listing(place)
    views: list[Any] = [None] * td.get_world_size()
    td.all_gather_object(views, mine)
    wanted = {name for view in views for name in view}
    until = time.monotonic() + _SEEN
    while (missing := sorted(wanted - set(_listing(place)))) and time.monotonic() < until:
        time.sleep(0.5)
    return missing


def _listing(place: Path) -> list[str]:
    """What lies there, by listing each directory: that also makes an NFS client look again."""
    found: list[str] = []
    for folder, _, files in os.walk(place):
        found += [str(Path(folder, name).relative_to(place)) for name in files]
    return sorted(found)


def _came_back(engine: Any, place: Path) -> bool:
    """Whether the weights are again what they were when they were saved."""
    import torch

    weights = list(engine.module.parameters())
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.zero_()
    loaded, _ = engine.load_checkpoint(str(place))
    if loaded is None:
        raise FileNotFoundError(2, "DeepSpeed found nothing to load", str(place / "latest"))
    return all(torch.equal(one, other.detach()) for one, other in zip(before, weights, strict=True))
