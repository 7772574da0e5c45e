"""Everything that a run needs, built in the order in which a mistake is found soonest.

Owns the assembly alone: settings, pictures, model, engine, in; a Run, out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clusterft_trainer import builtin, caching, dist, metrics, objective
from clusterft_trainer.buckets import Epochs, Shape
from clusterft_trainer.checkpoint import Identity, Keeper
from clusterft_trainer.config import BuiltinSource, Ddp, FolderSource, Fsdp, TrainConfig
from clusterft_trainer.config.sources import Source
from clusterft_trainer.corpus import ingest, keeping
from clusterft_trainer.corpus.index import Index
from clusterft_trainer.dataset import Pictures, Split
from clusterft_trainer.dist import Place
from clusterft_trainer.engine.base import Engine
from clusterft_trainer.engine.ema import Ema
from clusterft_trainer.errors import DataError, TrainerError, storing
from clusterft_trainer.held_out import HeldOut, split
from clusterft_trainer.model import files, sdxl
from clusterft_trainer.model.parts import Diffusion, Parts
from clusterft_trainer.model.stored import fingerprint
from clusterft_trainer.objective import Objective
from clusterft_trainer.sample import Sampler
from clusterft_trainer.step import Learner, Useful, unknown

# Above this share of padding a user should know that much of the computation is for nothing.
_MUCH_PADDING = 0.25
_TELLING = 30.0  # seconds between words about a long ingest


@dataclass(slots=True)
class Run:
    """Everything that the loop needs, built and in place."""

    config: TrainConfig
    run_dir: Path
    place: Place
    learner: Learner
    pictures: Pictures
    epochs: Epochs
    shape: Shape
    keeper: Keeper
    ema: Ema | None
    sampler: Sampler | None
    held_out: HeldOut | None
    diffusion: Diffusion  # as it is trained
    model: str  # the file or folder that the frozen weights come from


def build(config: TrainConfig, run_dir: Path, place: Place) -> Run:
    """Pictures first, then the model, then what moves it."""
    phase(place, "data")
    shared = run_dir.parent / ".clusterft"
    left = dist.on_lead(place, lambda: keeping.left(run_dir))
    index = gather(config, place, run_dir, left)
    pictures = dist.together(lambda: arranged(config, index))
    shape = Shape(config.batch.per_slot, config.batch.accumulate, place.world)
    epochs = dist.together(lambda: Epochs(pictures.assigned, config.seed, shape))
    if epochs.padding > _MUCH_PADDING:
        share = f"{epochs.padding:.0%} of the samples that are computed only fill up short batches"
        say(place, f"{share}: {pictures.trained} pictures in {len(pictures.used)} buckets.")
    phase(place, "model")
    where = dist.on_lead(place, lambda: model_path(config, shared / "builtin"))
    parts = dist.together(lambda: files.load(where, config.tokenizers, config.vae, device=place.device))
    mine = fingerprint(Path(where))
    _refuse_other_models(where, mine)
    diffusion = parts.diffusion.under(config.objective)
    listed = dist.together(lambda: caching.supply(config, pictures, parts, shared, lambda text: say(place, text)))
    broken = np.unique(np.concatenate(dist.gather(listed)))  # a node may see an older listing than another
    if len(broken):
        pictures = dist.together(lambda: _without(config, pictures, broken))
        epochs = dist.together(lambda: Epochs(pictures.assigned, config.seed, shape))
    learner = learn(config, place, parts, len(pictures.used))
    pictures.words, pictures.pinned = learner.encoders.words, place.device != "cpu"
    engine = learner.engine
    identity = Identity(
        seed=config.seed,
        data=_data_digest(config, pictures.index, broken),
        trained=hashlib.sha256(json.dumps(sorted(engine.shapes.items())).encode()).hexdigest(),
        objective=f"{diffusion.prediction}{' zero-terminal' if diffusion.zero_terminal_snr else ''}",
        model=mine,
    )
    return Run(
        config=config,
        run_dir=run_dir,
        place=place,
        learner=learner,
        pictures=pictures,
        epochs=epochs,
        shape=shape,
        keeper=Keeper(run_dir / "checkpoints", config, identity, place, left),
        ema=None if config.learn.ema is None else Ema(engine, config.learn.ema),
        sampler=sampler(config, pictures, run_dir, place),
        held_out=None
        if config.held_out is None
        else HeldOut(config.held_out, pictures, config.batch.per_slot, place),
        diffusion=diffusion,
        model=where,
    )


def _refuse_other_models(where: str, mine: str) -> None:
    """Raise on all ranks if the model is not the same file on all nodes: they would train a mixture of them."""
    every = dist.gather(mine)
    if len(set(every)) > 1:
        odd = [rank for rank, one in enumerate(every) if one != every[0]]
        error = DataError(
            f"{where} is not the same on all nodes: rank {odd[0]} has another one than rank 0.",
            "Copy one model to all nodes, or put it where all of them see it.",
            everywhere=True,
        )
        if 2 * len(odd) <= len(every):  # else it is rank 0 that is odd, and it speaks anyway
            error.met_by = odd[0]
        raise error


def learn(config: TrainConfig, place: Place, parts: Parts, sizes: int) -> Learner:
    """Model, encoders, objective and engine from a loaded model."""
    learned = dist.together(lambda: objective_of(config, parts.diffusion))
    denoiser = dist.together(lambda: sdxl.build_denoiser(parts, config.learn, config.compute, config.seed))
    cache = config.data.cache
    take = "sample" if cache is None else cache.take
    formats = sdxl.Formats(vae=config.compute.vae_dtype, text=config.compute.text_dtype, take=take)
    tokens = config.data.captions.tokens
    encoders = dist.together(lambda: sdxl.Encoders(parts, denoiser, place.device, tokens, formats))
    useful = _useful(config, place, denoiser)
    if config.compute.compile:
        sdxl.compile_blocks(denoiser, sizes)
    engine = start_engine(config, place, denoiser.to(place.device))
    return Learner(engine, encoders, learned, config.seed, useful)


def _useful(config: TrainConfig, place: Place, denoiser: sdxl.Denoiser) -> Useful:
    """Share of one card's second at its peak that a sample of a size needs; nothing is counted without a peak."""
    if place.device == "cpu":
        return unknown
    from clusterft_trainer.estimate import devices, flops

    peak = devices.peak(torch.cuda.get_device_name(), config.precision)
    if peak is None:
        return unknown
    # before an engine and a compiler change the model
    table = flops.step_table(denoiser, None, config.data.captions.tokens)
    return lambda width, height: table(width, height) / peak


def start_engine(config: TrainConfig, place: Place, denoiser: sdxl.Denoiser) -> Engine:
    """The engine that the settings ask for; only its own libraries are imported."""
    if isinstance(config.engine, Ddp):
        from clusterft_trainer.engine.plain import PlainEngine

        return PlainEngine(config, place, denoiser)
    if isinstance(config.engine, Fsdp):
        from clusterft_trainer.engine.fsdp import FsdpEngine

        return FsdpEngine(config, place, denoiser)
    from clusterft_trainer.engine.zero import ZeroEngine

    return ZeroEngine(config, config.engine, place, denoiser)


def objective_of(config: TrainConfig, diffusion: Diffusion) -> Objective:
    """What is learned: the settings go before what the model says."""
    trained = diffusion.under(config.objective)
    return objective.build(
        config.objective,
        steps=trained.steps,
        beta_start=trained.beta_start,
        beta_end=trained.beta_end,
        prediction=trained.prediction,
        zero_terminal_snr=trained.zero_terminal_snr,
    )


def sampler(config: TrainConfig, pictures: Pictures, run_dir: Path, place: Place) -> Sampler | None:
    """Where samples are wanted."""
    if config.samples is None:
        return None
    side, usual = config.data.resolution, pictures.usual_size()
    return Sampler(config.samples, side, usual, run_dir / "samples", place)


def _data_digest(config: TrainConfig, index: Index, broken: np.ndarray) -> str:
    """What decides which pictures are trained, at which size, in which order."""
    held, data = config.held_out, config.data
    chosen = "" if held is None else f":{held.share}:{held.most}"
    rest = {
        "buckets": data.buckets.model_dump(mode="json"),
        "repeats": [source.repeats for source in data.sources],
        "broken": hashlib.sha256(broken.tobytes()).hexdigest() if len(broken) else None,
    }
    return f"{index.digest}:{data.resolution}{chosen}:{json.dumps(rest, sort_keys=True)}"


def arranged(config: TrainConfig, index: Index) -> Pictures:
    """The pictures of a run: each in its bucket, trained or held out."""
    return Pictures(index, config.data, config.seed, split(index, config.held_out, config.seed))


def _without(config: TrainConfig, pictures: Pictures, broken: np.ndarray) -> Pictures:
    """The same run without some rows."""
    every: np.ndarray = np.arange(len(pictures.index), dtype=np.int32)
    chosen = split(pictures.index, config.held_out, config.seed) or Split(every, every[:0])
    rest = Split(np.setdiff1d(chosen.kept, broken), np.setdiff1d(chosen.held, broken))
    found = Pictures(pictures.index, config.data, config.seed, rest)
    found.latents, found.texts = pictures.latents, pictures.texts
    return found


def gather(config: TrainConfig, place: Place, run_dir: Path, left: tuple[str, ...]) -> Index:
    """The index of all sources: rank 0 settles which one, every rank maps it."""
    folder, digest = dist.on_lead(place, lambda: _settled(config, place, run_dir, left))
    return dist.together(lambda: _mapped(folder, digest))


def _settled(config: TrainConfig, place: Place, run_dir: Path, left: tuple[str, ...]) -> tuple[Path, str]:
    """The index that this run began with, so that no attempt sees other pictures than those before it.

    `left`: digests of those that somebody has asked it to leave.
    """
    shared = run_dir.parent / ".clusterft"
    sources = [drawn(source, shared / "builtin") for source in config.data.sources]
    cache = config.data.cache
    npz, problems = cache is not None and cache.npz, config.data.problems
    key = ingest.index_key(sources, problems, npz=npz)

    def ingested() -> Index:
        telling, lookers = _Telling(place), _lookers()
        return ingest.ingest(sources, problems, shared / "index" / key, processes=lookers, say=telling, npz=npz)

    mine = keeping.kept(run_dir)
    begun = any((run_dir / "checkpoints").glob("step-*"))
    # a restart within minutes does not look at the sources, a start by hand does
    again = os.environ.get("CLUSTERFT_ATTEMPT") != os.environ.get("CLUSTERFT_FIRST_ATTEMPT")
    if mine is not None and mine.key == key and (begun or again):
        if not again:
            _tell_changes(mine.index, place, ingested)
        return mine.folder, mine.index.digest
    fresh = ingested()
    if mine is not None and mine.index.digest == fresh.digest:
        if mine.key != key:
            keeping.renew(run_dir, key)  # other settings, and the same pictures
        return mine.folder, mine.index.digest
    if begun and (mine is not None or not left):
        return fresh.folder.parent, fresh.digest  # the checkpoint has the say
    if mine is not None:
        shutil.rmtree(mine.folder)  # nothing was trained with it
    found = keeping.keep(fresh, run_dir, key)
    return found.folder, found.index.digest


def _tell_changes(began: Index, place: Place, ingested: Callable[[], Index]) -> None:
    """Whether the sources are others now."""
    try:
        now = ingested()
    except TrainerError as error:
        say(
            place,
            f"The pictures cannot be read anew, and those that this run began with are taken: {error.message}",
        )
        return
    if now.digest != began.digest:
        say(
            place,
            f"Pictures or captions have changed since this run began: {len(began)} pictures then, {len(now)} now. "
            "It goes on with those it began with; clusterft resume --new-data takes those of now.",
        )


def _mapped(folder: Path, digest: str) -> Index:
    found = Index.open(folder)
    if found.digest != digest:
        raise DataError(
            f"The index {folder} is another one on this node than on rank 0's.",
            "Give a shared dir that every node sees alike, and start again when nobody changes the pictures.",
            everywhere=False,
        )
    return found


def drawn(source: Source, home: Path) -> Source:
    """A source with files: the builtin one is drawn first."""
    if not isinstance(source, BuiltinSource):
        return source
    with storing("The builtin pictures in", home):
        folder = builtin.materialise("shapes", source.images, home)
    return FolderSource(folder=str(folder), repeats=source.repeats)


def _lookers() -> int:
    """Processes that look at pictures; the other ranks of this node wait meanwhile."""
    return min(8, len(os.sched_getaffinity(0)))


class _Telling:
    """Says how far a long ingest is."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._next = _TELLING

    def __call__(self, progress: ingest.Progress) -> None:
        """Once in a while."""
        if progress.seconds >= self._next:
            self._next = progress.seconds + _TELLING
            of = "" if progress.total is None else f" of {progress.total}"
            say(self._place, f"Pictures looked at: {progress.done}{of}.")


def model_path(config: TrainConfig, home: Path) -> str:
    """Where the model lies, once it is checked; the builtin one is made first."""
    if config.model == builtin.MODEL:
        with storing("The builtin model in", home):
            return str(builtin.materialise("tiny", 0, home))
    files.check(config.model, config.tokenizers, config.vae)
    return config.model


def phase(place: Place, name: str) -> None:
    """Rank 0 says that a stage begins."""
    if place.leads:
        metrics.phase(name)


def say(place: Place, text: str) -> None:
    """Rank 0 tells something that does not stop the run."""
    if place.leads:
        metrics.notice(text)
