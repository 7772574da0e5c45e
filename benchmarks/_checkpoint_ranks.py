"""One rank of benchmarks/checkpoint.py: trains a UNet of 100 M weights and saves it in two ways, in turn.

Prints, on rank 0, seconds of plain steps, of synchronous saves, and what a save in the background costs: the time
that save() blocks plus what the steps beside it take longer than plain ones, until the checkpoint is complete.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from clusterft_trainer import dist

PLACE = dist.settle()

import torch  # noqa: E402
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # noqa: E402

from clusterft_trainer.buckets import Bucket, Epochs, Position, Shape  # noqa: E402
from clusterft_trainer.build import start_engine  # noqa: E402
from clusterft_trainer.builtin import UNET  # noqa: E402
from clusterft_trainer.checkpoint import Identity, Keeper, State  # noqa: E402
from clusterft_trainer.checkpoint.keeper import Saving  # noqa: E402
from clusterft_trainer.config import TrainConfig  # noqa: E402
from clusterft_trainer.engine.base import Engine  # noqa: E402
from clusterft_trainer.model.sdxl import Conditioning, Denoiser  # noqa: E402

WIDTHS = (128, 256, 448)  # of SDXL's blocks: 101 M weights, 1.2 GB with AdamW's state


class Bench:
    """An engine that trains, and a keeper that saves it."""

    def __init__(self, kind: dict[str, Any], folder: Path) -> None:
        body = {
            "model": "-", "output": {"name": "x"}, "data": {"sources": [{"builtin": "shapes"}]},
            "learn": {"unet": {"rate": 1e-5}}, "precision": "fp32", "engine": kind, "steps": 1,
        }  # fmt: skip
        self.config = TrainConfig.model_validate(body)
        torch.manual_seed(0)
        heads = tuple(w // 64 for w in WIDTHS)
        unet = UNet2DConditionModel(
            **UNET | {"block_out_channels": WIDTHS, "attention_head_dim": heads, "norm_num_groups": 32}
        )
        self.engine: Engine = start_engine(self.config, PLACE, Denoiser(unet.train(), None, None))
        self.keeper = Keeper(folder, self.config, Identity(0, "", "", "", ""), PLACE)
        self.epochs = Epochs([Bucket(64, 64)] * 10**4, 0, Shape(1, 1, PLACE.world))
        self.steps = 0

    def step(self) -> float:
        """As the training loop does it, meeting included; its seconds."""
        began = time.monotonic()
        noise = torch.randn(1, 4, 16, 16)
        given = Conditioning(torch.zeros(1, 6), torch.randn(1, 77, 48), torch.randn(1, 77, 48), torch.randn(1, 48))
        with self.engine.micro(last=True):
            out = self.engine.forward(noise, torch.tensor([500]), given)
            self.engine.backward((out - noise).square().mean())
        self.engine.step()
        self.steps += 1
        (ready,) = dist.sum_all([self.keeper.ready])
        if ready == PLACE.world:
            self.keeper.advance()
        return time.monotonic() - began

    def save(self, *, wait: bool) -> float:
        """Seconds that it blocks."""
        dist.barrier()
        began = time.monotonic()
        state = State(self.steps, Position(0, self.steps))
        self.keeper.save(self.engine, None, Saving(state, self.epochs, ("rolling",), wait=wait))
        return time.monotonic() - began


def main(kind: str, rounds: int, folder: Path) -> None:
    """Alternate, and print medians and all samples."""
    dist.join(PLACE)
    bench = Bench({"kind": "ddp"} if kind == "ddp" else {"kind": "zero", "stage": 2}, folder)
    for _ in range(3):
        bench.step()
    bench.save(wait=True)  # makes the memory that is used again, and warms the disk
    plain, blocking, background, calls = [], [], [], []
    for _ in range(rounds):
        near = [bench.step() for _ in range(4)]
        blocking.append(bench.save(wait=True))
        near += [bench.step() for _ in range(4)]
        call = bench.save(wait=False)
        beside = []
        while bench.keeper._pending is not None:
            beside.append(bench.step())
        near += [bench.step() for _ in range(4)]
        usual = statistics.median(near)
        plain.append(usual)
        calls.append(call)
        background.append(call + sum(beside) - usual * len(beside))
    size = sum(p.stat().st_size for p in folder.glob("step-*/*.safetensors"))
    found = {"plain": plain, "blocking": blocking, "background": background, "calls": calls, "bytes": size}
    if PLACE.leads:
        print("RESULT " + json.dumps(found), flush=True)
    bench.keeper.close()
    dist.barrier()
    if PLACE.leads:
        shutil.rmtree(folder)


if __name__ == "__main__":
    import os

    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    os._exit(0)
