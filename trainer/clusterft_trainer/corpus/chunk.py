"""Some thousand pictures on their way through ingest, before and after they are looked at.

Owns the seam between sources and workers: a `Chunk` is what a source knows before anything is opened, a `Piece`
says where the rows are that became of it. Light, so that workers are at work while this process still imports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusterft_trainer.corpus import look
from clusterft_trainer.corpus.columns import Columns

SIZE = 2048  # pictures of a chunk


@dataclass(frozen=True, slots=True)
class Texts:
    """Captions that a source knows without opening a file for each."""

    captions: Sequence[str | None]  # None: it has none
    faults: Sequence[int]
    scores: Sequence[float | None] | None = None
    sizes: Sequence[tuple[int, int] | None] | None = None  # as the metadata says


@dataclass(frozen=True, slots=True)
class Chunk:
    """Pictures of one source, before they are looked at."""

    source: int
    root: str
    names: tuple[str, ...]
    text_files: tuple[str, ...] | None = None  # the worker reads them, below `text_root`
    text_root: str = ""
    texts: Texts | None = None
    faults: tuple[tuple[int, int], ...] = ()  # place and text fault, seen in the listing
    ordered: bool = False  # sorted by name, and behind all chunks before it
    total: int | None = None  # pictures of this source, where the listing tells
    work: Callable[..., Columns] = look.files  # what a worker does with it, given a job
    extra: tuple[object, ...] = ()  # what that needs beside the job
    archive: tuple[str, bytes] | None = None  # a tar that holds them, and its stamp


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of one source: numbers of known ones, or where the journal has them."""

    source: int
    ordered: bool  # sorted by name, and behind all pieces before it
    rows: int
    known: Any = None  # an array
    journal: tuple[Path, int, int] | None = None
