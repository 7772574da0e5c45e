"""Seconds of an optimizer step: computation at an assumed efficiency, communication over a given link. Torch-free.

Owns how many bytes each engine sends for a step. Refuses to add what it does not know: without a link's rate there
is no communication time, and reading pictures is left out altogether.
"""

from __future__ import annotations

from dataclasses import dataclass

from clusterft_trainer.config import Ddp, Fsdp, TrainConfig, Zero
from clusterft_trainer.estimate.arithmetic import FULL, WIDTH, Cluster, Inventory

# Share of the peak that the useful FLOPs of SDXL's training reach; published runs lie between 0.18 and 0.31.
EFFICIENCY = 0.28
# The same of compiled blocks; on an H200 with 16 samples at a time 0.35 with text encoders, 0.40 without.
COMPILED = 0.37
# Share of the plain cores' peak that the VAE reaches in fp32: torch gives its convolutions to the tensor cores
# (TF32) where a GPU has them. From 10.5 pictures a second on an H200, `prep` and its start included.
VAE = 0.7
# Seconds of a GPU for one pass below which the host, which starts its kernels, may take longer. Beside an H200:
# 1.05 s with 4 samples at a time, the optimizer included, where the GPU has work for 0.4 s.
HOST_BOUND = 0.5


@dataclass(frozen=True, slots=True)
class Work:
    """What one slot computes for one sample, in FLOPs."""

    useful: int
    again: int  # gradient checkpointing
    text: int  # frozen text encoders
    vae: int


@dataclass(frozen=True, slots=True)
class Time:
    """Seconds of one optimizer step."""

    compute: float | None
    encoding: float | None  # only while latents and texts are not yet remembered
    communication: float | None
    step: float | None  # the longer way: overlapped where the engine does so
    images_per_second: float | None
    sent: int  # bytes that a slot sends and receives in each direction for a step
    told: str  # what was assumed


def traffic(config: TrainConfig, inventory: Inventory, world: int) -> int:
    """Bytes that each slot sends for one optimizer step, in rings: (n-1)/n of the data each time round."""
    if world == 1:
        return 0
    moving, held, engine = inventory.trained, inventory.count(inventory.engaged), config.engine
    micro = config.batch.accumulate
    if isinstance(engine, Ddp):
        rounds = 2 * WIDTH[config.weights] * moving
    elif isinstance(engine, Fsdp):
        # gathered for forward and again for backward, gradients scattered in fp32
        rounds = micro * 2 * WIDTH[config.precision] * held + FULL * moving
    elif isinstance(engine, Zero) and engine.stage == 3:
        rounds = micro * (2 * WIDTH[config.precision] * held + WIDTH[config.precision] * moving)
    else:
        # stage 2 scatters the gradients of every micro-batch, stage 1 those of the last; then weights are gathered
        times = micro if engine.stage == 2 else 1
        rounds = (times + 1) * WIDTH[config.precision] * moving
    return rounds * (world - 1) // world


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast the machines are."""

    peak: float | None  # FLOP/s of a slot
    vae: float | None  # FLOP/s of a slot that encodes pictures, as far as it is used
    link: float | None  # bytes a second of one node, one way


def encoding(plain: float | None, half: float | None) -> float | None:
    """FLOP/s that the VAE reaches, of a slot's peaks in fp32 and, where it computes in that, in half precision."""
    found = [share * peak for share, peak in ((VAE, plain), (EFFICIENCY, half)) if peak is not None]
    return max(found, default=None)


def step(config: TrainConfig, one: Work, sent: int, rates: Rates, cluster: Cluster) -> Time:
    """Of one optimizer step over all slots."""
    samples = config.batch.per_slot * config.batch.accumulate
    compute = encoding = None
    share = COMPILED if config.compute.compile else EFFICIENCY
    if rates.peak is not None:
        compute = samples * (one.useful + one.again) / (share * rates.peak)
    if rates.peak is not None and rates.vae is not None:
        encoding = samples * (one.text / (EFFICIENCY * rates.peak) + one.vae / rates.vae)
    # A ring crosses each node's link once in each direction, however many slots are behind it.
    communication = None if rates.link is None else sent / rates.link
    if cluster.world == 1:
        communication = 0.0
    overlapped = not isinstance(config.engine, Zero)
    both: float | None = None
    offloaded = isinstance(config.engine, Zero) and config.engine.offload == "optimizer"
    if compute is not None and communication is not None and not offloaded:
        # what a slot computes before its first gradients are ready cannot hide anything: a third, the forward
        last = (compute / samples) * config.batch.per_slot * 2 / 3
        both = compute + (max(0.0, communication - last) if overlapped else communication)
    told = f"{share:.0%} of the peak; communication " + (
        "hides behind the last backward as far as it fits"
        if overlapped
        else "does not overlap (overlap_comm: false)"
    )
    if compute is not None and compute / config.batch.accumulate < HOST_BOUND:
        told += (
            f"; less than {HOST_BOUND:g} s for a pass: the host may need longer to start it (raise batch.per_slot)"
        )
    if offloaded:
        told += "; the host's part of a step (its optimizer, and PCIe) is not predicted"
    images = None if both is None else samples * cluster.world / both
    return Time(compute, encoding, communication, both, images, sent, told)
