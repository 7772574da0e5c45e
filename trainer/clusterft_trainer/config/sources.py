"""Where pictures and their captions come from: one class for each way in which data sets lie on disks.

A location is a path, absolute on the node or relative to job.yaml, or a URL such as s3://bucket/prefix. Refuses
to guess: each source is told apart by the key that names its location.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from clusterft_trainer.config.base import PositiveInt, Section

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".avif"})  # how their files end
TABLES = (".parquet", ".csv", ".jsonl")
Location = Annotated[str, Field(min_length=1)]


class _Source(Section):
    repeats: PositiveInt = Field(1, description="how often an epoch shows each picture of this source")


class FolderSource(_Source):
    """Pictures in a folder (searched through), each with a caption in a text file of the same stem."""

    folder: Location = Field(description="absolute on the node, relative to job.yaml, or s3://")
    captions: Location | None = Field(
        None, description="folder with the text files, laid out like `folder`; beside the pictures if not given"
    )
    suffixes: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        (".txt", ".caption"), description="of the text files; the first that is there counts"
    )

    @model_validator(mode="after")
    def _on_one_storage(self) -> FolderSource:
        if self.captions is not None and ("://" in self.folder) != ("://" in self.captions):
            raise ValueError("captions and folder lie on different storage: keep pictures and texts on one")
        return self


class TagRules(Section):
    """What becomes of a picture's tags and score before training; applied in the order of these settings."""

    absolute_minimum_score: float | None = Field(None, description="a lower score leaves the picture out")
    score_tags: tuple[int, ...] = Field(
        (), description="adds the tag scrN for the highest of these that the score reaches"
    )
    bonus: dict[str, float] = Field({}, description="tag to what it adds to the score that minimum_score looks at")
    minimum_score: float | None = Field(None, description="a lower score, bonuses included, leaves it out")
    blacklist: tuple[str, ...] = Field((), description="a picture with one of these tags is left out")
    non_caption: tuple[str, ...] = Field(
        (), description="tags that captions do not show; one that ends in ':' stands for all that begin with it"
    )
    replacements: dict[str, str] = Field({}, description="text to what stands for it in tags, one after the other")
    every_nth: PositiveInt | None = Field(None, description="take only each n-th metadata file")
    not_every_nth: PositiveInt | None = Field(
        None, description="take all but each n-th: the other half of a source with every_nth"
    )

    @model_validator(mode="after")
    def _one_half(self) -> TagRules:
        if self.every_nth and self.not_every_nth:
            raise ValueError("every_nth and not_every_nth exclude each other")
        return self


class TaggedSource(_Source):
    """A folder with metadata/ (JSON files with tags, score and path) and images/, at any depth."""

    tagged: Location = Field(description="the folder that holds metadata/ and images/")
    rules: TagRules = TagRules()


class KohyaSource(_Source):
    """Kohya's metadata file, of either generation, and the pictures or .npz caches that it names."""

    kohya: Location = Field(description="the .json or .jsonl file")
    folder: Location | None = Field(None, description="where the pictures lie; beside the file if not given")
    npz: Location | None = Field(None, description="where the .npz caches lie; beside the pictures if not given")


class Columns(Section):
    """What a table calls things."""

    file: str = Field("filename", min_length=1)
    caption: str = Field("caption", min_length=1)
    width: str | None = Field("width", description="a table without it costs a look into each picture")
    height: str | None = Field("height")
    score: str | None = None
    tags: str | None = Field(None, description="a list of tags, appended to the caption")


class TableSource(_Source):
    """A CSV, JSON lines or Parquet table with a row for each picture."""

    table: Location = Field(description="file, or several with a pattern such as meta/*.parquet")
    folder: Location | None = Field(None, description="where the pictures lie; beside the table if not given")
    columns: Columns = Columns()


class TarSource(_Source):
    """Webdataset's tar files: members of one stem belong together, the picture and its text."""

    tars: Location = Field(description="folder, pattern or URL of .tar files")


class BuiltinSource(Section):
    """A captioned picture set drawn by the trainer itself: for demos and for proving a cluster."""

    builtin: Literal["shapes"]
    images: PositiveInt = Field(64, description="how many pictures to draw")
    repeats: PositiveInt = Field(1, description="how often an epoch shows each picture of this source")


_KINDS = ("builtin", "tagged", "kohya", "table", "tars", "folder")


def _kind(value: object) -> str:
    """Choose the source class by its key, so that errors name the right one; kohya and table have a folder too."""
    keys = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return next((kind for kind in _KINDS if kind in keys), "folder")


Source = Annotated[
    Annotated[FolderSource, Tag("folder")]
    | Annotated[TaggedSource, Tag("tagged")]
    | Annotated[KohyaSource, Tag("kohya")]
    | Annotated[TableSource, Tag("table")]
    | Annotated[TarSource, Tag("tars")]
    | Annotated[BuiltinSource, Tag("builtin")],
    Discriminator(_kind),
]


def locations(source: Source) -> dict[str, str]:
    """What a source reads from, by setting: for mounts, and for making paths whole."""
    named = ("folder", "captions", "tagged", "kohya", "npz", "table", "tars")
    found = {name: getattr(source, name, None) for name in named}
    return {name: place for name, place in found.items() if place is not None}
