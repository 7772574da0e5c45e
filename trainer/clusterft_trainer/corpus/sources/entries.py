"""What metadata says of one picture, made fit for the index, and collected into chunks.

Owns how names from files of others are written: below the source's folder, with slashes. A name that cannot be
written down or a text that cannot be a caption is a fault with a name, never a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from clusterft_trainer.corpus import chunk
from clusterft_trainer.corpus.chunk import Chunk, Texts
from clusterft_trainer.corpus.columns import LONGEST_CAPTION
from clusterft_trainer.corpus.faults import Fault, Report


class Entry(NamedTuple):
    """One picture as metadata has it."""

    name: str
    caption: str
    fault: int  # of the caption
    score: float | None = None
    size: tuple[int, int] | None = None
    hint: Any = None  # what the worker of this source needs of it


def admitted(text: object) -> tuple[str, int]:
    """A caption, and what is wrong with it."""
    if text is None:
        return "", Fault.NO_TEXT
    if not isinstance(text, str):
        return "", Fault.METADATA
    text = text.strip()
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        return "", Fault.NOT_UTF8
    if length > LONGEST_CAPTION:
        return "", Fault.LONG_TEXT
    return text, Fault.NONE if text else Fault.EMPTY_TEXT


def named(raw: object, folder: str) -> str | None:
    """A picture's name below the folder; None if it is none. What leads out of the folder stays as it is."""
    if not isinstance(raw, str) or not raw.strip() or "\0" in raw or len(raw) > 4096:
        return None
    try:
        raw.encode()
    except UnicodeEncodeError:
        return None
    name = raw.replace("\\", "/")
    start = folder.rstrip("/") + "/"
    if name.startswith(start):
        name = name[len(start) :]
    while name.startswith("./"):
        name = name[2:]
    return name or None


def number(value: object) -> float | None:
    """A score, if it is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e18 else None


def size(value: object) -> tuple[int, int] | None:
    """Width and height, if they are."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    width, height = value
    sound = all(isinstance(side, int) and not isinstance(side, bool) and 0 < side < 2**31 for side in value)
    return (width, height) if sound else None


def chunked(
    entries: Iterable[Entry],
    source: int,
    root: str,
    work: Callable[..., Any],
    extra: tuple[Any, ...] | None = None,
) -> Iterator[Chunk]:
    """Chunks of entries; where `extra` is given, hints go to the worker behind it."""
    waiting = iter(entries)
    while part := list(islice(waiting, chunk.SIZE)):
        names, captions, faults, scores, sizes, hints = zip(*part, strict=True)
        yield Chunk(
            source=source,
            root=root,
            names=names,
            texts=Texts(captions, faults, scores, sizes),
            work=work,
            extra=() if extra is None else (*extra, hints),
        )


def unusable(report: Report, source: int, what: object, why: str) -> None:
    """An entry from which no row can be made at all."""
    text = str(what)[:200].encode("utf-8", "backslashreplace").decode()
    report.add(Fault.METADATA, source, text, why)
