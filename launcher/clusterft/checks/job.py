"""Checks of one job against its nodes: cards that others use, and what the trainer foresees of memory and disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clusterft.checks.survey import Survey
from clusterft.facts import NodeFacts
from clusterft.facts.gpu import Gpu
from clusterft.facts.health.confines import Limit
from clusterft.findings import Finding
from clusterft.hosts import Node

_MIB = 2**20
_HEADROOM = 0.08  # of a card; the trainer's estimate leaves out workspaces and gaps in the allocator
COMPUTES = ("C", "M+C")  # a desktop's compositor is G, or C+G
_DISPLAY_MIB = 64  # a card that drives no screen holds less for the driver itself


@dataclass(frozen=True, slots=True)
class Foresight:
    """What `estimate` says of a run, in bytes and seconds."""

    vram: int  # of one slot
    host: int  # memory of one node
    checkpoint: int  # on disk
    export: int
    step: float | None  # seconds; None where the cards or the link are not known
    remedies: tuple[str, ...]  # changes with which it would fit


def foresight(body: Mapping[str, Any]) -> Foresight:
    """From the JSON of `estimate`; ValueError if it is not that."""
    try:
        return Foresight(
            vram=int(body["vram_total"]),
            host=int(body["host_total"]),
            checkpoint=int(body["checkpoint"]),
            export=int(body["export"]),
            step=body["time"]["step"],
            remedies=tuple(f"{' + '.join(one['changes'])} with {one['engine']}" for one in body["remedies"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an estimate: {type(error).__name__}: {error}") from None


def busy(survey: Survey) -> Iterator[Finding]:
    """gpu.busy: somebody else computes on a card of the run; gpu.display: a desktop holds memory of one."""
    for node, facts in _with_facts(survey):
        for card in used(node, facts):
            foreign = [one for one in card.processes or () if one.kind in COMPUTES]
            if foreign:
                yield Finding(
                    id="gpu.busy",
                    status="fail",
                    nodes=(node.name,),
                    summary=f"card {card.index} is in use by another program",
                    evidence="\n".join(f"pid {one.pid} {one.name} {_held(one.memory)}" for one in foreign),
                    cause="a run that was left behind, or somebody else's",
                    fix=(
                        f"ask its owner, or end it: kill {foreign[0].pid}",
                        "or use other cards: gpus= in the hostfile",
                    ),
                    blast_radius="that program",
                )
            elif card.display and (card.used or 0) > _DISPLAY_MIB:
                yield Finding(
                    id="gpu.display",
                    status="warn",
                    nodes=(node.name,),
                    summary=f"a desktop holds {card.used} MiB of card {card.index}, which trains",
                    evidence="\n".join(f"pid {one.pid} {one.name}" for one in card.processes or ()),
                    fix=("move the screen to another card, or leave this one out: gpus= in the hostfile",),
                    blast_radius="the hostfile",
                )


def fits(survey: Survey, seen: Foresight, limits: Mapping[str, Limit]) -> Iterator[Finding]:
    """job.memory: what a slot will need against what its card has free; os.oom for the node's own memory.

    `limits`: the least that a cgroup leaves to a node's ranks.
    """
    for node, facts in _with_facts(survey):
        for card in used(node, facts):
            if card.memory is None:
                yield Finding("job.memory", "unknown", (node.name,), f"memory of card {card.index} is not told")
                continue
            free = (card.memory - (card.used or 0)) * _MIB
            room = int(free - card.memory * _MIB * _HEADROOM)
            if seen.vram <= room:
                continue
            advice = tuple(f"would fit: {words}" for words in seen.remedies[:3])
            yield Finding(
                id="job.memory",
                # An estimate: only what could not fit even without headroom is certain.
                status="fail" if seen.vram > card.memory * _MIB else "warn",
                nodes=(node.name,),
                summary=f"a slot needs about {_gb(seen.vram)}, more than its card can give",
                evidence=f"card {card.index}: {card.name}, {_gb(free)} of {_gb(card.memory * _MIB)} free",
                cause="weights, gradients, optimizer state and activations of these settings",
                fix=advice
                or ("lower train.batch.per_slot, or choose an engine that shards: engine: {kind: zero}",),
                blast_radius="job.yaml",
            )
        yield from _host(node.name, facts.memory, limits.get(node.name), seen.host)


def _host(node: str, memory: int | None, limit: Limit | None, need: int) -> Iterator[Finding]:
    under = limit if limit and (memory is None or limit.value < memory) else None
    has = under.value if under else memory
    if has is None or need <= has:
        return
    own = f"a limit leaves them {_gb(has)}" if under else f"it has {_gb(has)}"
    yield Finding(
        id="os.oom",
        status="warn",
        nodes=(node,),
        summary=f"the ranks of a node need about {_gb(need)}; {own}",
        evidence=f"{under.file}: {under.value}" if under else "",
        fix=(
            "train.checkpoints.background: false keeps no copy of what is being written",
            "train.learn.ema.device: slot, and engine.offload: none, leave what they hold on the cards",
        ),
        blast_radius="job.yaml",
    )


def used(node: Node, facts: NodeFacts) -> tuple[Gpu, ...]:
    """The cards that a node's slots are."""
    named = [card for card in facts.gpus if str(card.index) in node.gpus or card.uuid in node.gpus]
    return tuple(named if node.gpus else facts.gpus[: node.slots])


def _with_facts(survey: Survey) -> Iterator[tuple[Node, NodeFacts]]:
    for node in survey.cluster.active:
        if node.name in survey.facts:
            yield node, survey.facts[node.name]


def _held(memory: int | None) -> str:
    return "" if memory is None else f"{memory} MiB"


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
