"""One line that says what a job is: model, what trains, engine, pictures a step, how long. Pure."""

from __future__ import annotations

import shlex

from clusterft.plan.program import Prep
from clusterft.spec import JobSpec
from clusterft_trainer.config import TrainConfig, Zero


def summary(spec: JobSpec, world: int, prep: Prep | None = None) -> str:
    """What would be trained, and how; or what is prepared for it."""
    if spec.script:
        words = shlex.join([str(spec.script.inside), *spec.script.args])
        return f"script {words}"
    assert spec.train is not None, "a job has train or script"
    train = spec.train
    if prep:
        return _prepared(train, prep)
    step = train.batch.per_slot * train.batch.accumulate * world
    batch = f"{step} pictures a step ({train.batch.per_slot} x {train.batch.accumulate} x {world} slots)"
    length = f"{train.steps} steps" if train.steps is not None else f"{train.epochs} epochs"
    return f"{train.model} · {_trained(train)} · {_engine(train)} · {batch} · {length}"


def _prepared(train: TrainConfig, prep: Prep) -> str:
    count = len(train.data.sources)
    what = f"prepares the data of {count} source{'s' * (count != 1)} at {train.data.resolution}²"
    only = f", {prep.only} alone" if prep.only else ""
    return f"{what} for {train.model}{only}"


def _trained(train: TrainConfig) -> str:
    learn = train.learn
    rates = [
        ("unet", learn.unet and learn.unet.rate),
        ("text encoders", learn.text_encoders and learn.text_encoders.rate),
        ("text encoder 1", learn.text_encoder_1 and learn.text_encoder_1.rate),
        ("text encoder 2", learn.text_encoder_2 and learn.text_encoder_2.rate),
    ]
    words = [f"{name} at {rate:g}" for name, rate in rates if rate]
    lora = f"LoRA of rank {learn.lora.rank}: " if learn.lora else ""
    return lora + ", ".join(words)


def _engine(train: TrainConfig) -> str:
    engine = train.engine
    kind = f"zero {engine.stage}" if isinstance(engine, Zero) else engine.kind
    return f"{kind} {train.precision}"
