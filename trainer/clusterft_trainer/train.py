"""A training run from its settings to the exported file; the loop that joins all other modules.

Owns the order of things: model, data, resume, steps, checkpoints, samples, export, and stopping at
a step boundary when asked to. Refuses to go on after a loss or a gradient that is not a number.
"""

from __future__ import annotations

import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clusterft_trainer import builtin, checkpoint, dist, export, metrics, objective
from clusterft_trainer.buckets import Epochs, Position, Shape
from clusterft_trainer.checkpoint import Found, Keeper, State
from clusterft_trainer.config import BuiltinSource, Learn, TrainConfig, Zero
from clusterft_trainer.dataset import Batch, Pictures, Work, stream
from clusterft_trainer.dist import Place
from clusterft_trainer.engine import optim
from clusterft_trainer.errors import RunError, storing
from clusterft_trainer.metrics import Journal
from clusterft_trainer.model import sdxl
from clusterft_trainer.progress import Step
from clusterft_trainer.records import Record, digest, scan
from clusterft_trainer.sample import Sampler

if TYPE_CHECKING:
    from accelerate import Accelerator

# Above this share of padding a user should know that much of the computation is for nothing.
_MUCH_PADDING = 0.25


@dataclass(slots=True)
class Run:
    """Everything that the loop needs, built and in place."""

    config: TrainConfig
    run_dir: Path
    place: Place
    accelerator: Accelerator
    model: Any  # the Denoiser as the engine wrapped it
    optimizer: Any
    encoders: sdxl.Encoders
    pictures: Pictures
    epochs: Epochs
    shape: Shape
    keeper: Keeper
    sampler: Sampler | None


class StopSignal:
    """Remembers SIGTERM, which asks for a checkpoint and a clean end at the next step boundary."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, *_: object) -> None:
        self.asked = True


def run(config: TrainConfig, run_dir: Path, place: Place) -> Run:
    """Train from the newest checkpoint, or from the start, to the end.

    The caller must hold the result until the process exits: freeing a process group takes the
    interpreter lock while gloo's own thread waits for it, and the process would hang for good.
    """
    stop = StopSignal()
    dist.join(place)
    dist.on_lead(place, lambda: make_folder(run_dir))
    built = build(config, run_dir, place)
    found = built.keeper.newest()
    state = State(0, Position())
    if found is not None:
        state = found.state
        changed = resume(built, found)
        _say(place, f"Training continues from step {state.step} ({found.folder}).")
        if changed:
            _say(place, f"Changed since that step: {'; '.join(changed)}.")
    journal = Journal(run_dir, state.step if found else None) if place.leads else None
    finished = loop(built, state, journal, stop)
    if finished:
        _phase(place, "export")
        trained = (built.model, built.encoders)
        export.finish(config, run_dir, place, built.accelerator, trained, total_steps(built))
        if journal is not None:
            journal.finish(config.output.name)
    elif journal is not None:
        journal.close()
    return built


def resume(run: Run, found: Found) -> list[str]:
    """Load a checkpoint, but for how fast the weights move: that is the settings' to say.

    Otherwise a run that failed because its rate was too high would go on failing with a lower one.
    """
    own = [{k: group[k] for k in ("base", "weight_decay")} for group in run.optimizer.param_groups]
    changed = run.keeper.restore(run.accelerator, found)
    for group, settings in zip(run.optimizer.param_groups, own, strict=True):
        group.update(settings)
    dist.set_clip(run.model, run.config.learn.clip)
    return changed


def build(config: TrainConfig, run_dir: Path, place: Place) -> Run:
    """Model, data and engine, in the order in which a mistake is found soonest."""
    _phase(place, "data")
    home = run_dir.parent / ".clusterft" / "builtin"
    records = dist.on_lead(place, lambda: gather_records(config, home))
    shape = Shape(config.batch.per_slot, config.batch.accumulate, place.world)
    pictures = Pictures(records, config.data, config.seed)
    epochs = Epochs(pictures.buckets, config.seed, shape)
    if epochs.padding > _MUCH_PADDING:
        share = f"{epochs.padding:.0%} of the samples that are computed only fill up short batches"
        _say(place, f"{share}: {len(records)} pictures in {len(set(pictures.buckets))} buckets.")
    _phase(place, "model")
    folder = dist.on_lead(place, lambda: model_folder(config.model, home))
    parts = sdxl.load(folder)
    denoiser = sdxl.build_denoiser(parts, config.learn)
    encoders = sdxl.Encoders(parts, denoiser, place.device)
    count = sum(p.numel() for p in denoiser.parameters() if p.requires_grad)
    accelerator = dist.build_accelerator(config, place, count)
    model, optimizer = accelerator.prepare(denoiser.to(place.device), optim.build(denoiser, config.learn))
    identity = checkpoint.Identity(
        world=place.world,
        global_batch=shape.global_batch,
        seed=config.seed,
        data=digest(records) + f":{config.data.resolution}",
        engine=f"zero-{config.engine.stage}" if isinstance(config.engine, Zero) else "ddp",
        precision=config.precision,
        learn=f"{'+'.join(part for part, _ in trained(config.learn))} {config.learn.optimizer.name}",
        model=config.model,
    )
    keeper = Keeper(
        run_dir / "checkpoints", config.checkpoints.keep or 10**9, identity, tuning(config.learn), place
    )
    sampler = None
    if config.samples is not None:
        sampler = Sampler(
            config.samples,
            config.data.resolution,
            pictures.usual_size(),
            run_dir / "samples",
            place,
        )
    return Run(
        config, run_dir, place, accelerator, model, optimizer,
        encoders, pictures, epochs, shape, keeper, sampler,
    )  # fmt: skip


def loop(run: Run, state: State, journal: Journal | None, stop: StopSignal) -> bool:
    """Every step of the run; False when it was asked to stop before the end."""
    total = total_steps(run)
    walk = stream(run.pictures, run.epochs, run.shape, run.place.rank, run.encoders.known)
    work = walk(state.position, total - state.step)
    _phase(run.place, "train")
    stopping = False
    while state.step < total and not stopping:
        began = time.monotonic()
        job = next(work)
        waited = time.monotonic() - began
        rate = optim.set_rates(run.optimizer, optim.warmup(state.step + 1, run.config.learn.warmup_steps))
        loss, norm = train_step(run, job)
        # One small meeting for all: the global loss, who was asked to stop, who waited for data,
        # who saw a gradient that is no number. All decide by the same sums, so none waits in vain.
        broken = float(norm is not None and not math.isfinite(norm))
        loss, asked, waits, broken = dist.sum_all([loss, float(stop.asked), waited, broken])
        stopping = asked > 0
        state = State(state.step + 1, run.epochs.after(job.position))
        refuse_nan(state.step, loss, broken > 0)
        seconds = time.monotonic() - began
        if journal is not None:
            journal.step(
                Step(
                    step=state.step,
                    steps=total,
                    epoch=job.position.epoch,
                    loss=loss,
                    rate=rate,
                    grad_norm=norm,
                    images_per_second=job.real / seconds,
                    data_wait=min(1.0, waits / run.place.world / seconds),
                    at=time.time(),
                )
            )
        keep(run, state, last=state.step == total or stopping)
        if run.sampler is not None and not stopping:
            draw_samples(run, state.step, total)
    if stopping and state.step < total:
        _say(run.place, f"Stopped as asked after step {state.step}; a checkpoint is written.")
    return state.step >= total


def refuse_nan(step: int, loss: float, broken_gradient: bool) -> None:
    """Raise before a step is saved whose weights are, or will be, no numbers."""
    if math.isfinite(loss) and not broken_gradient:
        return
    what = (
        f"loss of step {step} is {loss}" if not math.isfinite(loss) else f"gradient of step {step} is not finite"
    )
    raise RunError(
        "nan",
        f"The {what}; its weights are not saved.",
        "Lower learn.*.rate, or raise learn.warmup_steps; then start again: training "
        "continues from the last checkpoint.",
    )


def train_step(run: Run, work: Work) -> tuple[float, float | None]:
    """Forward and backward over the micro-batches, then one update; this rank's part of the loss."""
    loss_sum, norm = 0.0, None
    copies = run.place.world * run.shape.accumulate
    for batch in work.micro:
        with run.accelerator.accumulate(run.model):
            losses = sample_losses(run, batch, work.position.epoch)
            weights = batch.weights.to(losses.device)
            loss = objective.weighted(losses, weights, work.real, copies)
            # under DeepSpeed this also updates the weights, and the two calls below do nothing
            run.accelerator.backward(loss)
            clip = run.config.learn.clip
            if run.accelerator.sync_gradients and not isinstance(run.config.engine, Zero):
                found = run.accelerator.clip_grad_norm_(run.model.parameters(), clip or math.inf)
                norm = float(found)
            run.optimizer.step()
            run.optimizer.zero_grad()
        loss_sum += loss.item() / copies
    return loss_sum, norm if norm is not None else dist.gradient_norm(run.model)


def sample_losses(run: Run, batch: Batch, epoch: int) -> torch.Tensor:
    """The loss of each sample of a micro-batch."""
    encoders = run.encoders
    shape = encoders.latent_shape(batch.bucket.width, batch.bucket.height)
    keys = [objective.key(run.config.seed, epoch, i, "noise") for i in batch.indices]
    drawn = objective.draw(keys, shape, encoders.schedule)
    latents = encoders.latents(batch, drawn)
    noise, timesteps = drawn.noise.to(latents.device), drawn.timesteps.to(latents.device)
    noisy = objective.noisy(latents, noise, timesteps, encoders.schedule)
    prediction = run.model(noisy, timesteps, encoders.condition(batch.captions, batch.time_ids))
    return objective.sample_losses(prediction, noise)


def keep(run: Run, state: State, last: bool) -> None:
    """Write a checkpoint when one is due, and always at the end."""
    if last or state.step % (run.config.checkpoints.every_steps or 500) == 0:
        run.keeper.write(run.accelerator, state)


def draw_samples(run: Run, step: int, total: int) -> None:
    """Draw a grid when one is due, and always at the end."""
    settings = run.config.samples
    if run.sampler is None or settings is None:
        return
    if step == total or step % settings.every_steps == 0:
        # unwrapping keeps the autocast that a plain bfloat16 run needs
        run.sampler.draw(run.accelerator.unwrap_model(run.model), run.encoders, step)


def trained(learn: Learn) -> list[tuple[str, float]]:
    """Name and full rate of each part that moves."""
    return [(name, part.rate) for name, part in learn.trained.items()]


def tuning(learn: Learn) -> dict[str, Any]:
    """The settings that may change when training continues: the remedy for a loss that is no number is here."""
    rates: dict[str, Any] = {f"learn.{name}.rate": rate for name, rate in trained(learn)}
    names = ("warmup_steps", "clip", "weight_decay")
    return rates | {f"learn.{name}": getattr(learn, name) for name in names}


def make_folder(folder: Path) -> None:
    """The run's own folder."""
    with storing("The run's folder", folder):
        folder.mkdir(parents=True, exist_ok=True)


def total_steps(run: Run) -> int:
    """Optimizer steps of the whole run."""
    if run.config.steps is not None:
        return run.config.steps
    return (run.config.epochs or 0) * run.epochs.batches


def gather_records(config: TrainConfig, home: Path) -> list[Record]:
    """The pictures of all sources, in the order of the sources."""
    records: list[Record] = []
    for source in config.data.sources:
        if isinstance(source, BuiltinSource):
            with storing("The builtin pictures in", home):
                folder = builtin.materialise("shapes", source.images, home)
            records += scan(folder)
        else:
            records += scan(source.folder)
    return records


def model_folder(model: str, home: Path) -> Path:
    """Where the model lies; the builtin one is made first."""
    if model == builtin.MODEL:
        with storing("The builtin model in", home):
            return builtin.materialise("tiny", 0, home)
    return sdxl.check_folder(model)


def _phase(place: Place, name: str) -> None:
    if place.leads:
        metrics.phase(name)


def _say(place: Place, text: str) -> None:
    if place.leads:
        metrics.notice(text)
