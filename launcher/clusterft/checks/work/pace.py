"""Cards at work: which is slower than its equals, which is not fed, and which cannot reach its neighbour. Pure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator

from clusterft.checks.examination import Examination
from clusterft.facts.deep import Card
from clusterft.findings import Finding

_SLOW = 0.5  # of the median of its equals: every step takes twice as long
_EQUALS = 3
_SAMPLES = 3
_BUSY, _FED = 90.0, 0.7  # per cent of the time at work, and of the power limit that it then draws


def slow_cards(seen: Examination) -> Iterator[Finding]:
    """run.straggler: a card that is half as fast as the others of its kind."""
    kinds: dict[str, list[Card]] = defaultdict(list)
    for card in seen.deep.cards if seen.deep else ():
        if card.flops:
            kinds[card.name].append(card)
    for name, cards in kinds.items():
        middle = statistics.median(card.flops or 0.0 for card in cards)
        for card in cards if len(cards) >= _EQUALS else ():
            if (card.flops or 0.0) < _SLOW * middle:
                yield Finding(
                    id="run.straggler",
                    status="warn",
                    nodes=(card.node,),
                    summary=f"slot {card.slot} computes at {_tera(card.flops)}, its equals at {_tera(middle)}",
                    evidence="\n".join(
                        f"{one.node} slot {one.slot} ({name}): {_tera(one.flops)}" for one in cards
                    ),
                    cause="heat, a lower power limit or a fault of the card; every step waits for it",
                    fix=(f"on {card.node}: nvidia-smi -q -d PERFORMANCE,POWER,TEMPERATURE",),
                    blast_radius="nothing: it only looks",
                )


def starved(seen: Examination) -> Iterator[Finding]:
    """run.host-bound: at work all the time, and far below its power limit."""
    for card in seen.deep.cards if seen.deep else ():
        full = [sample for sample in card.samples if sample[1] > 0]
        if len(full) < _SAMPLES:
            if card.unasked:
                words = f"what slot {card.slot} draws at work is not known: {card.unasked}"
                yield Finding("run.host-bound", "unknown", (card.node,), words)
            continue
        draw, limit, used = (statistics.median(column) for column in zip(*full, strict=True))
        if underfed(used, draw, limit):
            launch = f"\nthe host needs {card.launch * 1e6:.0f} us to start a kernel" if card.launch else ""
            yield Finding(
                id="run.host-bound",
                status="warn",
                nodes=(card.node,),
                summary=f"slot {card.slot} is busy {used:.0f} % of the time at {draw:.0f} W of {limit:.0f} W",
                evidence=f"{card.name}: {_tera(card.flops)} in matrix products{launch}",
                cause="it waits within its kernels: for the host, for PCIe, or for a clock that is held down",
                fix=(
                    f"on {card.node}: nvidia-smi -q -d CLOCK,PERFORMANCE,PCIE   names what holds it down",
                    "in job.yaml: fewer loader workers (train.data.workers), more accumulation "
                    "(train.batch.accumulate)",
                ),
                blast_radius="job.yaml",
            )


def underfed(used: float, draw: float, limit: float) -> bool:
    """Whether a card that is at work all the time waits for something: watts, and per cent of the time."""
    return used >= _BUSY and draw < _FED * limit


def no_direct_copies(seen: Examination) -> Iterator[Finding]:
    """gpu.p2p: two cards of one node whose collectives hang unless they copy through the host."""
    for one in seen.deep.direct if seen.deep else ():
        if not one.with_direct and one.without:
            yield Finding(
                id="gpu.p2p",
                status="fail",
                nodes=(one.node,),
                summary="collectives of its cards hang, and come back with NCCL_P2P_DISABLE=1",
                evidence=one.words,
                cause="direct copies between cards are turned back by PCIe access control (ACS) or the IOMMU",
                fix=(
                    'in job.yaml: env: {NCCL_P2P_DISABLE: "1"}   at once, and slower',
                    f"on {one.node}: switch off ACS and the IOMMU in the firmware, or boot with iommu=pt; "
                    "then nvidia-smi topo -p2p r shows OK",
                ),
                needs_root=True,
                blast_radius="job.yaml, or the firmware's settings and a reboot",
            )


def _tera(flops: float | None) -> str:
    return f"{(flops or 0.0) / 1e12:.1f} TFLOP/s"
