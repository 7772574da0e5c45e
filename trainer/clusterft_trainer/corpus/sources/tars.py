"""Tar files as webdataset writes them, each one piece of work.

Owns which tars there are, and that one that has not changed is not read again. Refuses compressed ones: a picture
in them has no place that could be read alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from clusterft_trainer.config.sources import TarSource
from clusterft_trainer.corpus import reach, remote, tars
from clusterft_trainer.corpus.chunk import Chunk
from clusterft_trainer.corpus.columns import STAMP
from clusterft_trainer.errors import DataError


def chunks(source: TarSource, number: int) -> Iterator[Chunk]:
    """One for each tar."""
    found = [name for name in reach.matching(source.tars, ".tar")]
    packed = [name for name in found if not name.endswith(".tar")]
    if not found or packed:
        raise DataError(
            f"{packed[0]} does not end in .tar." if packed else f"There is no .tar file in {source.tars}.",
            "Give plain tar files: compressed ones cannot be read from their midst.",
        )
    root = reach.common_folder(found)
    for location in found:
        stamp = _stamp(location)
        yield Chunk(
            source=number,
            root=root,
            names=(location.removeprefix(f"{root}/"),),
            work=tars.scan,
            extra=(location, stamp),
            archive=(location, stamp),
        )


def _stamp(location: str) -> bytes:
    if reach.is_url(location):
        entry = reach.tried(location, lambda: reach.client(location).info(reach.path_of(location)))
        return remote.stamp_of(entry)
    seen = os.stat(location)
    return STAMP.pack(seen.st_size, seen.st_mtime_ns, seen.st_ino)
