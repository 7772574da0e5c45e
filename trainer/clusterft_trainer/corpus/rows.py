"""How a worker's columns become rows of the index.

Owns the join of what a source says of pictures, what a worker found, and what was known from the last time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from clusterft_trainer.corpus.chunk import Chunk, Texts
from clusterft_trainer.corpus.columns import SAME, UNSTAMPED, Columns
from clusterft_trainer.corpus.index import SCHEMA

KNOWN = np.dtype(
    [
        ("picture_stamp", "V24"),
        ("text_stamp", "V24"),
        ("hash", "V16"),
        ("size", "<i8"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("fault", "u1"),
        ("text_fault", "u1"),
    ]
)


def keys_of(source: int, names: Sequence[str]) -> np.ndarray:
    """A number for each name of a source."""
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(name.encode(), source) for name in names), np.uint64, len(names))


def rows(chunk: Chunk, found: Columns, known: pa.RecordBatch | None) -> pa.RecordBatch:
    """One record batch of the index's schema; `known` holds the rows that the worker found unchanged, in order."""
    names = found.names or chunk.names
    if known is not None and len(known) == len(names):
        batch = _set(known, _places(chunk, pa.array(names, pa.string()), found))
    else:
        batch = _fresh(chunk, names, found)
        if known is not None:
            batch = _overlaid(batch, known, np.frombuffer(found.flags, np.uint8) == SAME)
    if chunk.faults:
        batch = _marked(batch, chunk.faults)
    return _with_texts(batch, chunk.texts) if chunk.texts is not None else batch


def _marked(batch: pa.RecordBatch, faults: Sequence[tuple[int, int]]) -> pa.RecordBatch:
    """Faults that the listing showed; without a stamp, the texts are read again next time."""
    values = batch.column("text_fault").to_numpy().copy()
    stamps = np.frombuffer(batch.column("text_stamp").buffers()[1], "V24")[batch.column("text_stamp").offset :]
    stamps = stamps[: len(batch)].copy()
    for place, fault in faults:
        values[place] = fault
        stamps[place] = UNSTAMPED
    return _set(batch, {"text_fault": pa.array(values), "text_stamp": _stamps(stamps.tobytes(), len(batch))})


def _fresh(chunk: Chunk, names: Sequence[str], found: Columns) -> pa.RecordBatch:
    count = len(names)
    named = pa.array(names, pa.string())
    marks = np.frombuffer(found.hash, np.uint8).reshape(count, 16).any(axis=1)
    valid = pa.py_buffer(np.packbits(marks, bitorder="little").tobytes())
    empty = pa.array([""] * count, pa.string())
    texts = _text_columns(found, count)
    values = {
        "name": named,
        "offset": _numbers(pa.int64(), found.offsets) if found.offsets else pa.array(np.full(count, -1, np.int64)),
        "size": _numbers(pa.int64(), found.size),
        "hash": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [valid, pa.py_buffer(found.hash)]),
        "width": _numbers(pa.int32(), found.width),
        "height": _numbers(pa.int32(), found.height),
        "score": pa.nulls(count, pa.float64()),
        "key": pa.array(keys_of(chunk.source, names)),
        "picture_stamp": _stamps(found.picture_stamp, count),
        "fault": _numbers(pa.uint8(), found.fault),
        "detail": pa.array([found.details.get(k, "") for k in range(count)]) if found.details else empty,
    }
    values |= texts | _places(chunk, named, found)
    return pa.RecordBatch.from_arrays([values[f.name] for f in SCHEMA], schema=SCHEMA)


def _places(chunk: Chunk, names: pa.Array, found: Columns) -> dict[str, pa.Array]:
    """Which source it is and where its files lie: both follow from the settings, not from an earlier ingest."""
    return {
        "source": pa.array(np.full(len(names), chunk.source, np.int16)),
        "file": pa.array(found.files, pa.string()) if found.files else _below(chunk.root, names),
        "npz": pa.array(found.npz or [""] * len(names), pa.string()),
    }


def _text_columns(found: Columns, count: int) -> dict[str, pa.Array]:
    """What the worker read of texts; nothing of it where it read none."""
    if found.caption_ends and len(found.text_stamp) == 24 * count:
        ends, data = pa.py_buffer(found.caption_ends), pa.py_buffer(found.captions)
        captions = pa.StringArray.from_buffers(count, ends, data)
        return {
            "caption": captions,
            "text_stamp": _stamps(found.text_stamp, count),
            "text_fault": _numbers(pa.uint8(), found.text_fault),
        }
    return {
        "caption": pa.array([""] * count, pa.string()),
        "text_stamp": _stamps(UNSTAMPED * count, count),
        "text_fault": pa.array(np.zeros(count, np.uint8)),
    }


def _below(root: str, names: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(root.rstrip("/"), names, "/")


def _numbers(kind: pa.DataType, data: bytes) -> pa.Array:
    return pa.Array.from_buffers(kind, len(data) * 8 // kind.bit_width, [None, pa.py_buffer(data)])


def _stamps(data: bytes, count: int) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(24), count, [None, pa.py_buffer(data)])


def _overlaid(batch: pa.RecordBatch, known: pa.RecordBatch, same: np.ndarray) -> pa.RecordBatch:
    """The known rows in the places that the worker left alone."""
    places = np.arange(len(batch))
    places[same] = len(batch) + np.arange(len(known))
    merged = pa.Table.from_batches([batch, known]).take(places).combine_chunks().to_batches()[0]
    return _set(merged, {name: batch.column(name) for name in ("source", "file", "npz")})


def _with_texts(batch: pa.RecordBatch, texts: Texts) -> pa.RecordBatch:
    count = len(batch)
    columns = {
        "caption": pa.array([text or "" for text in texts.captions], pa.string()),
        "text_fault": pa.array(np.array(texts.faults, np.uint8)),
    }
    if texts.scores is not None:
        columns["score"] = pa.array(texts.scores, pa.float64())
    if texts.sizes is not None and any(texts.sizes):
        columns["detail"] = _differing(batch, texts.sizes)
    assert all(len(column) == count for column in columns.values())
    return _set(batch, columns)


def _differing(batch: pa.RecordBatch, sizes: Sequence[tuple[int, int] | None]) -> pa.Array:
    """Tell in `detail` where a picture has another size than its metadata says."""
    seen = zip(batch.column("width").to_pylist(), batch.column("height").to_pylist(), strict=True)
    details = batch.column("detail").to_pylist()
    for k, (there, said) in enumerate(zip(seen, sizes, strict=True)):
        if said is not None and there != said and there[0] and not details[k]:
            details[k] = f"{SIZE_DIFFERS}{said[0]}x{said[1]} said, {there[0]}x{there[1]} seen"
    return pa.array(details, pa.string())


SIZE_DIFFERS = "size: "


def _set(batch: pa.RecordBatch, columns: dict[str, pa.Array]) -> pa.RecordBatch:
    arrays = [columns.get(f.name, batch.column(k)) for k, f in enumerate(SCHEMA)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
