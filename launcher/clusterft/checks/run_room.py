"""The room that a run needs in the shared dir: what its settings will write there, against what is free. Pure.

Owns how checkpoints that are kept add up, and when a lack of room blocks: an older checkpoint goes only when the
newer one is whole, so without room for both nothing is ever saved but the first. What is trained is known from the
settings alone; the trainer's own estimate, made from the model itself, is exact where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    enough: int  # all that is kept
    files: int
    words: str  # what it is made of
    advice: tuple[str, ...] = ()
    single: bool = False  # the run saves one checkpoint in all
    sure: bool = True  # False: it may be a good deal less


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


def of(train: TrainConfig, slots: int, exact: Sizes | None = None, there: int = 0) -> RunRoom:
    """By the settings; `there`: what the run has written before, which goes as new ones come."""
    drawn = outline.of(train)
    sizes = exact or Sizes(
        arithmetic.checkpoint(train, drawn.inventory), arithmetic.export(train, drawn.inventory)
    )
    stand = arithmetic.standing(train)
    single = sum(stand.values()) == 1 and not there
    terms = arithmetic.disk(train, sizes.checkpoint, sizes.export)
    first = sizes.checkpoint * (1 if single else 2)
    return RunRoom(
        least=max(sizes.checkpoint, first - there) + arithmetic.RECORDS,
        enough=max(sizes.checkpoint + arithmetic.RECORDS, arithmetic.total(terms) - there),
        files=sum(stand.values()) * (slots + 2) + slots * _LOGS + _OWN_FILES,
        words=_words(train, stand, sizes, there, assumed=drawn.assumed and exact is None),
        advice=_advice(train, drawn, sizes, stand),
        single=single,
        sure=exact is not None or not drawn.at_most,
    )


def judged(node: str, free: Free, room: RunRoom) -> Iterator[Finding]:
    """os.disk-full: a fail where no checkpoint can follow another one, a warning where not all have room."""
    if free.bytes >= room.enough:
        return
    none = free.bytes < room.least
    one = "a checkpoint" if room.single else "one checkpoint beside the one before it"
    what = one if none else "all that this run keeps"
    yield Finding(
        id="os.disk-full",
        status="fail" if none and room.sure else "warn",
        nodes=(node,),
        summary=f"{free.directory} has no room for {what}",
        evidence=f"needs {'' if room.sure else 'up to '}about {about(room.enough)} ({room.words}); "
        f"{about(free.bytes)} are free on {node}:{free.mounted_on}",
        cause="the disk is nearly full"
        if room.single
        else "an older checkpoint goes only when the newer one is whole",
        fix=(*room.advice, f"free room on {free.mounted_on}, or choose another directory for shared:"),
        blast_radius=f"job.yaml; what is removed from {free.mounted_on}",
    )


def found(survey: Survey, shared: str, room: RunRoom) -> Iterator[Finding]:
    """On every node that told of the room there."""
    for name, facts in survey.facts.items():
        for disk in facts.disks:
            if disk.directory == shared:
                yield from judged(name, Free(shared, disk.mounted_on, disk.free_bytes), room)


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
