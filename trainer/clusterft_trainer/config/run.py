"""Settings of how a run is computed and what it leaves behind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from clusterft_trainer.config.base import Cadence, Dtype, Fraction, PositiveInt, Section, Span


class Output(Section):
    """The finished model: one safetensors file in the layout that ComfyUI and A1111 read."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,40}$", description="file stem of the export")
    dtype: Dtype = Field("fp16", description="number format of the export")
    every_epochs: PositiveInt | None = Field(None, description="also export at the end of every n-th epoch")
    diffusers: bool = Field(False, description="write a diffusers folder beside the file")
    author: str | None = None
    license: str | None = None
    description: str | None = None


class Batch(Section):
    """Samples for one optimizer step: per_slot x accumulate x all slots of the run."""

    per_slot: PositiveInt = 1
    accumulate: PositiveInt = 1


class Zero(Section):
    """DeepSpeed ZeRO: optimizer state (stage 1), gradients (2) and weights (3) are split over all slots."""

    kind: Literal["zero"] = "zero"
    stage: Literal[1, 2, 3] = 2
    offload: Literal["none", "optimizer"] = Field(
        "none", description="optimizer: its state and step move to the host"
    )


class Ddp(Section):
    """Plain data parallel: a full copy on each slot; the fastest where it fits."""

    kind: Literal["ddp"]


class Fsdp(Section):
    """PyTorch's FSDP2: weights, gradients and optimizer state are split over all slots."""

    kind: Literal["fsdp"]


Engine = Annotated[Zero | Ddp | Fsdp, Field(discriminator="kind")]


class Checkpoints(Section):
    """When a resumable state is written, and which are kept. A run that ends or is stopped always writes one."""

    rolling: Cadence | None = Field(
        None, description="one that the next overwrites: '15min', '200 steps', '1 epoch'"
    )
    every_steps: PositiveInt | None = Field(
        None, description="ones that are kept; 500 where nothing else is given"
    )
    every_epochs: PositiveInt | None = None
    every_minutes: PositiveInt | None = None
    keep: PositiveInt | None = Field(2, description="newest of those that are kept; null for all")
    best: Literal["held_out"] | None = Field(None, description="also keep the one with the least held-out loss")
    background: bool = Field(True, description="write while training goes on; false: training waits")

    @property
    def cadences(self) -> tuple[Span, ...]:
        """When one that is kept falls due."""
        given = (("steps", self.every_steps), ("epochs", self.every_epochs), ("minutes", self.every_minutes))
        found = tuple(Span.model_validate({"count": n, "unit": unit}) for unit, n in given if n is not None)
        return found or ((Span(count=500, unit="steps"),) if self.rolling is None else ())


class Samples(Section):
    """Pictures drawn from fixed prompts and seeds while training."""

    every_steps: PositiveInt = 500
    prompts: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)]
    negative: str = Field("", description="what the pictures are pushed away from")
    denoise_steps: PositiveInt = 20
    guidance: Annotated[float, Field(ge=1)] = 4.0


class HeldOut(Section):
    """Pictures that are never trained; the loss on them, with noise that is always the same."""

    every_steps: PositiveInt = 500
    share: Annotated[Fraction, Field(gt=0, lt=0.5)] = Field(
        0.01, description="of the pictures, chosen by the seed"
    )
    most: PositiveInt = Field(256, description="upper limit of how many")
    levels: Annotated[int, Field(ge=1, le=16)] = Field(4, description="noise levels for each picture")


class Wandb(Section):
    """Report to Weights & Biases too; its key comes from the job's secrets as WANDB_API_KEY."""

    project: str = Field(min_length=1)
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"


class Compute(Section):
    """How the model's arithmetic is carried out."""

    attention: Literal["auto", "sdpa", "flash", "xformers"] = Field(
        "auto", description="auto: torch's own, which chooses the fastest kernel that is there"
    )
    compile: bool = Field(
        False,
        description="torch.compile of the model's blocks, once for each bucket size; pays on long runs on GPUs",
    )
    vae_dtype: Dtype = Field("fp32", description="fp16 only with a VAE that was repaired for it")
    text_dtype: Dtype = Field("fp32", description="of text encoders that are not trained; bf16 halves their room")
