"""Everything that a run needs, built in the order in which a mistake is found soonest.

Owns the assembly alone: settings, pictures, model, engine, in; a Run, out.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from clusterft_trainer import builtin, dist, metrics, objective
from clusterft_trainer.buckets import Epochs, Shape
from clusterft_trainer.checkpoint import Identity, Keeper
from clusterft_trainer.config import BuiltinSource, Ddp, Fsdp, TrainConfig
from clusterft_trainer.dataset import Pictures
from clusterft_trainer.dist import Place
from clusterft_trainer.engine.base import Engine
from clusterft_trainer.engine.ema import Ema
from clusterft_trainer.errors import DataError, storing
from clusterft_trainer.held_out import HeldOut, split
from clusterft_trainer.model import files, sdxl
from clusterft_trainer.model.parts import Diffusion, Parts
from clusterft_trainer.model.stored import fingerprint
from clusterft_trainer.objective import Objective
from clusterft_trainer.records import Record, digest, scan
from clusterft_trainer.sample import Sampler
from clusterft_trainer.step import Learner, Useful, unknown

# Above this share of padding a user should know that much of the computation is for nothing.
_MUCH_PADDING = 0.25


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
    home = run_dir.parent / ".clusterft" / "builtin"
    records = dist.on_lead(place, lambda: gather_records(config, home))
    trained, held = dist.together(lambda: split(records, config.held_out, config.seed))
    pictures = Pictures([*trained, *held], config.data, config.seed)
    shape = Shape(config.batch.per_slot, config.batch.accumulate, place.world)
    epochs = dist.together(lambda: Epochs(pictures.buckets[: len(trained)], config.seed, shape))
    if epochs.padding > _MUCH_PADDING:
        share = f"{epochs.padding:.0%} of the samples that are computed only fill up short batches"
        say(place, f"{share}: {len(trained)} pictures in {len(set(pictures.buckets))} buckets.")
    phase(place, "model")
    where = dist.on_lead(place, lambda: model_path(config, home))
    parts = dist.together(lambda: files.load(where, config.tokenizers, config.vae, device=place.device))
    mine = fingerprint(Path(where))
    _refuse_other_models(where, mine)
    diffusion = parts.diffusion.under(config.objective)
    learner = learn(config, place, parts, len(set(pictures.buckets)))
    engine = learner.engine
    identity = Identity(
        seed=config.seed,
        data=_data_digest(config, records),
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
        keeper=Keeper(run_dir / "checkpoints", config, identity, place),
        ema=None if config.learn.ema is None else Ema(engine, config.learn.ema),
        sampler=sampler(config, pictures, run_dir, place),
        held_out=None
        if config.held_out is None
        else HeldOut(config.held_out, pictures, len(trained), config.batch.per_slot, place),
        diffusion=diffusion,
        model=where,
    )


def _refuse_other_models(where: str, mine: str) -> None:
    """Raise on all ranks if the model is not the same file on all nodes: they would train a mixture of them."""
    every = dist.gather(mine)
    if len(set(every)) > 1:
        odd = [rank for rank, one in enumerate(every) if one != every[0]]
        raise DataError(
            f"{where} is not the same on all nodes: rank {odd[0]} has another one than rank 0.",
            "Copy one model to all nodes, or put it where all of them see it.",
            everywhere=True,
        )


def learn(config: TrainConfig, place: Place, parts: Parts, sizes: int) -> Learner:
    """Model, encoders, objective and engine from a loaded model."""
    learned = dist.together(lambda: objective_of(config, parts.diffusion))
    denoiser = dist.together(lambda: sdxl.build_denoiser(parts, config.learn, config.compute, config.seed))
    formats = sdxl.Formats(vae=config.compute.vae_dtype, text=config.compute.text_dtype)
    tokens = config.data.captions.tokens
    encoders = dist.together(lambda: sdxl.Encoders(parts, denoiser, place.device, tokens, formats))
    useful = _useful(config, place, denoiser)
    if config.compute.compile:
        sdxl.compile_unet(denoiser, sizes)
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


def _data_digest(config: TrainConfig, records: list[Record]) -> str:
    """What decides which pictures are trained, at which size, in which order."""
    held = config.held_out
    chosen = "" if held is None else f":{held.share}:{held.most}"
    return f"{digest(records)}:{config.data.resolution}{chosen}"


def gather_records(config: TrainConfig, home: Path) -> list[Record]:
    """The pictures of all sources, in the order of the sources."""
    records: list[Record] = []
    for source in config.data.sources:
        if isinstance(source, BuiltinSource):
            with storing("The builtin pictures in", home):
                folder = builtin.materialise("shapes", source.images, home)
            records += scan(folder)
        else:
            records += scan(Path(source.folder))
    return records


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
