"""The trainer's own settings: one typed, frozen tree that validates alike on the controller and in a container.

Torch-free. Owns names, types, defaults and combinations; refuses unknown keys and any setting that the code
would ignore. A value keeps its name from job.yaml to the optimizer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of every section: no unknown keys, no changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Output(Section):
    """The finished model: one safetensors file in the layout that ComfyUI and A1111 read."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,40}$", description="file stem of the export")
    dtype: Literal["fp16", "bf16", "fp32"] = Field("fp16", description="number format of the export")


class FolderSource(Section):
    """Pictures in a folder (searched through), each with a caption in a .txt file of the same stem."""

    folder: Path = Field(description="absolute on the node, or relative to job.yaml")


class BuiltinSource(Section):
    """A captioned picture set drawn by the trainer itself: for demos and for proving a cluster."""

    builtin: Literal["shapes"]
    images: PositiveInt = Field(64, description="how many pictures to draw")


def _source_kind(value: object) -> str:
    """Choose the source class by its key, so that errors name the right one."""
    keys = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return "builtin" if "builtin" in keys else "folder"


Source = Annotated[
    Annotated[FolderSource, Tag("folder")] | Annotated[BuiltinSource, Tag("builtin")],
    Discriminator(_source_kind),
]


class Captions(Section):
    """What happens to a caption on its way to the tokenizers."""

    dropout: Fraction = Field(0.0, description="share of samples trained with an empty caption")


class Data(Section):
    """Where the pictures come from and at which size they are trained."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    resolution: Annotated[int, Field(ge=64, le=4096, multiple_of=64)] = Field(
        1024, description="pictures are sorted into aspect buckets of about this number squared pixels"
    )
    captions: Captions = Captions()


class Part(Section):
    """One trained part of the model."""

    rate: Rate = Field(description="learning rate")


class Learn(Section):
    """What is trained, and how the weights move."""

    unet: Part | None = None
    text_encoders: Part | None = None
    optimizer: Literal["adamw"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    clip: Annotated[float, Field(gt=0)] | None = Field(1.0, description="gradient norm limit; null for none")

    @model_validator(mode="after")
    def _something_is_trained(self) -> Learn:
        if self.unet is None and self.text_encoders is None:
            raise ValueError("nothing is trained: give unet or text_encoders a rate")
        return self


class Batch(Section):
    """Samples for one optimizer step: per_slot x accumulate x all slots of the run."""

    per_slot: PositiveInt = 1
    accumulate: PositiveInt = 1


class Zero(Section):
    """DeepSpeed ZeRO: optimizer state (stage 1) and gradients (stage 2) are split over all slots."""

    kind: Literal["zero"] = "zero"
    stage: Literal[1, 2] = 2


class Ddp(Section):
    """Plain data parallel: a full copy on each slot; the fastest where it fits."""

    kind: Literal["ddp"]


class Checkpoints(Section):
    """When a resumable state is written, and how many are kept."""

    every_steps: PositiveInt = 500
    keep: PositiveInt = Field(2, description="newest complete ones kept")


class Samples(Section):
    """Pictures drawn from fixed prompts and seeds while training."""

    every_steps: PositiveInt = 500
    prompts: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)]
    denoise_steps: PositiveInt = 20


class TrainConfig(Section):
    """Everything that the trainer needs to know; the `train:` block of job.yaml."""

    model: str = Field(
        min_length=1,
        description="diffusers folder of an SDXL model; 'builtin:tiny' makes a small random one",
    )
    output: Output
    data: Data
    learn: Learn
    batch: Batch = Batch()
    precision: Literal["fp32", "bf16"] = "bf16"
    engine: Annotated[Zero | Ddp, Field(discriminator="kind")] = Zero()
    checkpoints: Checkpoints = Checkpoints()
    samples: Samples | None = None
    steps: PositiveInt | None = Field(None, description="optimizer steps; give steps or epochs")
    epochs: PositiveInt | None = Field(None, description="passes over the data; give steps or epochs")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self


def load(path: Path) -> TrainConfig:
    """Read the JSON that the launcher wrote; pydantic's ValidationError names the setting if it is wrong."""
    return TrainConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
