"""What is missing of a data set: rows of the index against entries of the cache. Needs torch, to know the model.

Owns the number that tells whether training may begin. Refuses to guess where the sources have not been read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clusterft_trainer import build
from clusterft_trainer.config import BuiltinSource
from clusterft_trainer.corpus import ingest
from clusterft_trainer.corpus.index import Index
from clusterft_trainer.errors import DataError
from clusterft_trainer.latents import healing, plan, writing
from clusterft_trainer.latents.catalogue import Catalogue
from clusterft_trainer.latents.making import Order
from clusterft_trainer.prep import encoding, loading
from clusterft_trainer.prep.stages import Asked, Stage


@dataclass(frozen=True, slots=True)
class Count:
    """Of the entries that one stage should have made."""

    entries: int
    missing: int
    broken: int  # of pictures that cannot be decoded; they are not missing

    def body(self) -> dict[str, int]:
        """For a JSON document."""
        return {"entries": self.entries, "missing": self.missing, "broken": self.broken}


@dataclass(frozen=True, slots=True)
class Counted:
    """All of it."""

    index: Index | None
    stages: dict[Stage, Count]
    modelled: bool = True  # false where the builtin model has not been made, so that no entry can be named

    @property
    def missing(self) -> int | None:
        """Entries; None where the sources have not been read, or there is no model yet."""
        return (
            None if self.index is None or not self.modelled else sum(one.missing for one in self.stages.values())
        )

    def body(self) -> dict[str, Any]:
        """What is prepared, against the sources as they were read last."""
        index = None
        if self.index is not None:
            index = {"pictures": len(self.index), "digest": self.index.digest}
        stages: dict[str, Any] = {name: one.body() for name, one in self.stages.items()}
        return {
            "missing": self.missing,  # entries; null where no source has been read, or there is no model yet
            "index": index,  # pictures, and the digest of names, captions and sizes; null where no source was read
            **stages,  # `latents`, `text`: where wanted: entries, those missing, those broken
        }


def count(given: Asked) -> Counted:
    """Look into the shared directory."""
    index = _index(given)
    cache = given.config.data.cache
    if index is None or cache is None:
        return Counted(index, {})
    home = given.home / "builtin"
    if given.config.model.startswith("builtin:") and not home.is_dir():
        return Counted(index, {}, modelled=False)
    names = [name for name, stage in encoding.NEEDS if given.wants(stage)]
    parts = loading.parts(given.config, build.model_path(given.config, home), names, "cpu")
    stages: dict[Stage, Count] = {}
    if given.wants("latents"):
        stages["latents"] = _counted(encoding.latents_order(given, index, cache, parts))
    if given.wants("text"):
        stages["text"] = _counted(encoding.texts_order(given, index, cache, parts))
    return Counted(index, stages)


def _index(given: Asked) -> Index | None:
    home = given.home / "builtin"
    sources = list(given.config.data.sources)
    if any(isinstance(source, BuiltinSource) for source in sources):
        if not home.is_dir():
            return None
        sources = [build.drawn(source, home) for source in sources]
    folder = given.home / "index" / ingest.index_key(sources, given.config.data.problems, npz=given.takes_npz)
    return Index.open(folder) if _is_published(folder) else None


def _is_published(folder: Path) -> bool:
    try:
        Index.open(folder)
    except DataError:
        return False
    return True


def _counted(order: Order) -> Count:
    keys = order.wanted().keys
    every = len(plan.missing(keys, np.zeros(len(keys), bool)))
    if not order.folder.is_dir():
        return Count(every, every, 0)
    there = Catalogue.open(order.folder, order.recipe)
    places = there.locate(keys)
    known = (places >= 0) & ~healing.doubted(there, places)
    broken = plan.among(keys, writing.hopeless(writing.problems(order.folder))) & ~known
    return Count(every, len(plan.missing(keys, known | broken)), len(plan.missing(keys, ~broken)))
