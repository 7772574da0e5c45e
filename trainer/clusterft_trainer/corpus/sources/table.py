"""Tables with a row for each picture: CSV, Parquet, JSON lines.

Owns reading them in batches, so that memory does not grow with them. The picture's own size counts; where the
table says another one, that is reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from csv import reader
from typing import Any

from clusterft_trainer.config.sources import TABLES, Columns, TableSource
from clusterft_trainer.corpus import look, reach, streamed
from clusterft_trainer.corpus.chunk import Chunk
from clusterft_trainer.corpus.faults import Report
from clusterft_trainer.corpus.sources import entries
from clusterft_trainer.corpus.sources.entries import Entry
from clusterft_trainer.errors import DataError

_ROWS = 16_384


def chunks(source: TableSource, number: int, report: Report) -> Iterator[Chunk]:
    """The pictures of all files of the table."""
    files = [name for suffix in TABLES for name in reach.matching(source.table, suffix)]
    files = sorted({name for name in files if name.endswith(TABLES)})
    if not files:
        raise DataError(
            f"{source.table} is no table: no file there ends in {', '.join(TABLES)}.",
            "Set data.sources to a table, or to a pattern that finds some.",
        )
    folder = source.folder or reach.common_folder(files)
    found = (entry for file in files for entry in _entries(file, source, folder, number, report))
    yield from entries.chunked(found, number, folder, look.files)


def _entries(file: str, source: TableSource, folder: str, number: int, report: Report) -> Iterator[Entry]:
    columns = source.columns
    # pictures lie beside the table that names them, unless a folder is given
    start = "" if source.folder else reach.folder_of(file).removeprefix(folder).lstrip("/")
    for place, row in _rows(file, columns):
        if row is None:
            entries.unusable(report, number, f"{file}:{place}", "the line is no JSON object")
            continue
        name = entries.named(row.get(columns.file), folder)
        if name is None:
            entries.unusable(report, number, f"{file}:{place}", f"no file name in {columns.file!r}")
            continue
        name = f"{start}/{name}" if start and not name.startswith("/") else name
        sides = (row.get(columns.width or ""), row.get(columns.height or ""))
        score = entries.number(row.get(columns.score)) if columns.score else None
        caption, fault = entries.admitted(_caption(row, columns))
        yield Entry(name, caption, fault, score, entries.size(sides))


def _caption(row: dict[str, Any], columns: Columns) -> object:
    """The caption, with the tags behind it."""
    text, tags = row.get(columns.caption), row.get(columns.tags) if columns.tags else None
    if isinstance(tags, list):
        tags = ", ".join(str(tag) for tag in tags if tag is not None)
    if not tags:
        return text
    return tags if not text else f"{text}, {tags}"


def _rows(file: str, columns: Columns) -> Iterator[tuple[int, dict[str, Any] | None]]:
    if file.endswith(".jsonl"):
        with reach.opened(file) as lines:
            yield from streamed.lines(lines, file)
        return
    import pyarrow as pa

    try:
        place = 0
        for batch in (_parquet if file.endswith(".parquet") else _csv)(file, columns):
            for row in batch.to_pylist():
                place += 1
                yield place, row
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{file} is not a readable table: {str(error).rstrip('.')}.", "Write it again, or mend it there."
        ) from error


def _wanted(columns: Columns, there: list[str], file: str) -> list[str]:
    """The columns to read."""
    if columns.file not in there:
        raise DataError(
            f"{file} has no column {columns.file!r}; it has {', '.join(map(repr, there[:20]))}.",
            "Set columns.file of that source.",
        )
    for name in (columns.score, columns.tags):
        if name is not None and name not in there:
            raise DataError(f"{file} has no column {name!r}.", "Mend columns of that source.")
    named = (columns.file, columns.caption, columns.width, columns.height, columns.score, columns.tags)
    return [name for name in there if name in named]


def _parquet(file: str, columns: Columns) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with reach.opened(file) as opened, pq.ParquetFile(opened) as table:
        wanted = _wanted(columns, table.schema_arrow.names, file)
        yield from table.iter_batches(_ROWS, columns=wanted)


def _csv(file: str, columns: Columns) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import csv

    texts = {name: pa.string() for name in (columns.file, columns.caption, columns.tags) if name}
    with reach.opened(file) as head:
        there = head.readline(1 << 20).decode("utf-8-sig", "replace")
    names = next(reader([there]), [])
    convert = csv.ConvertOptions(
        column_types=texts, include_columns=_wanted(columns, names, file), strings_can_be_null=False
    )
    parse = csv.ParseOptions(newlines_in_values=True)
    with reach.opened(file) as opened, csv.open_csv(opened, convert_options=convert, parse_options=parse) as table:
        yield from table
