"""A folder with metadata/ (a JSON file for each picture: tags, score, path) and images/, at any depth.

Owns which metadata files count and what the rules make of them; workers read them. Refuses a path that leads out
of the folder, picture by picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from clusterft_trainer.config.sources import TaggedSource
from clusterft_trainer.corpus import chunk, look, metadata, reach, tags
from clusterft_trainer.corpus.chunk import Chunk
from clusterft_trainer.corpus.crew import Crew
from clusterft_trainer.corpus.faults import Report
from clusterft_trainer.corpus.sources import entries, folder
from clusterft_trainer.corpus.sources.entries import Entry
from clusterft_trainer.errors import DataError


def chunks(source: TaggedSource, number: int, report: Report, crew: Crew) -> Iterator[Chunk]:
    """The pictures whose metadata the rules let through."""
    root = source.tagged.rstrip("/")
    names = _listed(f"{root}/metadata")
    if not names:
        raise DataError(
            f"There is no metadata file in {root}/metadata.",
            "Put a JSON file with tags, score and path there for each picture.",
        )
    kept = [name for place, name in enumerate(names) if tags.chosen(place, source.rules)]
    if len(kept) < len(names):
        report.left_out["every_nth"] += len(names) - len(kept)

    def work() -> Iterator[tuple[tuple[str, ...], Callable[..., list[metadata.Said]], tuple[Any, ...]]]:
        for start in range(0, len(kept), chunk.SIZE):
            part = tuple(kept[start : start + chunk.SIZE])
            yield part, metadata.read, (f"{root}/metadata", part)

    said = (one for _, part in crew.each(work()) for one in part)
    yield from entries.chunked(_entries(said, source, root, number, report), number, root, look.files)


def _entries(
    said: Iterator[metadata.Said], source: TaggedSource, root: str, number: int, report: Report
) -> Iterator[Entry]:
    for one in said:
        name = entries.named(one.path, root)
        if one.wrong or name is None:
            entries.unusable(report, number, f"metadata/{one.name}", one.wrong or "it names no picture")
            continue
        text = tags.caption(one.tags, one.score, source.rules)
        if isinstance(text, tags.LeftOut):
            report.left_out[text.rule] += 1
            continue
        caption, fault = entries.admitted(text)
        yield Entry(name, caption, fault, one.score)


def _listed(root: str) -> list[str]:
    if not reach.is_url(root):
        return sorted(folder.listed(root, (".json",)))
    prefix = reach.path_of(root) + "/"
    return sorted(e["name"].removeprefix(prefix) for e in reach.below(root) if e["name"].endswith(".json"))
