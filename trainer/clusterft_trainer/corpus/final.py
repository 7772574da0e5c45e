"""The end of an ingest: rows put in order, duplicates found, decisions taken, the index published.

Owns the order of rows and what is left out. Rows lie in the journal and in earlier indexes, mapped; only their
hashes, faults and places are held in memory: 30 bytes a picture.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clusterft_trainer.config.data import Problems
from clusterft_trainer.corpus.chunk import Piece
from clusterft_trainer.corpus.faults import LISTED, Fault, Report, decision
from clusterft_trainer.corpus.index import BATCH, SCHEMA, Index, Writer, read_head
from clusterft_trainer.corpus.known import LEFT, Known, batch_of
from clusterft_trainer.corpus.rows import SIZE_DIFFERS
from clusterft_trainer.errors import storing

_BLOCK = 4 * BATCH  # rows that are put in order at a time
_KEEP, _SKIP, _REFUSE = 0, 1, 2
_ACTIONS = {"keep": _KEEP, "skip": _SKIP, "refuse": _REFUSE}


class _Rows:
    """All rows of an ingest, in the order of (source, name), without being in memory."""

    def __init__(self, pieces: Sequence[Piece], known: Known) -> None:
        journals = {piece.journal[0]: None for piece in pieces if piece.journal}
        self._maps = {path: _mapped(path) for path in journals}
        mapped = {path: pa.py_buffer(one) for path, one in self._maps.items()}
        self._batches = []
        for piece in pieces:
            if piece.journal:
                path, at, length = piece.journal
                self._batches.append(batch_of(mapped[path].slice(at, length)))
            else:
                rows = known.rows(piece.known) if piece.known is not None else None
                assert rows is not None
                self._batches.append(rows)
        self._all = Known(self._batches)
        self.order = self._sorted(pieces)

    def _sorted(self, pieces: Sequence[Piece]) -> np.ndarray:
        order, at, start = [], 0, 0
        while start < len(pieces):
            end = next(
                (k for k in range(start, len(pieces)) if pieces[k].source != pieces[start].source), len(pieces)
            )
            here = pieces[start:end]
            count = sum(piece.rows for piece in here)
            if all(piece.ordered for piece in here):
                order.append(np.arange(at, at + count))
            else:
                names = pa.chunked_array([b.column("name") for b in self._batches[start:end]], pa.string())
                order.append(at + pc.sort_indices(names).to_numpy())
            at, start = at + count, end
        return np.concatenate(order).astype(np.int64) if order else np.empty(0, np.int64)

    @property
    def detailed(self) -> bool:
        """Whether anything is told in the column `detail`."""
        return any(pc.any(pc.not_equal(batch.column("detail"), "")).as_py() for batch in self._batches)

    def values(self, name: str, kind: Any) -> np.ndarray:
        """One column of fixed width, in order."""
        parts = []
        for batch in self._batches:
            column = batch.column(name)
            data = np.frombuffer(column.buffers()[1], kind)
            parts.append(data[column.offset : column.offset + len(column)])
        return np.concatenate(parts)[self.order] if parts else np.empty(0, kind)

    def some(self, places: np.ndarray) -> pa.RecordBatch | None:
        """Rows by their places in the order."""
        return self._all.rows(self.order[places])

    def blocks(self) -> Iterator[tuple[slice, pa.RecordBatch]]:
        """All of them, some at a time."""
        for start in range(0, len(self.order), _BLOCK):
            part = slice(start, min(start + _BLOCK, len(self.order)))
            rows = self._all.rows(self.order[part])
            assert rows is not None
            yield part, rows
            for one in self._maps.values():
                one.madvise(mmap.MADV_DONTNEED)  # what was read stays in the system's cache, not in our account


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def publish(
    out: Path,
    pieces: Sequence[Piece],
    known: Known | None,
    problems: Problems,
    report: Report,
    sources: Sequence[dict[str, Any]],
) -> Index:
    """Decide, report, and make the index if nothing is refused."""
    rows = _Rows(pieces, known or Known([]))
    action = _judged(rows, problems, report)
    report.write(out, problems, int((action == _KEEP).sum()))
    report.refuse(out, problems)
    if known and _is_published(pieces, action == _KEEP, known, sources, out):
        return Index.open(out)
    writer = Writer(out)
    try:
        _write(writer, rows, action == _KEEP)
        counts = np.bincount(rows.values("source", np.int16)[action == _KEEP], minlength=len(sources))
        told = [{**source, "rows": int(count)} for source, count in zip(sources, counts, strict=True)]
        index = writer.publish(told)
    except BaseException:
        writer.discard()
        raise
    return index


def _is_published(
    pieces: Sequence[Piece], keep: np.ndarray, known: Known, sources: Sequence[dict[str, Any]], out: Path
) -> bool:
    """Whether the index that is there has these rows and no others, from the same sources."""
    if known.own[0] == known.own[1] or any(piece.known is None for piece in pieces):
        return False
    numbers = np.concatenate([piece.known for piece in pieces])
    if not np.array_equal(numbers[keep], np.arange(*known.own)):
        return False
    told = [{k: v for k, v in source.items() if k != "rows"} for source in read_head(out).sources]
    return told == list(sources)


def _judged(rows: _Rows, problems: Problems, report: Report) -> np.ndarray:
    """What becomes of each row, all faults told to the report."""
    table: np.ndarray = np.zeros(256, np.uint8)
    for kind in Fault:
        table[kind] = _ACTIONS[decision(kind, problems)]
    fault, text_fault = rows.values("fault", np.uint8), rows.values("text_fault", np.uint8)
    action = np.maximum(table[fault], table[text_fault])
    _tell(rows, fault, report)
    _tell(rows, text_fault, report)
    twice = _named_twice(rows, report)
    action[twice] = np.maximum(action[twice], max(_SKIP, table[Fault.METADATA]))
    again = _duplicates(rows.values("hash", "V16"), (action == _KEEP) & (rows.values("width", np.int32) > 0))
    same: np.ndarray = np.zeros(len(action), np.uint8)
    same[again] = Fault.DUPLICATE
    _tell(rows, same, report)
    _tell_sizes(rows, report)
    action[again] = np.maximum(action[again], table[Fault.DUPLICATE])
    return action


def _tell(rows: _Rows, faults: np.ndarray, report: Report) -> None:
    for number in np.unique(faults[faults > 0]):
        places = np.flatnonzero(faults == number)
        _list(rows, places, Fault(int(number)), report)


def _list(rows: _Rows, places: np.ndarray, fault: Fault, report: Report) -> None:
    """Count all, name the first."""
    listed = rows.some(places[:LISTED])
    if listed is None:
        return
    columns = [listed.column(name).to_pylist() for name in ("source", "name", "detail")]
    for source, name, detail in zip(*columns, strict=True):
        report.add(fault, source, name, detail)
    report.counts[fault] += max(0, len(places) - LISTED)


def _named_twice(rows: _Rows, report: Report) -> np.ndarray:
    """Rows whose name the row before has, too: metadata that lists one picture twice."""
    keys = rows.values("key", np.uint64)
    again: np.ndarray = np.flatnonzero(keys[1:] == keys[:-1]) + 1
    if len(again):
        _list(rows, again, Fault.METADATA, report)
    return again


def _duplicates(hashes: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """Places of rows whose picture an earlier row has."""
    halves: np.ndarray = hashes.view("<u8").reshape(-1, 2)
    places = np.flatnonzero(sound & halves.any(axis=1))
    low, high = halves[places, 0], halves[places, 1]
    order = np.argsort(low, kind="stable")
    low, high = low[order], high[order]
    same = (low[1:] == low[:-1]) & (high[1:] == high[:-1])
    return np.sort(places[order[1:][same]])


def _tell_sizes(rows: _Rows, report: Report) -> None:
    """Pictures that are not as large as their metadata says; the picture's word counts."""
    if not rows.detailed:
        return
    for part, batch in rows.blocks():
        marked = pc.starts_with(batch.column("detail"), SIZE_DIFFERS)
        if pc.any(marked).as_py():
            places = np.flatnonzero(marked.to_numpy(zero_copy_only=False)) + part.start
            _list(rows, places, Fault.SIZE_DIFFERS, report)


def _write(writer: Writer, rows: _Rows, keep: np.ndarray) -> None:
    left = writer.draft / LEFT
    with storing("The index", left), pa.OSFile(str(left), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as others:
        for part, batch in rows.blocks():
            here = keep[part]
            if here.all():
                writer.add(batch)
                continue
            mask = pa.array(here)
            writer.add(batch.filter(mask))
            others.write_batch(batch.filter(pc.invert(mask)))
