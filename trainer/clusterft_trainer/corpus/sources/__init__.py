"""How each kind of source lists its pictures; one module for each, which comes in when such a source does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clusterft_trainer.config.sources import (
    FolderSource,
    KohyaSource,
    Source,
    TableSource,
    TaggedSource,
    TarSource,
)
from clusterft_trainer.corpus.chunk import Chunk
from clusterft_trainer.corpus.crew import Crew
from clusterft_trainer.corpus.faults import Report
from clusterft_trainer.errors import ConfigError, DataError


def chunks(given: Sequence[Source], report: Report, crew: Crew, *, npz: bool) -> Iterator[Chunk]:
    """The pictures of all sources, one source after the other."""
    for number, source in enumerate(given):
        with _named(number):
            yield from _of(source, number, report, crew, npz=npz)


@contextmanager
def _named(number: int) -> Iterator[None]:
    """What is wrong with a source as a whole, with its place in the settings."""
    try:
        yield
    except DataError as error:
        raise DataError(f"data.sources[{number}]: {error.message}", error.remedy) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"data.sources[{number}]: {error.filename or error} is not there on this node.",
            "Give what every node sees under the same path: set data.sources.",
        ) from error


def _of(source: Source, number: int, report: Report, crew: Crew, *, npz: bool) -> Iterator[Chunk]:
    match source:
        case FolderSource():
            from clusterft_trainer.corpus.sources import folder

            yield from folder.chunks(source, number, report)
        case TaggedSource():
            from clusterft_trainer.corpus.sources import tagged

            yield from tagged.chunks(source, number, report, crew)
        case KohyaSource():
            from clusterft_trainer.corpus.sources import kohya

            yield from kohya.chunks(source, number, report, npz=npz)
        case TableSource():
            from clusterft_trainer.corpus.sources import table

            yield from table.chunks(source, number, report)
        case TarSource():
            from clusterft_trainer.corpus.sources import tars

            yield from tars.chunks(source, number)
        case _:
            raise ConfigError(
                f"data.sources[{number}] draws its pictures itself: there is nothing to index.",
                "Run prep for sources that have files.",
            )
