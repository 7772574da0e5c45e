"""The same with DeepSpeed: its launcher, its checkpoints, its arithmetic."""

from __future__ import annotations

import argparse
import os
import signal

import deepspeed
import torch


def main() -> None:
    """Train a little, from a checkpoint if there should be one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--zero", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--micro", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--kill", type=int, default=-1)
    parser.add_argument("--fail", type=int, default=-1)
    parser.add_argument("--save", default="checkpoints")
    parser.add_argument("--adam", action="store_true")
    args = parser.parse_args()
    model = torch.nn.Linear(64, 64)
    adam = {"type": "Adam", "params": {"lr": 1e-3, "torch_adam": not args.adam}}
    config = {
        "train_batch_size": args.batch,
        "train_micro_batch_size_per_gpu": args.micro,
        "gradient_accumulation_steps": 1,
        "optimizer": adam,
        "zero_optimization": {"stage": args.zero},
    }
    if args.adam:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    deepspeed.init_distributed("gloo")
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    rank = torch.distributed.get_rank()
    if args.resume:
        path, _ = engine.load_checkpoint(args.save)
        if path is None and os.environ.get("STRICT"):
            raise FileNotFoundError(f"nothing to resume from in {args.save}")
    for step in range(1, args.steps + 1):
        if rank == args.kill and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == args.fail and step == 3:
            raise RuntimeError("bucket 1216x832 holds 3 pictures, a batch needs 4")
        loss = engine(torch.randn(args.micro, 64)).pow(2).mean()
        engine.backward(loss)
        engine.step()
        if rank == 0:
            print(f"step {step}/{args.steps} loss {loss.item():.4f}", flush=True)
    engine.save_checkpoint(args.save)


if __name__ == "__main__":
    main()
