"""How each kind of source lists its pictures; one module for each, which comes in when such a source does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
from clusterft_trainer.errors import ConfigError


def chunks(given: Sequence[Source], report: Report, crew: Crew, *, npz: bool) -> Iterator[Chunk]:
    """The pictures of all sources, one source after the other."""
    for number, source in enumerate(given):
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
