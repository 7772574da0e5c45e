"""What a rank owns of the trained weights, and how owners put whole tensors together.

Every engine spreads weights in its own way: copies, slices of a flattened group, rows. All of them come down to
one picture: each trained tensor, flattened, is cut into pieces, and each piece belongs to one rank. Checkpoints,
the running mean and exports are written against that picture alone, so they know no engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as td

_CHUNK = 16 << 20  # elements that travel at once: bounds the memory of putting tensors together


@dataclass(slots=True)
class Piece:
    """A run of elements of one flattened tensor; the views are live."""

    name: str  # of the weight, as the Denoiser calls it
    shape: tuple[int, ...]  # of the whole weight
    offset: int  # first element, in the flattened weight
    weight: torch.Tensor  # 1-D; the full-precision original where the engine keeps one
    states: dict[str, torch.Tensor] = field(default_factory=dict)  # 1-D, an element for each of the weight

    @property
    def end(self) -> int:
        """One behind the last element."""
        return self.offset + self.weight.numel()


def slice_of(numel: int, rank: int, world: int) -> tuple[int, int]:
    """The part of a tensor that a rank answers for where all ranks hold all of it."""
    return numel * rank // world, numel * (rank + 1) // world


Part = tuple[str, int, torch.Tensor]  # name, offset, 1-D values


def assemble(parts: Iterable[Part], shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Whole float32 tensors on rank 0's host memory, from the parts of all ranks; empty on the others.

    A collective: over the host network, since one GPU may not hold what all hold together.
    """
    mine = list(parts)
    plans: list[list[tuple[str, int, int]]] = [[] for _ in range(td.get_world_size())]
    td.all_gather_object(plans, [(name, offset, values.numel()) for name, offset, values in mine])
    rank, whole = td.get_rank(), {}
    if rank == 0:
        whole = {name: torch.empty(shape, dtype=torch.float32).flatten() for name, shape in shapes.items()}
    for source, plan in enumerate(plans):
        if source == 0:
            if rank == 0:
                for name, offset, values in mine:
                    whole[name][offset : offset + values.numel()].copy_(values)
        elif rank == source:
            for chunk in _chunks(plan):
                td.send(torch.cat([mine[i][2][a:b].to("cpu", torch.float32) for i, a, b in chunk]), 0)
        elif rank == 0:
            _receive(plan, source, whole)
    return {name: values.view(shapes[name]) for name, values in whole.items()}


def _receive(plan: list[tuple[str, int, int]], source: int, whole: dict[str, torch.Tensor]) -> None:
    for chunk in _chunks(plan):
        buffer = torch.empty(sum(b - a for _, a, b in chunk), dtype=torch.float32)
        td.recv(buffer, source)
        at = 0
        for index, a, b in chunk:
            name, offset, _ = plan[index]
            whole[name][offset + a : offset + b].copy_(buffer[at : at + b - a])
            at += b - a


def _chunks(plan: list[tuple[str, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Cuts (index, first, end) of the parts, so that each group has at most _CHUNK elements."""
    group: list[tuple[int, int, int]] = []
    room = _CHUNK
    for index, (_, _, numel) in enumerate(plan):
        at = 0
        while at < numel:
            take = min(room, numel - at)
            group.append((index, at, at + take))
            at, room = at + take, room - take
            if room == 0:
                yield group
                group, room = [], _CHUNK
    if group:
        yield group


def spread(slices: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> None:
    """Give every rank every rank's slice (slice_of) of each weight; a collective over the weights' own device."""
    world = td.get_world_size()
    if world == 1:
        for name, weight in weights.items():
            weight.view(-1).copy_(slices[name])
        return
    for name, weight in weights.items():
        flat = weight.view(-1)
        for rank in range(world):
            first, end = slice_of(flat.numel(), rank, world)
            if first == end:
                continue
            if rank == td.get_rank():
                flat[first:end].copy_(slices[name])
            td.broadcast(flat[first:end], rank)


def device_peak(device: str) -> float:
    """Most memory that this process has held so far, in bytes: the card's, or the host's without one."""
    if device != "cpu":
        return float(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
