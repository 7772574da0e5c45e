"""The whole of the settings, and what of it cannot be combined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from clusterft_trainer.config.base import Dtype, PositiveInt, Section
from clusterft_trainer.config.data import Data
from clusterft_trainer.config.learn import Learn
from clusterft_trainer.config.objective import Objective
from clusterft_trainer.config.refusals import refusals
from clusterft_trainer.config.run import (
    Batch,
    Checkpoints,
    Compute,
    Engine,
    HeldOut,
    Output,
    Samples,
    Wandb,
    Zero,
)

TINY = "builtin:tiny"


class TrainConfig(Section):
    """Everything that the trainer needs to know; the `train:` block of job.yaml."""

    model: str = Field(
        min_length=1,
        description="SDXL, a single .safetensors file or a diffusers folder; 'builtin:tiny' is small and random",
    )
    tokenizers: str | None = Field(
        None, min_length=1, description="folder with tokenizer/ and tokenizer_2/, where the model is a single file"
    )
    vae: str | None = Field(
        None, min_length=1, description="another VAE than the model's: a file or a diffusers folder"
    )
    output: Output
    data: Data
    learn: Learn
    objective: Objective = Objective()
    batch: Batch = Batch()
    precision: Dtype = Field("bf16", description="what the model computes in")
    weights: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: no full copy of the weights; updates are rounded stochastically"
    )
    engine: Engine = Zero()
    compute: Compute = Compute()
    checkpoints: Checkpoints = Checkpoints()
    samples: Samples | None = None
    held_out: HeldOut | None = None
    wandb: Wandb | None = None
    steps: PositiveInt | None = Field(None, description="optimizer steps; give steps or epochs")
    epochs: PositiveInt | None = Field(None, description="passes over the data; give steps or epochs")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self

    @model_validator(mode="after")
    def _possible(self) -> TrainConfig:
        found = refusals(self)
        if found:
            raise ValueError("; ".join(found))
        return self


def load(path: Path) -> TrainConfig:
    """Read the JSON that the launcher wrote; pydantic's ValidationError names the setting if it is wrong."""
    return TrainConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
