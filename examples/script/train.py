"""A DeepSpeed program as people have them: started once for each slot, by `deepspeed` or by `clusterft train`.

A little network learns a formula. Nothing here is clusterft's: what makes the program survive is that it saves,
that it looks for what it has saved, and that its data follows from the step. Each such place says so.
"""

import argparse
import json
import os
import signal
import time
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from model import MODELS

SEEN = 8  # numbers that the networks see; they answer with one


def arguments() -> argparse.Namespace:
    """The command line; --local_rank comes from DeepSpeed's launcher."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=sorted(MODELS), default="narrow")
    parser.add_argument("--save_path", default="checkpoints", help="relative: below the run's own directory")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--save_every", type=int, default=20, help="steps")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between steps, to have time to look")
    parser.add_argument("--local_rank", type=int, default=0)
    return deepspeed.add_config_arguments(parser).parse_args()


class Stop:
    """SIGTERM asks for a last checkpoint; the ranks hear it at different steps, so they agree on one."""

    def __init__(self, device: torch.device) -> None:
        self._asked = torch.zeros(1, device=device)
        signal.signal(signal.SIGTERM, lambda number, frame: self._asked.fill_(1))

    def agreed(self) -> bool:
        """Whether any rank was asked; collective."""
        asked = self._asked.clone()
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked.item())


def batch(step: int, rank: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The data of one step: from its number alone, so that nothing is lost or repeated after a restart."""
    source = torch.Generator().manual_seed(step * 100_003 + rank)
    seen = torch.randn(size, SEEN, generator=source)
    return seen, 2 * seen[:, :1] + seen[:, 1:2].abs()


def main() -> None:
    """Train to the last step, from wherever an earlier attempt came to."""
    args = arguments()
    get_accelerator().set_device(args.local_rank)
    deepspeed.init_distributed()
    rank = dist.get_rank()
    device = torch.device(get_accelerator().device_name(args.local_rank))

    torch.manual_seed(1)
    network = MODELS[args.model](SEEN)
    engine, *_ = deepspeed.initialize(
        model=network,
        # torch's own: DeepSpeed's would be compiled on every node first.
        optimizer=torch.optim.AdamW(network.parameters(), lr=args.rate),
        config=args.deepspeed_config,
    )
    # The run's directory is the same for all attempts and nodes; the working directory is read-only.
    saved = Path(os.environ.get("CLUSTERFT_RUN_DIR", "."), args.save_path)
    step = resume(engine, saved)
    say(rank, f"attempt {os.environ.get('CLUSTERFT_ATTEMPT', '0')} begins after step {step}")

    stop = Stop(device)
    size = engine.train_micro_batch_size_per_gpu()
    while step < args.steps:
        began = time.monotonic()
        seen, wanted = batch(step, rank, size)
        loss = torch.nn.functional.mse_loss(engine(seen.to(device)), wanted.to(device))
        engine.backward(loss)
        engine.step()
        step += 1
        mean = loss.detach() / dist.get_world_size()
        dist.all_reduce(mean)
        time.sleep(args.pause)
        report(rank, step, args, mean.item(), dist.get_world_size() * size / (time.monotonic() - began))
        ending = stop.agreed()
        if ending or step % args.save_every == 0 or step == args.steps:
            engine.save_checkpoint(str(saved), client_state={"step": step})  # `latest` is written last
        if ending:
            say(rank, f"asked to stop: saved at step {step}")
            break
    dist.barrier()
    dist.destroy_process_group()


def resume(engine: deepspeed.DeepSpeedEngine, saved: Path) -> int:
    """The step of the newest checkpoint; 0 when there is none yet."""
    if not (saved / "latest").exists():
        return 0
    path, state = engine.load_checkpoint(str(saved))
    if path is None:
        raise SystemExit(f"{saved} names a checkpoint that cannot be loaded")
    return int(state["step"])


def report(rank: int, step: int, args: argparse.Namespace, loss: float, speed: float) -> None:
    """A line for people, and one that clusterft draws its screen from; see docs/script.md."""
    say(rank, f"step {step}/{args.steps}  loss {loss:.4f}")
    body = {"schema": 1, "kind": "step", "step": step, "steps": args.steps, "epoch": 0, "loss": loss}
    body |= {"rate": args.rate, "grad_norm": None, "images_per_second": speed, "data_wait": 0.0, "at": time.time()}
    say(rank, "@clusterft " + json.dumps(body))


def say(rank: int, text: str) -> None:
    """One voice is enough."""
    if rank == 0:
        print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
