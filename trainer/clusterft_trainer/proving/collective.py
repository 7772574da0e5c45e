"""All-reduce as NCCL's own tests measure it: the size follows the link, warm-ups are dropped, a median counts.

Owns the stages by which one knows where a group hung: store (the rendezvous), group, first, measure.
"""

from __future__ import annotations

import statistics
import time
from datetime import timedelta
from typing import Any

from clusterft_trainer.proving.forks import Tell

_FIRST = 1 << 18  # bytes
_SECOND = 1 << 20
_PIECE = 0.4  # seconds that one all-reduce should take
_WHOLE = 3.0  # seconds of measuring
_FEWEST, _MOST = 3, 8  # repetitions


def run(given: dict[str, Any], tell: Tell) -> None:
    """One rank of one group."""
    import torch
    import torch.distributed as td

    rank, world, cuda = int(given["rank"]), int(given["world"]), bool(given["cuda"])
    if cuda:
        torch.cuda.set_device(int(given["card"]))
    join(given, tell)
    device = torch.device("cuda", int(given["card"])) if cuda else torch.device("cpu")
    tell({"stage": "first"})
    for _ in range(2):
        took(_FIRST, device)
    rate = _SECOND / max(took(_SECOND, device), 1e-6)
    plan = torch.zeros(2, dtype=torch.int64, device=device)
    if rank == 0:
        plan[0] = size(rate, int(given["most"]))
        plan[1] = repetitions(rate, int(plan[0]))
    td.broadcast(plan, 0)
    amount, times = int(plan[0]), int(plan[1])
    tell({"stage": "measure", "bytes": amount})
    took(amount, device)
    before = segments()
    seconds = [took(amount, device) for _ in range(times)]
    after = segments()
    sent = (
        None
        if before is None or after is None
        else [late - early for early, late in zip(before, after, strict=True)]
    )
    middle = statistics.median(seconds)
    tell(
        {
            "stage": "done",
            "bytes": amount,
            "world": world,
            "seconds": middle,
            "spread": (max(seconds) - min(seconds)) / middle,
            "segments": sent,
        }
    )


def join(given: dict[str, Any], tell: Tell) -> None:
    """Meet the others; torch gives up a little before this process is killed, so that it can say why."""
    import torch.distributed as td

    patience = timedelta(seconds=float(given["patience"]))
    rank, world = int(given["rank"]), int(given["world"])
    tell({"stage": "store"})
    store = td.TCPStore(given["address"], int(given["port"]), world, is_master=rank == 0, timeout=patience)
    tell({"stage": "group"})
    # As in training: objects and flags travel over gloo in both cases.
    backend = "cpu:gloo,cuda:nccl" if given["cuda"] else "gloo"
    td.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)


def took(amount: int, device: Any) -> float:
    """Seconds of one all-reduce of that many bytes, begun together."""
    import torch
    import torch.distributed as td

    data = torch.ones(amount // 4, dtype=torch.float32, device=device)
    meet(device)
    began = time.perf_counter()
    td.all_reduce(data)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def meet(device: Any) -> None:
    """Wait until every rank is here."""
    import torch
    import torch.distributed as td

    td.all_reduce(torch.ones(1, device=device))
    if device.type == "cuda":
        torch.cuda.synchronize()


def size(rate: float, most: int) -> int:
    """Bytes for one all-reduce on a link of that many bytes a second: a power of two."""
    wanted = min(max(rate * _PIECE, _SECOND), most)
    return 1 << (int(wanted).bit_length() - 1)


def repetitions(rate: float, amount: int) -> int:
    """So many that measuring ends soon."""
    return max(_FEWEST, min(_MOST, int(_WHOLE * rate / amount)))


def segments() -> tuple[int, int] | None:
    """TCP segments sent and sent again by this node so far."""
    try:
        with open("/proc/net/snmp", encoding="ascii") as file:
            rows = [line.split() for line in file if line.startswith("Tcp:")]
        found = dict(zip(rows[0], rows[1], strict=True))
        return int(found["OutSegs"]), int(found["RetransSegs"])
    except (OSError, ValueError, IndexError, KeyError):
        return None
