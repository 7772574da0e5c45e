"""The index of a corpus: one row for each picture, in Arrow files that every worker maps into its memory.

Owns how rows lie on disk: a folder with `index.json`, which names the generation that counts, and a folder for
each generation with the rows and their sizes. A generation is written under another name, flushed and renamed, and
only then named in `index.json`: a reader sees the old one or the new one, never half. The generation before stays
for who opens it at that moment; who works with one for long keeps it (`keeping`). Refuses an index whose files are
not those that were written.
"""

from __future__ import annotations

import contextlib
import errno
import json
import secrets
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from clusterft_trainer.corpus import drafts
from clusterft_trainer.disk import DRAFT, flush, replace
from clusterft_trainer.errors import DataError, storing

SCHEMA_NUMBER = 1
BATCH = 16_384  # rows of a record batch; all have as many but the last, so that a row is found by division
KEPT = 2  # generations

SCHEMA = pa.schema(
    [
        pa.field("source", pa.int16(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("hash", pa.binary(16)),  # null where there is no picture
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("npz", pa.string(), nullable=False),
        # What a later ingest compares and reports; no worker ever reads these pages.
        pa.field("key", pa.uint64(), nullable=False),  # of source and name
        pa.field("picture_stamp", pa.binary(24), nullable=False),  # size, time and inode; zeros: read it again
        pa.field("text_stamp", pa.binary(24), nullable=False),
        pa.field("fault", pa.uint8(), nullable=False),  # faults.Fault of the picture, of its text
        pa.field("text_fault", pa.uint8(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
_ROWS, _SIZES, HEAD = "index.arrow", drafts.LOCKED, "index.json"
READ = (_ROWS, _SIZES)  # files of a generation that workers map


@dataclass(frozen=True, slots=True)
class Row:
    """One picture, as it is shown."""

    source: int  # position in data.sources
    name: str  # relative to its source's root, posix; unique within the source
    file: str  # what to open: absolute path or URL
    offset: int  # -1: the whole file; else where the picture's bytes begin in `file` (a tar)
    size: int  # bytes of the picture
    hash: bytes  # XXH3-128 of the picture's bytes; empty where there is no picture (a kohya npz alone)
    width: int  # pixels, after EXIF rotation
    height: int
    caption: str
    score: float | None
    npz: str  # kohya's latent cache of it, an absolute path or URL, or ""


@dataclass(frozen=True, slots=True)
class Head:
    """What `index.json` says."""

    generation: str  # name of its folder
    digest: str
    rows: int
    bytes: dict[str, int]  # of each file of the generation
    sources: tuple[dict[str, Any], ...]  # what each one is and how many rows it has


class Index:
    """The rows of a published index. Memory is that of the operating system's cache, shared by all workers."""

    def __init__(self, folder: Path, head: Head, file: pa.RecordBatchFileReader) -> None:
        self.folder = folder
        self.head = head
        self._file = file
        self._batches: dict[int, _Batch] = {}

    @classmethod
    def open(cls, folder: Path) -> Index:
        """The generation that counts now."""
        head = read_head(folder)
        place = folder / head.generation
        for name, size in head.bytes.items():
            there = (place / name).stat().st_size if (place / name).is_file() else None
            if there != size:
                raise DataError(
                    f"{place / name} has {'no' if there is None else there} bytes, {size} were written.",
                    "Delete that folder and prepare the data again: pictures are not touched by it.",
                )
        return cls(place, head, pa.ipc.open_file(pa.memory_map(str(place / _ROWS))))

    @property
    def digest(self) -> str:
        """Of names, captions and sizes in order: what a resumed run compares."""
        return self.head.digest

    def __len__(self) -> int:
        return self.head.rows

    def row(self, i: int) -> Row:
        """A row by its number; 0 is the first."""
        batch, at = self._at(i)
        return batch.row(at)

    def caption(self, i: int) -> str:
        """The caption alone."""
        batch, at = self._at(i)
        return batch.caption.text(at)

    def _at(self, i: int) -> tuple[_Batch, int]:
        if not 0 <= i < self.head.rows:
            raise IndexError(i)
        number, at = divmod(i, BATCH)
        batch = self._batches.get(number)
        if batch is None:
            batch = self._batches[number] = _Batch(self._file.get_batch(number))
        return batch, at

    def sizes(self) -> Any:
        """(n, 2) int32 of width and height, mapped and not copied."""
        import numpy as np

        if not self.head.rows:
            return np.zeros((0, 2), np.int32)
        return np.memmap(self.folder / _SIZES, np.int32, "r", shape=(self.head.rows, 2))

    def column(self, name: str) -> pa.ChunkedArray:
        """All of one column, mapped and not copied."""
        number = SCHEMA.get_field_index(name)
        batches = (self._file.get_batch(k) for k in range(self._file.num_record_batches))
        return pa.chunked_array([b.column(number) for b in batches], SCHEMA.field(number).type)

    def batches(self) -> Iterable[pa.RecordBatch]:
        """The rows in order, some thousands at a time."""
        return (self._file.get_batch(k) for k in range(self._file.num_record_batches))


class _Texts:
    """A column of strings, read where it lies: ten times as fast as Arrow's scalars."""

    def __init__(self, column: pa.Array) -> None:
        _, ends, data = column.buffers()
        self._ends = memoryview(ends).cast("i")
        self._data = memoryview(data) if data is not None else memoryview(b"")

    def text(self, at: int) -> str:
        return str(self._data[self._ends[at] : self._ends[at + 1]], "utf-8")


_NUMBERS: dict[str, Literal["h", "i", "q"]] = {
    "source": "h",
    "offset": "q",
    "size": "q",
    "width": "i",
    "height": "i",
}


class _Batch:
    """One record batch with its columns at hand; as it comes out of a file, it begins where its buffers begin."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self.caption = _Texts(batch.column("caption"))

    @cached_property
    def _columns(self) -> tuple[list[memoryview], list[_Texts], memoryview]:
        columns = [memoryview(self._batch.column(n).buffers()[1]) for n in _NUMBERS]
        numbers = [column.cast(kind) for column, kind in zip(columns, _NUMBERS.values(), strict=True)]
        texts = [_Texts(self._batch.column(n)) for n in ("name", "file", "npz")]
        return numbers, texts, memoryview(self._batch.column("hash").buffers()[1])

    def row(self, at: int) -> Row:
        (source, offset, size, width, height), (name, file, npz), hashes = self._columns
        score = self._batch.column("score")
        known = self._batch.column("hash")
        return Row(
            source[at],
            name.text(at),
            file.text(at),
            offset[at],
            size[at],
            bytes(hashes[at * 16 : at * 16 + 16]) if not known.null_count or known[at].is_valid else b"",
            width[at],
            height[at],
            self.caption.text(at),
            None if score.null_count == len(score) else score[at].as_py(),
            npz.text(at),
        )


def read_head(folder: Path) -> Head:
    """What `index.json` says; refuses one of another version."""
    path = folder / HEAD
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body.pop("schema") != SCHEMA_NUMBER:
            raise ValueError("another version wrote it")
        return Head(**body | {"sources": tuple(body["sources"])})
    except FileNotFoundError as error:
        raise DataError(f"There is no index in {folder}.", "Prepare the data first: clusterft prep.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no index that this version reads ({error}).",
            "Delete that folder and prepare the data again: pictures are not touched by it.",
        ) from error


class Writer:
    """Writes one generation, batch by batch, and publishes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.draft = folder / f"{DRAFT}{secrets.token_hex(4)}"
        with storing("The index", self.draft):
            self.draft.mkdir(parents=True)
            self._sink = pa.OSFile(str(self.draft / _ROWS), "wb")
            self._file = pa.ipc.new_file(self._sink, SCHEMA)
            self._sizes = (self.draft / _SIZES).open("wb")
            drafts.hold(self._sizes)
        self._rows = 0
        self._waiting: list[pa.RecordBatch] = []
        self._number = 0  # of rows in there
        self._digest = _Digest()

    def add(self, batch: pa.RecordBatch) -> None:
        """Rows that follow those before in the order of (source, name); of any number."""
        self._waiting.append(batch)
        self._number += len(batch)
        if self._number >= BATCH:
            self._pass_on(self._number // BATCH * BATCH)

    def _pass_on(self, rows: int) -> None:
        """Write that many of the waiting rows, in batches of equal length."""
        table = pa.Table.from_batches(self._waiting, SCHEMA)
        with storing("The index", self.draft):
            for start in range(0, rows, BATCH):
                self._write(table.slice(start, min(BATCH, rows - start)).combine_chunks().to_batches()[0])
        rest = table.slice(rows)
        self._waiting, self._number = rest.to_batches(), len(rest)

    def _write(self, batch: pa.RecordBatch) -> None:
        import numpy as np

        self._file.write_batch(batch)
        sizes = np.stack([batch.column("width").to_numpy(), batch.column("height").to_numpy()], axis=1)
        self._sizes.write(np.ascontiguousarray(sizes, "<i4").tobytes())
        self._digest.add(batch.column("name"), batch.column("caption"), sizes)
        self._rows += len(batch)

    def publish(self, sources: Sequence[dict[str, Any]]) -> Index:
        """Flush, name the generation and have `index.json` tell of it."""
        if self._number:
            self._pass_on(self._number)
        with storing("The index", self.draft):
            self._file.close()
            self._sink.close()
            self._sizes.flush()  # it stays open, and so locked, until the draft has a name that counts
            files = sorted(p for p in self.draft.iterdir() if p.is_file())
            for path in files:
                flush(path)
            flush(self.draft)
            lengths = {p.name: p.stat().st_size for p in files}
            generation = self._named()
            self._sizes.close()
            body = {
                "schema": SCHEMA_NUMBER,
                "generation": generation,
                "digest": self._digest.done(),
                "rows": self._rows,
                "bytes": lengths,
                "sources": list(sources),
            }
            replace(self.folder / HEAD, json.dumps(body, indent=1))
            for old in _generations(self.folder)[:-KEPT]:
                shutil.rmtree(self.folder / old, ignore_errors=True)  # another ingest may be at it too
        return Index.open(self.folder)

    def _named(self) -> str:
        """Give the generation the next number; another ingest may have taken it a moment ago."""
        number = int((_generations(self.folder) or ["0"])[-1])
        while True:
            number += 1
            try:
                self.draft.rename(self.folder / f"{number:08d}")
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue
            return f"{number:08d}"

    def discard(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):  # closing writes, and the disk may be full
            self._file.close()
            self._sink.close()
            self._sizes.close()
        shutil.rmtree(self.draft, ignore_errors=True)  # the error that led here is the one to tell


class _Digest:
    """One number for names, captions and sizes, however they are cut into batches."""

    def __init__(self) -> None:
        self._parts = [xxhash.xxh3_128() for _ in range(5)]

    def add(self, names: pa.Array, captions: pa.Array, sizes: Any) -> None:
        for k, column in enumerate((names, captions)):
            _, ends, data = column.buffers()
            numbers = memoryview(ends).cast("i")[column.offset : column.offset + len(column) + 1]
            lengths = pc.binary_length(column).to_numpy()
            self._parts[2 * k].update(lengths.astype("<i4").tobytes())
            if data is not None:
                self._parts[2 * k + 1].update(memoryview(data)[numbers[0] : numbers[-1]])
        self._parts[4].update(sizes.astype("<i4").tobytes())

    def done(self) -> str:
        return xxhash.xxh3_128_hexdigest(b"".join(p.digest() for p in self._parts))


def write(folder: Path, rows: Iterable[Row], sources: Sequence[dict[str, Any]] = ()) -> Index:
    """Publish an index of rows that fit into memory, in any order."""
    ordered = sorted(rows, key=lambda r: (r.source, r.name))
    columns = []
    for field in SCHEMA:
        blank: Any = bytes(24) if field.name.endswith("_stamp") else "" if field.name == "detail" else 0
        values = [getattr(row, field.name, blank) for row in ordered]
        if field.name == "hash":
            values = [value or None for value in values]
        columns.append(pa.array(values, field.type))
    writer = Writer(folder)
    writer.add(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
    return writer.publish(sources)


def _generations(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.isdecimal() and p.is_dir())
