"""The room that a run needs in the shared dir: what its settings will write there, against what is free. Pure.

Owns how checkpoints that are kept add up, and when a lack of room blocks: where the run would meet a full disk
whatever happens. An older checkpoint goes only when the newer one is whole, so without room for both nothing is
ever saved but the first; and what is kept for good adds up. What is trained is known from the settings and the
model's own header; the trainer's estimate, made from the model itself, is exact where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clusterft.checks.sizes import about
from clusterft.checks.survey import Survey
from clusterft.findings import Finding
from clusterft_trainer.config import Ema, TrainConfig
from clusterft_trainer.estimate import arithmetic, outline

_OWN_FILES = 200  # of a run as a whole: plan, events, metrics, index, drafts
_LOGS = 4  # files of one rank: what it and its launcher say, over some attempts


@dataclass(frozen=True, slots=True)
class RunRoom:
    """What one run takes, in bytes and files."""

    least: int  # without it nothing is saved
    certain: int  # without it the disk is full before the run is through
    enough: int  # all that is kept, at most
    files: int
    words: str  # what it is made of
    advice: tuple[str, ...] = ()
    single: bool = False  # the run saves one checkpoint in all
    sure: bool = True  # False: it may be a good deal less
    one: int = 0  # bytes of a checkpoint
    kept: int = 0  # how many of them stay at most, of those that `keep` counts


@dataclass(frozen=True, slots=True)
class Free:
    """What is left of the shared dir's filesystem, as a node sees it."""

    directory: str
    mounted_on: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the files themselves, in bytes."""

    checkpoint: int
    export: int


def of(
    train: TrainConfig,
    slots: int,
    exact: Sizes | None = None,
    there: int = 0,
    weights: Mapping[str, int] | None = None,
) -> RunRoom:
    """By the settings; `there`: what the run has written before, which goes as new ones come; `weights`: how many
    the model has, by part."""
    drawn = outline.of(train, weights)
    sizes = exact or Sizes(
        arithmetic.checkpoint(train, drawn.inventory), arithmetic.export(train, drawn.inventory)
    )
    stand = arithmetic.standing(train)
    single = sum(stand.values()) == 1 and not there
    terms = arithmetic.disk(train, sizes.checkpoint, sizes.export)
    first = sizes.checkpoint * (1 if single else 2)
    least = max(sizes.checkpoint, first - there) + arithmetic.RECORDS
    return RunRoom(
        least=least,
        certain=max(least, arithmetic.peak(train, sizes.checkpoint, sizes.export) - there),
        enough=max(sizes.checkpoint + arithmetic.RECORDS, arithmetic.total(terms) - there),
        files=sum(stand.values()) * (slots + 2) + slots * _LOGS + _OWN_FILES,
        words=_words(train, stand, sizes, there, assumed=drawn.assumed and exact is None),
        advice=_advice(train, drawn, sizes, stand),
        single=single,
        sure=exact is not None or not (drawn.at_most or drawn.assumed),
        one=sizes.checkpoint,
        kept=stand.get("kept", 0),
    )


def judged(node: str, free: Free, room: RunRoom) -> Iterator[Finding]:
    """os.disk-full: a fail where the disk is full before the run is through, a warning where it may be."""
    if free.bytes >= room.enough:
        return
    what = "all that this run keeps"
    if free.bytes < room.least:
        what = "a checkpoint" if room.single else "one checkpoint beside the one before it"
    yield Finding(
        id="os.disk-full",
        status="fail" if free.bytes < room.certain and room.sure else "warn",
        nodes=(node,),
        summary=f"{free.directory} has no room for {what}",
        evidence=f"needs {'' if room.sure else 'up to '}about {about(room.enough)} ({room.words}); "
        f"{about(free.bytes)} are free on {free.mounted_on}",
        cause="the disk is nearly full"
        if room.single
        else "an older checkpoint goes only when the newer one is whole",
        fix=(
            *_fitting(free, room),
            *room.advice,
            f"free room on {free.mounted_on}, or choose another directory for shared:",
        ),
        blast_radius=f"job.yaml; what is removed from {free.mounted_on}",
    )


def _fitting(free: Free, room: RunRoom) -> Iterator[str]:
    """The most checkpoints that there is room for, where fewer than now would do."""
    fits = room.kept - -(-(room.enough - free.bytes) // max(1, room.one))
    if fits >= 1:
        yield f"train.checkpoints.keep: {fits} fits into {about(free.bytes)}"


def found(survey: Survey, shared: str, room: RunRoom) -> Iterator[Finding]:
    """On every node that told of the room there: one disk, of which each may have seen another moment."""
    seen = {name: disk for name, facts in survey.facts.items() for disk in facts.disks if disk.directory == shared}
    least = min((disk.free_bytes for disk in seen.values()), default=0)
    for name, disk in seen.items():
        yield from judged(name, Free(shared, disk.mounted_on, least), room)


def _words(train: TrainConfig, stand: dict[str, int], sizes: Sizes, there: int, *, assumed: bool) -> str:
    counts = " + ".join(f"{count} {name}" for name, count in stand.items())
    each = f"checkpoints: {counts}, of {about(sizes.checkpoint)} each"
    exports = f"exports in {train.output.dtype} of {about(sizes.export)} each"
    so_far = f"; less {about(there)} that the run has there already" if there else ""
    guess = f"; {train.model} is taken for a full-size SDXL" if assumed else ""
    return f"{each}; {exports}; logs{so_far}{guess}"


def _advice(train: TrainConfig, drawn: outline.Outline, sizes: Sizes, stand: dict[str, int]) -> tuple[str, ...]:
    """Which settings make it less, and by how much."""
    saving, one = train.checkpoints, sizes.checkpoint
    said = []
    if saving.keep is None:
        said.append("train.checkpoints.keep: 2 keeps the newest two, not all")
    elif stand.get("kept", 0) > 1:
        said.append(f"train.checkpoints.keep: 1 needs {about((stand['kept'] - 1) * one)} less")
    if saving.best is not None:
        said.append(f"without train.checkpoints.best: {about(one)} less")
    if isinstance(train.learn.ema, Ema):
        mean = arithmetic.FULL * drawn.inventory.trained
        said.append(f"without train.learn.ema each checkpoint is {about(mean)} smaller")
    if train.learn.lora is None:
        said.append(
            "fewer trained blocks (train.learn.unet.parts) or train.learn.lora make each checkpoint smaller"
        )
    return tuple(said)
