"""Settings of the pictures and their captions."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from clusterft_trainer.config.base import Fraction, PositiveInt, Section
from clusterft_trainer.config.sources import Source

_SIZE = re.compile(r"([1-9][0-9]{1,4})x([1-9][0-9]{1,4})")
_STEP = 32  # pixels; the UNet halves latents, which are an eighth, two times


class Warmup(Section):
    """Captions that grow: their tags are cut off, ever later, until the step is reached."""

    steps: PositiveInt = Field(description="from this step on, captions are whole")
    least: PositiveInt = Field(1, description="tags that are kept at the first step")


class Captions(Section):
    """What happens to a caption on its way to the tokenizers, in the order of these settings."""

    prefix: str = Field("", description="put before each caption")
    suffix: str = Field("", description="put behind each caption")
    dropout: Fraction = Field(0.0, description="share of samples trained with an empty caption")
    wildcards: bool = Field(
        False, description="one line of several is drawn, then one of each {a|b|c}; {{ and }} are plain braces"
    )
    separator: str = Field(",", min_length=1, description="what stands between the tags of a caption")
    keep: Annotated[int, Field(ge=0)] = Field(0, description="leading tags that are neither moved nor dropped")
    keep_separator: str | None = Field(
        None,
        min_length=1,
        description="all before it is kept in place, and all behind a second one; goes before keep",
    )
    warmup: Warmup | None = None
    shuffle: Annotated[bool | float, Field()] = Field(
        False,
        description="put the tags into another order for each sample and epoch; a number is a share of samples",
    )
    tag_dropout: Fraction = Field(0.0, description="share of the other tags that is left out")
    secondary_separator: str | None = Field(
        None, min_length=1, description="ties tags together until all is arranged, then becomes the separator"
    )
    tokens: Literal[75, 150, 225] = Field(
        75, description="longest caption; above 75 it is encoded in pieces of 75"
    )

    @property
    def shuffled(self) -> float:
        """Share of samples whose tags are put into another order."""
        return float(self.shuffle)

    @property
    def arranges(self) -> bool:
        """Whether captions are taken apart into tags at all."""
        return bool(self.shuffle or self.tag_dropout or self.warmup)

    @model_validator(mode="after")
    def _heeded(self) -> Captions:
        if not 0 <= float(self.shuffle) <= 1:
            raise ValueError("shuffle is true, false or a share from 0 to 1")
        if (self.keep or self.separator != ",") and not self.arranges:
            raise ValueError("keep and separator have no meaning without shuffle, tag_dropout or warmup")
        return self


class Buckets(Section):
    """The sizes that pictures are trained at. Without settings: kohya's, with limits that fit the resolution."""

    smallest: Annotated[int, Field(ge=_STEP)] | None = Field(None, description="shortest side in pixels")
    largest: Annotated[int, Field(ge=_STEP)] | None = Field(None, description="longest side in pixels")
    step: Annotated[int, Field(ge=_STEP, multiple_of=_STEP)] | None = Field(
        None, description="sides are multiples of it"
    )
    sizes: tuple[str, ...] | None = Field(None, description="these alone, each written as 832x1216")
    upscale: bool = Field(
        True, description="false: a picture smaller than the resolution keeps its size, cut to the step"
    )

    @model_validator(mode="after")
    def _possible(self) -> Buckets:
        given = (self.smallest, self.largest, self.step)
        if self.sizes is not None and any(one is not None for one in given):
            raise ValueError("sizes is the whole list: smallest, largest and step have no meaning beside it")
        if self.sizes is not None and not self.upscale:
            raise ValueError("upscale: false makes buckets of its own, so it excludes sizes")
        if not self.upscale and (self.smallest or self.largest):
            raise ValueError(
                "smallest and largest have no meaning with upscale: false, which keeps pictures' own sizes"
            )
        if self.smallest and self.largest and self.smallest > self.largest:
            raise ValueError("smallest is larger than largest")
        for one in self.sizes or ():
            found = _SIZE.fullmatch(one)
            if not found or int(found[1]) % _STEP or int(found[2]) % _STEP:
                raise ValueError(f"{one!r} is not WIDTHxHEIGHT with sides that are multiples of {_STEP}")
        if self.sizes is not None and not self.sizes:
            raise ValueError("sizes is empty")
        self._refuse_hidden()
        return self

    def _refuse_hidden(self) -> None:
        """A bucket with the shape of a smaller one would get next to nothing, and nobody would see why."""
        shapes: dict[float, tuple[int, int]] = {}
        for one in sorted(self.listed):
            first = shapes.setdefault(one[0] / one[1], one)
            if first != one:
                raise ValueError(
                    f"sizes: {first[0]}x{first[1]} and {one[0]}x{one[1]} have one aspect ratio, by which pictures "
                    "are sorted: all would go to the smaller one; leave one of them out"
                )

    @property
    def listed(self) -> tuple[tuple[int, int], ...]:
        """The given list as numbers."""
        return tuple((int(w), int(h)) for w, h in (one.split("x") for one in self.sizes or ()))


class Problems(Section):
    """What becomes of a picture that is not as it should be; all of them are counted and listed in a report."""

    broken: Literal["refuse", "skip"] = Field("refuse", description="a file that is no whole picture")
    no_caption: Literal["refuse", "skip", "empty"] = Field(
        "refuse", description="no text belongs to it, or one that is not UTF-8"
    )
    duplicate: Literal["keep", "skip", "refuse"] = Field("keep", description="the same bytes as another one's")


class Cache(Section):
    """Latents, and if wanted text states, made once by `clusterft prep` and read by every run."""

    dtype: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16 halves the cache")
    take: Literal["mean", "sample"] = Field(
        "mean", description="of what the VAE says: its mean, or one sample, as kohya does"
    )
    flip: bool = Field(False, description="keep mirrored ones too; each sample is then mirrored by a coin")
    text: bool = Field(False, description="keep the text encoders' states; captions must then stay as they are")
    codec: Literal["none", "zstd"] = Field("none", description="zstd saves little, and costs reading time")
    npz: bool = Field(True, description="take latents from kohya's .npz files where they are")
    local: str | None = Field(None, min_length=1, description="folder of the node that keeps what was read once")
    local_gigabytes: PositiveInt = Field(200, description="the most that it may hold")


def _word(value: object) -> object:
    # YAML reads an unquoted true as a truth value
    return "true" if value is True else value


class Data(Section):
    """Where the pictures come from and at which size they are trained."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    resolution: Annotated[int, Field(ge=64, le=4096, multiple_of=64)] = Field(
        1024, description="pictures are sorted into aspect buckets of about this number squared pixels"
    )
    buckets: Buckets = Buckets()
    captions: Captions = Captions()
    crop_ids: Annotated[Literal["true", "kohya"], BeforeValidator(_word)] = Field(
        "true", description="the crop that the model is told of: the real one, or the offset that kohya computes"
    )
    problems: Problems = Problems()
    cache: Cache | None = Field(None, description="without it, latents are made again in every run")

    @model_validator(mode="after")
    def _around_the_resolution(self) -> Data:
        sides = self.buckets
        for name, side in (("smallest", sides.smallest), ("step", sides.step)):
            if side is not None and side > self.resolution:
                raise ValueError(f"buckets.{name} and resolution: {side} is more than {self.resolution}")
        if sides.largest is not None and sides.largest < self.resolution:
            raise ValueError(f"buckets.largest and resolution: {sides.largest} is less than {self.resolution}")
        return self

    @model_validator(mode="after")
    def _still(self) -> Data:
        captions = self.captions
        moving = captions.arranges or captions.dropout or captions.wildcards
        if self.cache and self.cache.text and moving:
            raise ValueError(
                "cache.text needs captions that stay as they are: no dropout, wildcards, shuffle or warmup"
            )
        return self
