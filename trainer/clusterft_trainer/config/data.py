"""Settings of the pictures and their captions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from clusterft_trainer.config.base import Fraction, PositiveInt, Section


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
    """What happens to a caption on its way to the tokenizers, in this order: dropout, shuffle, tag dropout."""

    dropout: Fraction = Field(0.0, description="share of samples trained with an empty caption")
    separator: str = Field(",", min_length=1, description="what stands between the tags of a caption")
    shuffle: bool = Field(False, description="put the tags into another order for each sample and epoch")
    keep: Annotated[int, Field(ge=0)] = Field(0, description="leading tags that are neither moved nor dropped")
    tag_dropout: Fraction = Field(0.0, description="share of the other tags that is left out")
    tokens: Literal[75, 150, 225] = Field(
        75, description="longest caption; above 75 it is encoded in pieces of 75"
    )

    @model_validator(mode="after")
    def _heeded(self) -> Captions:
        if (self.keep or self.separator != ",") and not (self.shuffle or self.tag_dropout):
            raise ValueError("keep and separator have no meaning without shuffle or tag_dropout")
        return self


def _word(value: object) -> object:
    # YAML reads an unquoted true as a truth value
    return "true" if value is True else value


class Data(Section):
    """Where the pictures come from and at which size they are trained."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    resolution: Annotated[int, Field(ge=64, le=4096, multiple_of=64)] = Field(
        1024, description="pictures are sorted into aspect buckets of about this number squared pixels"
    )
    captions: Captions = Captions()
    crop_ids: Annotated[Literal["true", "kohya"], BeforeValidator(_word)] = Field(
        "true", description="the crop that the model is told of: the real one, or the offset that kohya computes"
    )
