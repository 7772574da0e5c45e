"""Stochastic rounding of float32 to bfloat16, and where its random numbers come from.

A bfloat16 weight has 8 bits: an update of less than 1/512 of it is lost if the sum is rounded to the nearest, in
every step anew. Rounded up with a probability equal to the lost fraction, the sum is right on average, and small
updates add up.

Refuses to draw from torch's own stream. Each weight has a stream of its own in each step, made from the seed that
torch was last given and from the weight's place: so neither the order in which weights are stepped, nor what else
was drawn meanwhile, nor the number of ranks changes a bit. The trainer seeds torch at each step, alike on all
ranks; two steps with the same numbers are refused.
"""

from __future__ import annotations

import torch

from clusterft_trainer.errors import RunError

_LOST_BITS = 16  # float32 has that many more than bfloat16
_SPREAD = 0x9E3779B97F4A7C15  # odd and without pattern: neighbouring places get distant seeds
_SEEDS = 2**63


class Noise:
    """Random bits for each weight and step, the same on every rank."""

    def __init__(self) -> None:
        self._generators: dict[torch.device, torch.Generator] = {}
        self._last: dict[int, int] = {}  # the seed with which each weight was last rounded

    def bits(self, place: int, like: torch.Tensor) -> torch.Tensor:
        """What decides about each element of the weight at this place: int32, 0 up to 65535."""
        seed = torch.initial_seed()
        if self._last.get(place) == seed:
            raise RunError(
                "rounding",
                "Two steps would round the weights with the same random numbers, which adds up to an error.",
                "This is a fault of the trainer, not of the job: torch was not seeded between two steps.",
            )
        self._last[place] = seed
        generator = self._generators.get(like.device)
        if generator is None:
            generator = self._generators[like.device] = torch.Generator(like.device)
        generator.manual_seed((seed + (place + 1) * _SPREAD) % _SEEDS)
        shape, device = like.shape, like.device
        return torch.randint(0, 1 << _LOST_BITS, shape, dtype=torch.int32, device=device, generator=generator)


def round_stochastically_(values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Round float32 in place to numbers that bfloat16 holds; the noise is used up. NaN and infinity stay.

    Sign and size are separate in a float: adding to its bits as an integer moves it away from zero, by a carry
    into the bits that are kept if fraction + noise overflows those that are lost.
    """
    unordered = values.isnan()  # adding to the bits of a NaN could make a number of it
    bits = values.view(torch.int32)
    bits.add_(noise).bitwise_and_(-(1 << _LOST_BITS))
    return values.masked_fill_(unordered, torch.nan)
