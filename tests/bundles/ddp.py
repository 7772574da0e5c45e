"""A model under DistributedDataParallel, as large as the node's own settings say: $LAYERS of $HIDDEN."""

from __future__ import annotations

import datetime
import os


def main() -> None:
    """One step, if torch finds the models to be alike."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=20))
    hidden = int(os.environ.get("HIDDEN", "32"))
    layers = [torch.nn.Linear(hidden, hidden) for _ in range(int(os.environ.get("LAYERS", "2")))]
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}", flush=True)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*layers))
    model(torch.ones(4, hidden)).sum().backward()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
