"""A training run from its settings to the exported file; the loop that joins all other modules.

Owns the order of things: build, resume, steps, checkpoints, held-out loss, samples, export, and stopping at a step
boundary when asked to. Whatever one rank meets, all ranks decide at that boundary, by the same sums.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from clusterft_trainer import dist, step
from clusterft_trainer.buckets import Position
from clusterft_trainer.build import Run, build, phase, say
from clusterft_trainer.checkpoint import Found, State, changes, complete, policy
from clusterft_trainer.checkpoint.keeper import Saving
from clusterft_trainer.checkpoint.manifest import Role
from clusterft_trainer.checkpoint.policy import Diary, Moment
from clusterft_trainer.config import TrainConfig
from clusterft_trainer.dataset import Work, stream
from clusterft_trainer.delivery import deliver
from clusterft_trainer.dist import Place
from clusterft_trainer.engine import optimizers, pieces, rates
from clusterft_trainer.errors import TrainerError, storing
from clusterft_trainer.metrics import Journal
from clusterft_trainer.progress import HeldOut, Step
from clusterft_trainer.step import Outcome

# After these the weights are no use, or there is no room for them.
_NOT_WORTH_KEEPING = frozenset({"nan", "disk-full", "storage"})
# Loss scaling halves its scale at each: from 65536 none is left to halve after 16.
_MOST_LEFT_OUT = 24
_PATIENCE = 10.0  # seconds after which a second signal ends at once


class StopSignal:
    """Remembers SIGTERM or Ctrl-C, which ask for a checkpoint and a clean end at the next step boundary.

    Who asks again after a while means it: a rank that waits for a dead one has no boundary any more.
    """

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, _: object) -> None:
        now = time.monotonic()
        if self.asked and now - self._since > _PATIENCE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not self.asked:
            self.asked, self._since = True, now


@dataclass(slots=True)
class Course:
    """How far the run has come, and what it remembers on the way."""

    state: State
    total: int
    began: float = field(default_factory=time.monotonic)
    diary: Diary = field(default_factory=Diary)
    skipped: int = 0
    best: float = math.inf
    saved: int = 0  # the last step of which there is a checkpoint, or one under way
    in_a_row: int = 0  # steps that half precision has left out since the last that it has not
    met: float = 0.0  # seconds that this rank spent in the last meeting


@dataclass(frozen=True, slots=True)
class Boundary:
    """What all ranks know together at the end of a step."""

    loss: float
    stopping: bool
    data_wait: float  # seconds, mean over the ranks
    peer_wait: float
    broken: bool  # the loss, or some rank's gradient, is no number
    failed: bool  # some rank has no data for the next step
    ready: bool  # the checkpoint under way can be taken a stage further
    minutes: float  # on rank 0's clock


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
    state = State(0, Position()) if found is None else resume(built, found)
    course = Course(state, total_steps(built, state), best=best_so_far(built, state), saved=state.step)
    journal = Journal(run_dir, state.step if found else None, config.wandb) if place.leads else None
    try:
        finished = loop(built, course, journal, stop)
    except TrainerError as error:
        rescue(built, course, error)
        raise
    built.keeper.close()
    if finished:
        deliver(built, course.total, config.output.name)
        if journal is not None:
            journal.finish(config.output.name)
    elif journal is not None:
        journal.close()
    return built


def rescue(run: Run, course: Course, error: TrainerError) -> None:
    """What all ranks raise together leaves them able to keep what they have."""
    if not error.everywhere:
        return
    run.keeper.finish()
    if error.failure not in _NOT_WORTH_KEEPING and course.saved != course.state.step:
        save(run, course, ("failure",), wait=True)


def resume(run: Run, found: Found) -> State:
    """Load a checkpoint, and say which, and what is different now."""
    notes = run.keeper.restore(run.learner.engine, run.ema, found)
    m, now = found.manifest, run.shape.global_batch
    position = run.epochs.moved(found.state.position, m.global_batch)
    if run.keeper.others(found):
        position = Position(m.epoch + (m.sample > 0))  # what was seen of an epoch says nothing of other pictures
        say(run.place, f"Other pictures from now on, from the beginning of epoch {position.epoch}.")
    sample = f"epoch {m.epoch}, sample {m.sample}"
    say(run.place, f"Training continues from step {m.step} ({found.folder}; {sample}).")
    if (m.engine, m.world, m.global_batch) != (run.learner.engine.kind, run.place.world, now):
        say(
            run.place,
            f"Written by {m.world} ranks with {m.engine}, {m.global_batch} samples a step; now {run.place.world} "
            f"with {run.learner.engine.kind}, {now} samples a step.",
        )
    changed = changes.told(found, run.config.model_dump(mode="json"))
    for sentence in [*changed, *notes]:
        say(run.place, f"Changed since that step: {sentence}.")
    return State(m.step, position)


def loop(run: Run, course: Course, journal: Journal | None, stop: StopSignal) -> bool:
    """Every step of the run; False when it was asked to stop before the end."""
    walk = stream(run.pictures, run.epochs, run.shape, run.place.rank, run.learner.encoders.known)
    work = walk(course.state.position, course.total - course.state.step, course.state.step)
    phase(run.place, "train")
    job, problem = fetch(work)
    dist.agree(problem)
    while job is not None:
        began, number = time.monotonic(), course.state.step + 1
        rate = optimizers.set_rates(
            run.learner.engine.groups, rates.factor(number, run.config.learn, course.total)
        )
        outcome = step.take(run.learner, job, number)
        if run.ema is not None:
            run.ema.update(number)
        waiting = time.monotonic()
        following, problem = fetch(work)
        meeting = meet(run, course, outcome, time.monotonic() - waiting, stop.asked, problem)
        course.in_a_row = 0 if outcome.applied else course.in_a_row + 1
        if meeting.broken or course.in_a_row > _MOST_LEFT_OUT:
            tell_broken(run, job, outcome, number, meeting.loss)
        course.state = State(number, run.epochs.after(job.position))
        course.skipped += not outcome.applied
        if journal is not None:
            journal.step(account(run, course, Account(job, rate, outcome, meeting, began)))
        if meeting.failed:
            dist.agree(problem)
        boundary(run, course, journal, meeting, last=following is None)
        job = None if meeting.stopping else following
    if course.state.step < course.total:
        say(run.place, f"Stopped as asked after step {course.state.step}; a checkpoint is written.")
    return course.state.step >= course.total


def tell_broken(run: Run, job: Work, outcome: Outcome, number: int, loss: float) -> None:
    """All ranks raise the same, with what each of them knows of its samples."""
    indices = [i for batch in job.micro for i in batch.indices]
    mine = {run.pictures.name(i): v for i, v in zip(indices, outcome.each.tolist(), strict=True)}
    samples = {name: value for part in dist.gather(mine) for name, value in part.items()}
    told = step.Broken(number, job.position.epoch, loss, outcome.norm, samples)
    dist.on_lead(run.place, lambda: step.refuse_nan(told, run.run_dir / f"nan-step-{number:08d}.json"))


def fetch(work: Iterator[Work]) -> tuple[Work | None, TrainerError | None]:
    """The next step's data, nothing after the last, or why there is none: the others must hear of it first."""
    try:
        return next(work, None), None
    except TrainerError as error:
        return None, error


def meet(
    run: Run, course: Course, outcome: Outcome, waited: float, asked: bool, problem: TrainerError | None
) -> Boundary:
    """One small meeting for all at the end of a step: all decide by the same sums, so none waits in vain."""
    broken = outcome.applied and outcome.norm is not None and not math.isfinite(outcome.norm)
    minutes = (time.monotonic() - course.began) / 60 if run.place.leads else 0.0
    began = time.monotonic()
    loss, asks, waits, meets, breaks, fails, writes, minutes = dist.sum_all(
        [outcome.loss, asked, waited, course.met, broken, problem is not None, run.keeper.ready, minutes]
    )
    course.met = time.monotonic() - began
    world = run.place.world
    return Boundary(
        loss=loss,
        stopping=asks > 0,
        data_wait=waits / world,
        peer_wait=meets / world,
        broken=breaks > 0 or not math.isfinite(loss),
        failed=fails > 0,
        ready=writes == world,
        minutes=minutes,
    )


@dataclass(frozen=True, slots=True)
class Account:
    """What there is to tell of one step."""

    job: Work
    rate: float
    outcome: Outcome
    meeting: Boundary
    began: float


def account(run: Run, course: Course, told: Account) -> Step:
    """A step as the journal writes it."""
    seconds = time.monotonic() - told.began
    bucket, exposed = told.job.micro[0].bucket, run.learner.engine.exposed
    useful = run.learner.useful(bucket.width, bucket.height)
    mfu = None if useful is None else useful * told.job.real / seconds / run.place.world
    return Step(
        step=course.state.step,
        steps=course.total,
        epoch=told.job.position.epoch,
        loss=told.meeting.loss,
        rate=told.rate,
        grad_norm=told.outcome.norm,
        images_per_second=told.job.real / seconds,
        data_wait=min(1.0, told.meeting.data_wait / seconds),
        at=time.time(),
        peer_wait=min(1.0, told.meeting.peer_wait / seconds),
        communication=None if exposed is None else min(1.0, exposed / seconds),
        mfu=mfu,
        memory=pieces.device_peak(run.place.device),
        skipped=course.skipped,
    )


def boundary(run: Run, course: Course, journal: Journal | None, meeting: Boundary, last: bool) -> None:
    """What falls due after a step: held-out loss, a checkpoint, samples, an export."""
    config, state = run.config, course.state
    ends_epoch = state.position == Position(state.position.epoch)
    moment = Moment(state.step, state.position.epoch, ends_epoch, meeting.minutes)
    roles = policy.due(config.checkpoints, moment, course.diary)
    measured = None
    if run.held_out is not None and (last or state.step % run.held_out.settings.every_steps == 0):
        measured = measure(run, state.step, journal)
        if config.checkpoints.best is not None and measured < course.best:
            course.best = measured
            roles.append("best")
    if last or meeting.stopping:
        roles.append("stop" if not last else "end")
    if roles:
        save(run, course, tuple(roles), wait=last or meeting.stopping, held_out=measured)
    elif meeting.ready:
        run.keeper.advance()
    if meeting.stopping and not last:
        return
    if run.sampler is not None and config.samples is not None:
        if last or state.step % config.samples.every_steps == 0:
            with shown(run):
                run.sampler.draw(run.learner, state.step)
    every = config.output.every_epochs
    if every is not None and ends_epoch and not last and state.position.epoch % every == 0:
        deliver(run, state.step, f"{config.output.name}-{state.position.epoch:06d}")


def save(run: Run, course: Course, roles: tuple[Role, ...], *, wait: bool, held_out: float | None = None) -> None:
    """A checkpoint of the step that has just ended."""
    run.keeper.save(run.learner.engine, run.ema, Saving(course.state, run.epochs, roles, held_out, wait))
    course.saved = course.state.step


def measure(run: Run, number: int, journal: Journal | None) -> float:
    """The held-out loss of the weights that would be exported."""
    began = time.monotonic()
    if run.held_out is None:
        raise ValueError("there is no held-out set")
    with shown(run):
        loss = run.held_out.measure(run.learner)
    if journal is not None:
        journal.held_out(HeldOut(number, loss, time.monotonic() - began, time.time()))
    return loss


def shown(run: Run) -> AbstractContextManager[None]:
    """With the running mean in the place of the weights, where there is one."""
    return run.learner.engine.averaged() if run.ema is None else run.ema.in_place()


def best_so_far(run: Run, state: State) -> float:
    """The least held-out loss of the checkpoints on the way here, as far as it was measured as it is now."""
    every = dist.on_lead(run.place, lambda: complete(run.run_dir / "checkpoints"))
    now = run.config.model_dump(mode="json")
    alike = [
        f.manifest.held_out
        for f in every
        if f.manifest.step <= state.step
        and all(f.manifest.config.get(name) == now[name] for name in ("held_out", "objective"))
    ]
    return min((loss for loss in alike if loss is not None and math.isfinite(loss)), default=math.inf)


def make_folder(folder: Path) -> None:
    """The run's own folder."""
    with storing("The run's folder", folder):
        folder.mkdir(parents=True, exist_ok=True)


def total_steps(run: Run, state: State) -> int:
    """Optimizer steps of the whole run, seen from where it stands."""
    if run.config.steps is not None:
        return run.config.steps
    return state.step + run.epochs.left(state.position, run.config.epochs or 0)
