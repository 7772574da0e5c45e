"""Kohya's metadata, of both generations: a JSON object with a key for each picture, or JSON lines.

Owns what its entries mean; the file is streamed, whatever its size. Pictures are looked for below the folder,
latent caches below the folder of the caches, by workers; where there is a cache, no picture is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from clusterft_trainer.config.sources import KohyaSource
from clusterft_trainer.corpus import cached, reach, streamed, tags
from clusterft_trainer.corpus.chunk import Chunk
from clusterft_trainer.corpus.faults import Report
from clusterft_trainer.corpus.sources import entries
from clusterft_trainer.corpus.sources.entries import Entry


def chunks(source: KohyaSource, number: int, report: Report, *, npz: bool) -> Iterator[Chunk]:
    """The pictures that the file names."""
    folder = source.folder or reach.folder_of(source.kohya)
    caches = (source.npz or folder) if npz else ""
    found = _entries(source.kohya, folder, number, report)
    yield from entries.chunked(found, number, folder, cached.look_for, (caches,))


def _entries(file: str, folder: str, number: int, report: Report) -> Iterator[Entry]:
    with reach.opened(file) as opened:
        if file.endswith(".jsonl"):
            said = (
                (None if body is None else body.get("image_path"), body or {}, f"{file}:{line}")
                for line, body in streamed.lines(opened, file)
            )
        else:
            said = ((key, body, key) for key, body in streamed.members(opened, file))
        for key, body, place in said:
            name = entries.named(key, folder)
            if name is None or not isinstance(body, dict):
                entries.unusable(report, number, place, "the entry names no picture or is no object")
                continue
            yield _entry(name, body)


def _entry(name: str, body: dict[str, Any]) -> Entry:
    text, more = body.get("caption"), body.get("tags")
    if isinstance(more, list):
        more = ", ".join(str(tag) for tag in more)
    sound = all(part is None or isinstance(part, str) for part in (text, more))
    caption, fault = entries.admitted(tags.joined(text, more) if sound else 0)
    hint = (entries.size(body.get("image_size")), entries.size(body.get("train_resolution")))
    return Entry(name, caption, fault, hint=hint)
