"""Pictures, an index of them, and an encoder that costs nothing: what tests and benchmarks of the cache share.

As a program it is one worker: `made_cache.py SHARED INDEX SECONDS`, to be killed at will.
"""

from __future__ import annotations

import dataclasses
import io
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from PIL import Image

from clusterft_trainer import placing
from clusterft_trainer.buckets import Bucket
from clusterft_trainer.config import Buckets
from clusterft_trainer.corpus import index
from clusterft_trainer.corpus.index import Index, Row
from clusterft_trainer.latents import making, needs, session, shard
from clusterft_trainer.latents.feeding import Feeder, Pictures
from clusterft_trainer.latents.key import Recipe

RECIPE = Recipe("stub", "float32", "mean", False, 0)
RESOLUTION = 64
QUICK = session.Rhythm(20.0, 0.5)  # slow enough for a machine that has much else to do
SIZES = ((64, 64), (90, 60), (60, 90), (128, 128))


def pictures(
    folder: Path, count: int, sizes: Sequence[tuple[int, int]] = SIZES, *, suffix: str = ".bmp"
) -> list[Row]:
    """Different pictures, as files and as rows."""
    folder.mkdir(parents=True, exist_ok=True)
    source = np.random.default_rng(1)
    rows = []
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        image = Image.fromarray(source.integers(0, 256, (height, width, 3), np.uint8))
        held = io.BytesIO()
        image.save(held, "BMP" if suffix == ".bmp" else suffix[1:].upper())
        rows.append(row(folder, f"{number:05d}{suffix}", held.getvalue(), (width, height)))
    return rows


def row(folder: Path, name: str, data: bytes, size: tuple[int, int], caption: str = "a thing") -> Row:
    """Write a file and tell what the index would say of it."""
    path = folder / name
    path.write_bytes(data)
    digest = xxhash.xxh3_128_digest(data)
    return Row(0, name, str(path), -1, len(data), digest, *size, caption, None, "")


def indexed(folder: Path, rows: Sequence[Row]) -> Index:
    """The index of them."""
    return index.write(folder, rows)


class Stub:
    """Means over 8 by 8 pixels; sleeps as long as a GPU would work."""

    def __init__(self, seconds: float = 0.0, batch: int = 4, recipe: Recipe = RECIPE) -> None:
        self._seconds = seconds
        self._batch = batch
        self.recipe = recipe
        self.keys: list[bytes] = []

    def form(self, bucket: Bucket) -> shard.Form:
        shape = (4, bucket.height // 8, bucket.width // 8)
        return shard.latent_form(self.recipe, shape, (bucket.width, bucket.height))

    def batch(self, bucket: Bucket) -> int:
        return self._batch

    def encode(self, bucket: Bucket, inputs: Any, keys: Sequence[bytes]) -> list[np.ndarray]:
        began = time.monotonic()
        self.keys += keys
        count, channels, height, width = inputs.shape
        blocks = inputs.reshape(count, channels, height // 8, 8, width // 8, 8)
        means = blocks.mean(axis=(3, 5), dtype=np.float32)
        found = np.concatenate([means, means[:, :1]], axis=1)
        time.sleep(max(0.0, self._seconds * count - (time.monotonic() - began)))
        return [found if not self.recipe.flip else np.stack([found, found[..., ::-1]], axis=1)]


def order(shared: Path, found: Index, recipe: Recipe = RECIPE) -> making.Order:
    """What prep would ask for."""
    by = placing.rules(Buckets(), RESOLUTION)
    return needs.latents(found, by, recipe, shared / "latents" / recipe.digest())


def work(
    shared: Path,
    found: Index,
    encoder: Stub,
    *,
    owner: str = "one",
    stop: session.Stop | None = None,
    rhythm: session.Rhythm = QUICK,
) -> making.Made:
    """One worker's part."""

    def feeder() -> Feeder:
        return Pictures(found, 2)

    with session.Session(shared / "work", owner, stop, rhythm) as member:
        return making.make(member, order(shared, found, encoder.recipe), feeder, lambda: encoder)


class Logged(Stub):
    """Writes down what it encodes, so that it is known after a kill."""

    def __init__(self, seconds: float, log: Path) -> None:
        super().__init__(seconds)
        self._log = log.open("a")

    def encode(self, bucket: Bucket, inputs: Any, keys: Sequence[bytes]) -> list[np.ndarray]:
        self._log.write("".join(f"{key.hex()}\n" for key in keys))
        self._log.flush()
        return super().encode(bucket, inputs, keys)


def main() -> None:
    """One worker as a process."""
    shared, found, seconds = Path(sys.argv[1]), Index.open(Path(sys.argv[2])), float(sys.argv[3])
    stop = session.Stop()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    name = session.owner_name({})
    try:
        work(shared, found, Logged(seconds, shared / f"{name}.log"), owner=name, stop=stop)
    except session.Stopped:
        sys.exit(3)


def changed(recipe: Recipe, **fields: Any) -> Recipe:
    """Another one."""
    return dataclasses.replace(recipe, **fields)


if __name__ == "__main__":
    main()
