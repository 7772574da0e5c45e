"""How much of the full rate a step has: warm-up, then the schedule. Pure and torch-free.

Refuses to hold state: the share is a function of the step, so a resumed run needs nothing but its position.
"""

from __future__ import annotations

import math

from clusterft_trainer.config import Learn


def factor(step: int, learn: Learn, total: int) -> float:
    """Share of the full rate in step 1, 2, ... total.

    The warm-up is a line that would be 0 before the first step and is 1 in the first step after it; the fall that
    follows would be at `floor` in the step after the last. So no step is spent on a rate of nothing.
    """
    if not 1 <= step <= total:
        raise ValueError(f"step {step} is not one of 1..{total}")
    warm = learn.warmup_steps
    if step <= warm:
        return step / (warm + 1)
    return learn.floor + (1 - learn.floor) * _left(learn, (step - 1 - warm) / (total - warm))


def _left(learn: Learn, gone: float) -> float:
    """What is left of the fall when `gone` of it, 0 to 1, is over."""
    match learn.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1 - gone
        case "cosine":
            return (1 + math.cos(math.pi * gone)) / 2
        case "polynomial":
            return (1 - gone) ** learn.power
