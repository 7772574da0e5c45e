"""The cache stage: how near it comes to its encoder's bound, and whether kills and company change anything.

The encoder sleeps as long as a GPU would work on each picture, so its bound is known: pictures x seconds. Pictures
are real files that are read, hashed, decoded, resized and cropped; shards are written and flushed. Workers that
are killed are processes.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from _figures import Figure
from PIL import Image

from clusterft_trainer import placing
from clusterft_trainer.buckets import Bucket
from clusterft_trainer.config import Buckets
from clusterft_trainer.corpus import index
from clusterft_trainer.corpus.index import Index, Row
from clusterft_trainer.latents import making, needs, session, shard
from clusterft_trainer.latents.catalogue import Catalogue, shard_names
from clusterft_trainer.latents.feeding import Feeder, Pictures
from clusterft_trainer.latents.key import Recipe

RECIPE = Recipe("stub", "float32", "mean", False, 0)
SIDE = 256  # resolution; pictures are a quarter larger, so that they are resized
BATCH = 8
RHYTHM = session.Rhythm(5.0, 0.4)
_LONG = 10.0  # seconds that one worker would need where workers are killed
_SIZES = ((320, 320), (400, 260), (260, 400))


class Sleeper:
    """Works for a while on each picture, as a GPU does: without the interpreter."""

    def __init__(self, seconds: float, log: Path | None = None) -> None:
        self._seconds = seconds
        self._log = None if log is None else log.open("a")
        self.first = 0.0  # when it was asked for the first time
        self.last = 0.0  # when it ended for the last time

    def form(self, bucket: Bucket) -> shard.Form:
        """As SDXL's VAE has it."""
        shape = (4, bucket.height // 8, bucket.width // 8)
        return shard.latent_form(RECIPE, shape, (bucket.width, bucket.height))

    def batch(self, bucket: Bucket) -> int:
        """Always as many."""
        return BATCH

    def encode(self, bucket: Bucket, inputs: Any, keys: Sequence[bytes]) -> list[np.ndarray]:
        """Latents that follow from the pixels."""
        began = time.monotonic()
        self.first = self.first or began
        if self._log is not None:
            self._log.write("".join(f"{key.hex()}\n" for key in keys))
            self._log.flush()
        thin = inputs[:, :, ::8, ::8].astype(np.float32)
        found = np.concatenate([thin, thin[:, :1]], axis=1)
        time.sleep(max(0.0, began + self._seconds * len(inputs) - time.monotonic()))
        self.last = time.monotonic()
        return [found]


def figures(quick: bool) -> list[Figure]:
    """All of this stage."""
    with tempfile.TemporaryDirectory(prefix="clusterft-cache-", dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name)
        return [
            *_bound(folder, 240 if quick else 2_000, 0.012),
            *_killed(folder, 160 if quick else 600),
            *_two(folder, 160 if quick else 600),
        ]


def pictures(folder: Path, count: int) -> Index:
    """Compressed pictures with something in them, and their index."""
    rows = []
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    source = np.random.default_rng(5)
    for number in range(count):
        width, height = _SIZES[number % len(_SIZES)]
        coarse = Image.fromarray(source.integers(0, 256, (height // 10, width // 10, 3), np.uint8))
        held = io.BytesIO()
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(held, "JPEG", quality=92)
        data, name = held.getvalue(), f"{number:06d}.jpg"
        path = folder / "pictures" / name
        path.write_bytes(data)
        digest = xxhash.xxh3_128_digest(data)
        rows.append(Row(0, name, str(path), -1, len(data), digest, width, height, "a thing", None, ""))
    return index.write(folder / "index", rows)


def work(shared: Path, found: Index, encoder: Sleeper, owner: str) -> making.Made:
    """One worker from beginning to end."""
    order = needs.latents(found, placing.rules(Buckets(), SIDE), RECIPE, shared / "latents")

    def feeder() -> Feeder:
        return Pictures(found, max(2, len(os.sched_getaffinity(0))))

    with session.Session(shared / "work", owner, None, RHYTHM) as member:
        return making.make(member, order, feeder, lambda: encoder)


def _bound(folder: Path, count: int, seconds: float) -> list[Figure]:
    """Throughput against the encoder's own; from its first picture to its last, and of the whole stage."""
    found = pictures(folder / "bound", count)
    encoder = Sleeper(seconds)
    began = time.monotonic()
    work(folder / "bound", found, encoder, "one")
    whole = time.monotonic() - began
    bound = count * seconds
    steady = bound / (encoder.last - encoder.first)
    return [
        Figure("cache.encoder_rate", round(1 / seconds, 1), "pictures/s"),
        Figure("cache.steady", round(steady, 4), "of the bound", 0.95, steady >= 0.95),
        Figure("cache.whole_stage", round(bound / whole, 4), "of the bound", 0.95, bound / whole >= 0.95),
        Figure("cache.pictures", count, ""),
    ]


def _killed(folder: Path, count: int) -> list[Figure]:
    """Workers killed at any moment, then a rerun: the bytes against those of a run that nobody disturbed."""
    here = folder / "killed"
    found = pictures(here, count)
    work(here / "calm", found, Sleeper(0.0), "calm")
    shared, chance, killed = here / "wild", random.Random(11), 0
    shared.mkdir()
    for _ in range(4):
        worker = _start(shared, here / "index", _LONG / count)
        time.sleep(chance.uniform(0.6, 1.6))
        killed += worker.poll() is None
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    began = time.monotonic()
    code = _start(shared, here / "index", 0.001).wait()
    same = _sums(shared) == _sums(here / "calm") and code == 0
    return [
        Figure("cache.killed_workers", killed, ""),
        Figure("cache.rerun_after_kills", round(time.monotonic() - began, 2), "s"),
        Figure("cache.identical_after_kills", float(same), "", 1.0, same),
    ]


def _two(folder: Path, count: int) -> list[Figure]:
    """Two nodes on one directory: entries that were encoded twice, and how much faster they are than one."""
    here = folder / "two"
    found = pictures(here, count)
    (here / "shared").mkdir()
    workers = [_start(here / "shared", here / "index", 0.01) for _ in range(2)]
    codes = [worker.wait() for worker in workers]
    lines = [line for path in (here / "shared").glob("*.log") for line in path.read_text().splitlines()]
    twice = sum(times - 1 for times in Counter(lines).values())
    held = len(Catalogue.open(here / "shared" / "latents", RECIPE.to_json()))
    shares = sorted(len(path.read_text().splitlines()) for path in (here / "shared").glob("*.log"))
    right = twice == 0 and held == len(found) and codes == [0, 0]
    return [
        Figure("cache.two_nodes_encoded_twice", twice, "entries", 0.0, right),
        Figure("cache.two_nodes_smaller_share", shares[0] / max(1, sum(shares)), "of the entries"),
    ]


def catalogue(folder: Path, entries: int) -> list[Figure]:
    """Looking up all keys of a large cache; its shards hold entries of 16 bytes, since only tables are read."""
    source = np.random.default_rng(7)
    form = shard.Form(RECIPE.to_json(), (shard.Array("latents", "F32", (4,)),), 64, 64)
    (folder / "many").mkdir(parents=True)
    keys = source.integers(0, 256, (entries, 16), np.uint8)
    for first in range(0, entries, shard.MOST_ENTRIES):
        part = keys[first : first + shard.MOST_ENTRIES]
        shard.save(folder / "many", form, part, [bytes(16)] * len(part))
    began = time.monotonic()
    held = Catalogue.open(folder / "many")
    made, began = time.monotonic() - began, time.monotonic()
    places = held.locate(keys)
    looked = time.monotonic() - began
    whole = bool((places >= 0).all())
    shutil.rmtree(folder / "many")
    return [
        Figure("catalogue.entries", entries, ""),
        Figure("catalogue.made", round(made, 3), "s"),
        Figure("catalogue.located", round(looked, 3), "s", None, whole),
    ]


def _sums(shared: Path) -> dict[str, str]:
    folder = shared / "latents"
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in shard_names(folder)}


def _start(shared: Path, found: Path, seconds: float) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[1] / "trainer"
    command = [sys.executable, __file__, str(shared), str(found), str(seconds)]
    path = os.pathsep.join((str(root), os.environ.get("PYTHONPATH", "")))
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})


def main() -> None:
    """One worker as a process: SHARED INDEX SECONDS."""
    shared, found, seconds = Path(sys.argv[1]), Index.open(Path(sys.argv[2])), float(sys.argv[3])
    name = session.owner_name({})
    work(shared, found, Sleeper(seconds, shared / f"{name}.log"), name)


if __name__ == "__main__":
    main()
