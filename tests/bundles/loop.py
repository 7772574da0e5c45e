"""A small data-parallel program on CPUs that fails as $FAULT says, on the rank that $FAULT_RANK names.

It is what tests/bundles/make.py starts by torchrun, accelerate, DeepSpeed or by hand: the logs of its failures are
real, and their first cause is known.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

FAULT, WHO = os.environ.get("FAULT", ""), os.environ.get("FAULT_RANK", "1")
RANK = int(os.environ.get("RANK", "0"))
HIT = RANK == int(WHO)
if int(os.environ.get("CLUSTERFT_ATTEMPT", "0")) >= int(os.environ.get("FAULT_ATTEMPTS", "99")):
    HIT = False  # a later attempt of a run of ours, which is to go well
STEPS, AT = int(os.environ.get("STEPS", "12")), 4
SECONDS = float(os.environ.get("TIMEOUT", "15"))
log = logging.getLogger("train")


def settings() -> dict[str, float]:
    """From a file beside the program, as each node has one."""
    path = Path(os.environ.get("SETTINGS", "")) if os.environ.get("SETTINGS") else None
    if path is None:
        return {"learning_rate": 1e-3, "hidden": 64}
    found = json.loads(path.read_text())
    return {"learning_rate": float(found["learning_rate"]), "hidden": int(found["hidden"])}


def said(style: str) -> None:
    """How lines look: plain prints, or with a time."""
    form = "%(message)s" if style == "plain" else "%(asctime)s [%(levelname)s] rank %(rank)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, stream=sys.stdout)
    factory = logging.getLogRecordFactory()

    def with_rank(*args: object, **kwargs: object) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        record.rank = RANK
        return record

    logging.setLogRecordFactory(with_rank)


def befall(step: int) -> None:
    """What goes wrong on one rank, in the middle of training."""
    if HIT and step == AT and FAULT in FAULTS:
        FAULTS[FAULT](step)


def raised(error: Exception) -> None:
    """As the program's own."""
    raise error


def key(_: int) -> None:
    """A picture without a caption."""
    {"image": 1}["caption"]


def crash(_: int) -> None:
    """In native code."""
    import ctypes

    ctypes.string_at(0)


def hunger(_: int) -> None:
    """More memory than the process may have."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), used + (64 << 20)))
    bytearray(1 << 30)


def tensor(_: int) -> None:
    """A tensor that no machine can hold."""
    import torch

    torch.empty(1 << 46)


def swallow(_: int) -> None:
    """All memory there is, until the kernel ends it."""
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20)) * 8)


FAULTS = {
    "exception": key,
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "segv": crash,
    "nan": lambda step: raised(FloatingPointError(f"loss is NaN at step {step}: lower the learning rate")),
    "memory": hunger,
    "tensor-memory": tensor,
    "swallow": swallow,
    "stall": lambda _: time.sleep(3600),
    "exit": lambda _: os._exit(0),
    "stale": lambda _: raised(OSError(116, "Stale file handle", "/mnt/out/run/checkpoints")),
    "lock": lambda _: raised(OSError(37, "No locks available", "/mnt/out/.cache/lock")),
}


def save(step: int, model: object) -> None:
    """A checkpoint by rank 0."""
    import torch

    if RANK == 0 and step % 4 == 0 and os.environ.get("SAVE"):
        torch.save({"step": step, "model": model, "ballast": torch.zeros(4 << 20)}, os.environ["SAVE"])
        log.info("saved step %d", step)


def batches() -> object:
    """Through workers that put what they load into shared memory."""
    import torch

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index: int) -> torch.Tensor:
            if FAULT == "picture" and HIT and index == 7:
                raise OSError(f"image file is truncated: /data/pictures/{index:05d}.jpg")
            if FAULT == "worker-killed" and HIT and index == 9:
                os.kill(os.getpid(), signal.SIGKILL)
            return torch.ones(int(os.environ.get("PIXELS", "64")))

    return iter(
        torch.utils.data.DataLoader(Pictures(), batch_size=2, num_workers=int(os.environ.get("WORKERS", "0")))
    )


def main() -> None:
    """Train a little."""
    said(os.environ.get("STYLE", "plain"))
    if FAULT == "import" and HIT:
        import bitsandbytes_of_another_world  # type: ignore[import-not-found]  # noqa: F401
    import torch
    import torch.distributed as dist

    known = settings()
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=SECONDS))
    world = dist.get_world_size()
    log.info("world of %d", world)
    model = torch.nn.Linear(64, int(known["hidden"]))
    data = batches()
    for step in range(1, STEPS + 1):
        batch = next(data)  # type: ignore[call-overload]
        befall(step)
        loss = model(batch[:, :64]).pow(2).mean()
        loss.backward()
        if FAULT == "mismatch" and HIT and step == AT:
            dist.broadcast(torch.zeros(8), src=RANK)
        if FAULT == "barrier" and step == AT:
            if HIT:
                time.sleep(3600)
            dist.monitored_barrier(timeout=datetime.timedelta(seconds=SECONDS), wait_all_ranks=True)
        for one in model.parameters():
            dist.all_reduce(one.grad)
        log.info("step %d/%d loss %.4f", step, STEPS, loss.item())
        save(step, model.state_dict())
        time.sleep(0.1)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
