"""A worker's part of metadata files: a small JSON for each picture, from anywhere.

Owns what such a file must hold. Says what is wrong with one instead of raising it.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from clusterft_trainer.corpus import reach
from clusterft_trainer.corpus.look import Reader

LARGEST = 1 << 20  # bytes of one file


class Said(NamedTuple):
    """What one file says, or what is wrong with it."""

    name: str
    path: str
    tags: tuple[str, ...] = ()
    score: float | None = None
    wrong: str = ""


def read(root: str, names: tuple[str, ...]) -> list[Said]:
    """What these files say."""
    if reach.is_url(root):
        client, prefix = reach.client(root), reach.path_of(root)

        def fetched(name: str) -> Said:
            return said(name, reach.tried(f"{root}/{name}", lambda: client.cat_file(f"{prefix}/{name}")))

        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(fetched, names))
    reader = Reader(root)
    try:
        return [_local(reader, name) for name in names]
    finally:
        reader.close()


def _local(reader: Reader, name: str) -> Said:
    try:
        handle = reader.opened(name)
    except OSError as error:
        return Said(name, "", wrong=error.strerror or str(error))
    try:
        return said(name, os.read(handle, LARGEST + 1))
    finally:
        os.close(handle)


def said(name: str, data: bytes) -> Said:
    """The tags, score and path in a file's bytes."""
    if len(data) > LARGEST:
        return Said(name, "", wrong=f"it is longer than {LARGEST} bytes")
    try:
        body: Any = json.loads(data)
    except (ValueError, RecursionError):
        return Said(name, "", wrong="it is not JSON in UTF-8")
    if not isinstance(body, dict):
        return Said(name, "", wrong="it is not an object")
    tags, score, path = body.get("tags"), body.get("score"), body.get("path")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        return Said(name, "", wrong="tags is not a list of texts")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float) or abs(score) > 1e18):
        return Said(name, "", wrong="score is not a number")
    if not isinstance(path, str):
        return Said(name, "", wrong="path is not a text")
    return Said(name, path, tuple(tags), None if score is None else float(score))
