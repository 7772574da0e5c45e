"""Settings of what is trained and how its weights move."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from clusterft_trainer.config.base import Fraction, PositiveInt, Rate, Section

# Under each name: the library's class. Those of `SHARDED` keep one number of state for each weight and decide
# about each weight alone, so an engine may cut their state anywhere.
OptimizerName = Literal[
    "adamw",
    "adamw-8bit",
    "paged-adamw-8bit",
    "lion-8bit",
    "ao-adamw-8bit",
    "ao-adamw-4bit",
    "ao-adamw-fp8",
    "adafactor",
    "lion",
    "came",
    "stable-adamw",
    "prodigy",
    "schedule-free-adamw",
]
SHARDED = frozenset({"adamw", "lion"})
# Decide about each number alone, or about blocks of 256 of them, so weights may be stepped as one tensor.
JOINED = frozenset({"adamw", "lion", "adamw-8bit", "paged-adamw-8bit", "lion-8bit"})
# Decide about a tensor from that tensor alone, so a step may follow each gradient as it is made.
FUSABLE = frozenset(
    {"adamw", "adamw-8bit", "paged-adamw-8bit", "lion-8bit", "adafactor", "lion", "came", "stable-adamw"}
)
# Round to bfloat16 by themselves, stochastically.
ROUNDS_ITSELF = frozenset({"ao-adamw-8bit", "ao-adamw-4bit", "ao-adamw-fp8"})
# Have no pair of betas (adafactor has none, came three), or no eps of that meaning.
NO_BETAS = frozenset({"adafactor", "came"})
NO_EPS = frozenset({"adafactor", "came", "lion", "lion-8bit"})

PartName = Literal["unet", "text_encoder_1", "text_encoder_2"]


class Part(Section):
    """One trained part of the model."""

    rate: Rate = Field(description="learning rate")


class UnetPart(Part):
    """The UNet, whole or in part. A frozen weight costs no gradient, no reduction and no optimizer state."""

    parts: str | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "all",
        description="'all', 'unet-71' or 'unet-68', or a list of blocks by their names in a single file "
        "(input_blocks.4, middle_block) and patterns over weight names (*.attn2.*)",
    )


class Lora(Section):
    """Train low-rank additions to the attention and feed-forward layers instead of the weights themselves."""

    rank: PositiveInt = 16
    alpha: Annotated[float, Field(gt=0)] | None = Field(None, description="scale; the rank where it is not given")
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Ema(Section):
    """A running mean of the trained weights, spread over the slots; samples, held-out loss and export use it."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    device: Literal["cpu", "slot"] = Field(
        "cpu", description="where the mean lies: host memory, or beside the weights"
    )


def _pair(value: object) -> object:
    # pydantic takes a list for a tuple from JSON alone, and behind `_named` a value no longer comes from there
    return tuple(value) if isinstance(value, list) else value


Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]


class Optimizer(Section):
    """The rule by which weights move; a bare name in a job is enough."""

    name: OptimizerName = "adamw"
    betas: Annotated[Betas, BeforeValidator(_pair)] | None = Field(
        None, description="decay of the running means; the library's if not given"
    )
    eps: Annotated[float, Field(gt=0)] | None = Field(None, description="the library's if not given")
    fused_backward: bool = Field(
        False, description="step each weight as soon as its gradient is there, then forget that"
    )


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class Learn(Section):
    """What is trained, and how the weights move."""

    unet: UnetPart | None = None
    text_encoders: Part | None = Field(None, description="both text encoders at one rate")
    text_encoder_1: Part | None = None
    text_encoder_2: Part | None = None
    lora: Lora | None = None
    ema: Ema | None = None
    optimizer: Annotated[Optimizer, BeforeValidator(_named)] = Optimizer()
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    schedule: Literal["constant", "linear", "cosine", "polynomial"] = Field(
        "constant", description="how the rate falls from its full value to floor x that, over the run"
    )
    floor: Fraction = Field(
        0.0, description="share of the full rate that is left at the end of a falling schedule"
    )
    power: Annotated[float, Field(gt=0)] = Field(2.0, description="exponent of schedule: polynomial; 1 is linear")
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    clip: Annotated[float, Field(gt=0)] | None = Field(1.0, description="gradient norm limit; null for none")
    gradient_checkpointing: bool = Field(False, description="compute activations twice instead of keeping them")

    @model_validator(mode="after")
    def _something_is_trained(self) -> Learn:
        if self.text_encoders is not None and (self.text_encoder_1 or self.text_encoder_2):
            raise ValueError("give text_encoders for both, or text_encoder_1 and text_encoder_2, not both ways")
        if not self.trained:
            raise ValueError("nothing is trained: give unet or text_encoders a rate")
        if self.schedule == "constant" and self.floor:
            raise ValueError("floor has no meaning under schedule: constant")
        if self.schedule != "polynomial" and self.power != 2.0:
            raise ValueError(f"power has no meaning under schedule: {self.schedule}")
        return self

    @property
    def trained(self) -> dict[PartName, Part]:
        """Each part that moves, under the name that its weights have."""
        both = self.text_encoders
        every: dict[PartName, Part | None] = {
            "unet": self.unet,
            "text_encoder_1": self.text_encoder_1 or both,
            "text_encoder_2": self.text_encoder_2 or both,
        }
        return {name: part for name, part in every.items() if part is not None}
