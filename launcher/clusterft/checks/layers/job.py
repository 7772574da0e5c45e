"""The checks of the job and data layers that can be judged before a run: arithmetic of what a job asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator

from clusterft.checks import holdings, imports, nearby, rehearsal, sources
from clusterft.checks.check import Check
from clusterft.checks.examination import Examination
from clusterft.checks.ways import severed
from clusterft.findings import Finding
from clusterft_trainer.config import BuiltinSource

# Where one of these has failed on a node, its rank fails of it, and says the same less well.
_BEFORE_A_RANK = (
    "ssh.",
    "os.",
    "dk.",
    "net.",
    "nccl.",
    "rdzv.",
    "fs.",
    "data.",
    "job.",
    "run.import",
)
_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def batch(seen: Examination) -> Iterator[Finding]:
    """job.batch: DeepSpeed's figures must agree with each other and with the number of ranks."""
    figures = _figures(seen.wanted.deepspeed)
    world = _slots(seen)
    whole, micro, steps = (figures.get(key) for key in _KEYS)
    if whole is None or world == 0 or (micro is None and steps is None):
        return
    known = world * (micro or 1) * (steps or 1)
    fits = whole == known if micro and steps else whole % known == 0
    if not fits:
        product = " x ".join(
            f"{key} {value}" for key, value in zip(_KEYS[1:], (micro, steps), strict=True) if value
        )
        yield Finding(
            id="job.batch",
            status="fail",
            nodes=(),
            summary="DeepSpeed's batch sizes contradict each other, and it will refuse them",
            evidence=f"train_batch_size {whole}; {product} x {world} ranks = {known}",
            cause="train_batch_size must be micro batch x accumulation x ranks",
            fix=(f"in the DeepSpeed configuration: train_batch_size {_nearest(whole, known)}, or leave it out",),
            blast_radius="the configuration",
        )


def too_small(seen: Examination) -> Iterator[Finding]:
    """data.too-small: fewer pictures than one step takes; only drawn ones are counted before a run."""
    train = seen.wanted.job.train if seen.wanted.job else None
    if train is None:
        return
    drawn = [one for one in train.data.sources if isinstance(one, BuiltinSource)]
    if len(drawn) < len(train.data.sources):
        return
    count = sum(one.images * one.repeats for one in drawn)
    slots = _slots(seen)
    step = train.batch.per_slot * train.batch.accumulate * slots
    if count < step:
        yield Finding(
            id="data.too-small",
            status="fail",
            nodes=(),
            summary=f"{count} pictures are fewer than the {step} of one optimizer step",
            evidence=f"{slots} slots x {train.batch.per_slot} samples x {train.batch.accumulate} accumulated",
            fix=("add pictures or repeats, or lower train.batch.per_slot or train.batch.accumulate",),
            blast_radius="job.yaml",
        )


def local_cache(seen: Examination) -> Iterator[Finding]:
    """data.local-cache: the folder of each node in which the job has copies of the cache kept."""
    job = seen.wanted.job
    if job and job.local_cache:
        yield from nearby.found(job, seen.survey, seen.nearby, seen.wanted.owner)


def missing(seen: Examination) -> Iterator[Finding]:
    """data.missing: what the job reads, on every node that was asked for it."""
    job = seen.wanted.job
    if job is not None and (seen.sources or seen.named):
        yield from sources.found(job, seen.survey, seen.sources)
        for one in seen.named:
            yield from sources.unnamed(job, one)


def differs(seen: Examination) -> Iterator[Finding]:
    """data.differs: what the job reads outside the shared dir, on every node."""
    yield from holdings.found(seen.nodes, seen.holdings, seen.dialled)


def importing(seen: Examination) -> Iterator[Finding]:
    """run.import: the Python in which the job's ranks run, where they run in no container."""
    yield from imports.found(seen.nodes, seen.imports)


def rehearsed(seen: Examination) -> Iterator[Finding]:
    """run.rehearsal: the beginning of a run, on all nodes at once."""
    if seen.rehearsal is not None:
        dialled = seen.links is not None and bool(seen.links.dials)
        tries = seen.rehearsal.tries
        # The whole network is judged for this: not where every rank came through.
        apart = any(not one.done for one in tries.values())
        yield from rehearsal.found(
            seen.nodes,
            seen.rehearsal,
            seen.imports,
            severed=severed.by(seen, tries) if apart else "",
            dialled=dialled,
        )


def _figures(text: str | None) -> dict[str, int]:
    """Of a configuration that can be read; `auto` is a figure that somebody else fills in."""
    try:
        body = json.loads(text or "")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(body, dict):
        return {}
    return {key: body[key] for key in _KEYS if type(body.get(key)) is int and body[key] > 0}


def _slots(seen: Examination) -> int:
    return sum(node.slots for node in seen.survey.cluster.active)


def _nearest(whole: int, known: int) -> int:
    return max(known, round(whole / known) * known)


CHECKS: tuple[Check, ...] = (
    Check(("job.batch",), batch, ("facts", "job")),
    Check(("data.local-cache",), local_cache, ("facts", "job")),
    Check(("data.too-small",), too_small, ("facts", "job")),
    Check(("data.missing",), missing, ("facts", "job")),
    Check(("data.differs",), differs, ("facts", "holdings", "job")),
    Check(("run.import",), importing, ("facts", "imports", "job"), after=("os.memory-limit",)),
    Check(("run.rehearsal",), rehearsed, ("facts", "rehearsal", "job"), after=_BEFORE_A_RANK),
)
