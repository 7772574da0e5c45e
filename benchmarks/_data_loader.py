"""The loader against one that opens an .npz for each sample, and what its memory does when the data set grows.

Batches of four come ready for the step: latents 4x128x128 in float32 out of shards, captions, and token ids of 225
for both text encoders. The baseline is torch's DataLoader over files that np.load opens, with as many worker
processes; once with captions and token ids made as Hugging Face's tokenizers make them, once with nothing but the
latents. Synthetic: noise, and captions of some seventy tags.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from _figures import Figure

from clusterft_trainer import placing
from clusterft_trainer.buckets import Shape
from clusterft_trainer.config import Data
from clusterft_trainer.corpus import index
from clusterft_trainer.corpus.index import Index, Writer
from clusterft_trainer.latents import catalogue, shard, tables
from clusterft_trainer.latents.key import Recipe

SIDE, BATCH, WORKERS, TOKENS = 1024, 4, 2, 225
RECIPE = Recipe("benchmark", "float32", "mean", flip=False, seed=0)
TAGS = 4000
DATA = {
    "sources": [{"folder": "/nowhere"}],
    "captions": {"tokens": TOKENS},
    "cache": {"dtype": "float32"},
}


def captions(count: int) -> list[str]:
    """Seventy tags each, common ones more often than rare ones, of one to three words."""
    source = random.Random(5)
    syllables = ["ka", "mo", "ri", "tan", "ble", "do", "ven", "shi", "lo", "per", "qua", "ze"]
    words = ["".join(source.choices(syllables, k=source.randint(1, 3))) for _ in range(1500)]
    tags = [" ".join(source.choices(words, k=source.randint(1, 3))) for _ in range(TAGS)]
    weights = [1 / (n + 3) for n in range(TAGS)]
    return [", ".join(source.choices(tags, weights, k=70)) for _ in range(count)]


def make_index(folder: Path, count: int, texts: list[str]) -> Index:
    """So many square pictures, none of which is there."""
    writer = Writer(folder)
    for start in range(0, count, index.BATCH):
        rows = range(start, min(count, start + index.BATCH))
        size = len(rows)
        columns: dict[str, Any] = {
            "source": np.zeros(size, np.int16),
            "name": [f"{n:08d}.webp" for n in rows],
            "file": [f"/nowhere/{n:08d}.webp" for n in rows],
            "offset": np.full(size, -1),
            "size": np.full(size, 200_000),
            "hash": [xxhash.xxh3_128_digest(b"%d" % n) for n in rows],
            "width": np.full(size, SIDE, np.int32),
            "height": np.full(size, SIDE, np.int32),
            "caption": [texts[n % len(texts)] for n in rows],
            "score": [None] * size,
            "npz": [""] * size,
        }
        for field in index.SCHEMA:  # what only a later ingest reads
            nothing = {pa.string(): "", pa.binary(24): bytes(24)}.get(field.type, 0)
            columns.setdefault(field.name, [nothing] * size)
        arrays = [pa.array(columns[f.name], f.type) for f in index.SCHEMA]
        writer.add(pa.RecordBatch.from_arrays(arrays, schema=index.SCHEMA))
    return writer.publish([])


def entry_keys(found: Index) -> np.ndarray:
    """Of all rows."""
    from clusterft_trainer.latents import feed

    by = placing.rules(Data.model_validate(DATA).buckets, SIDE)
    return np.concatenate([part.keys for part in feed.entries(found, by, RECIPE)])


def make_shards(folder: Path, keys: np.ndarray) -> None:
    """Noise for each key."""
    folder.mkdir(parents=True)
    form = shard.latent_form(RECIPE, (4, SIDE // 8, SIDE // 8), (SIDE, SIDE))
    noise = np.random.default_rng(1).standard_normal((4, SIDE // 8, SIDE // 8), np.float32)
    for start in range(0, len(keys), form.most):
        part = keys[start : start + form.most]
        shard.save(folder, form, part, [shard.payload(form, [noise + np.float32(n)]) for n in range(len(part))])


def point(folder: Path, keys: np.ndarray) -> None:
    """A catalogue in which many more entries lie in the one shard that is there."""
    names = catalogue.shard_names(folder)
    places = np.arange(len(keys), dtype=np.int64) % shard.Shard(folder / names[0]).count
    high, low = catalogue.split(keys)
    order = np.lexsort((low, high))
    parts = [
        tables.part("high", "U64", high[order]),
        tables.part("low", "U64", low[order]),
        tables.part("places", "I64", places[order]),
    ]
    told = {
        "schema": "1",
        "state": catalogue._state(names),
        "recipe": RECIPE.to_json(),
        "shards": json.dumps(names),
    }
    tables.write(folder / catalogue.NAME, parts, told)


def walk(folder: Path, count: int) -> Iterator[int]:
    """Our loader: the number of samples of each step."""
    from clusterft_trainer import dataset
    from clusterft_trainer.buckets import Epochs, Position
    from clusterft_trainer.latents.catalogue import Catalogue
    from clusterft_trainer.latents.feed import Feed, located
    from clusterft_trainer.model import text

    data = Data.model_validate(DATA)
    pictures = dataset.Pictures(Index.open(folder / "index"), data, 1)
    there = Catalogue.open(folder / "latents")
    by = placing.rules(data.buckets, SIDE)
    pictures.latents = Feed(there, located(there, pictures.index, by, RECIPE), pictures.index)
    pictures.words = text.words(tokenizers(), TOKENS)
    shape = Shape(BATCH, 1, 1)
    epochs = Epochs(pictures.assigned, 1, shape)
    for work in dataset.stream(pictures, epochs, shape, 0, lambda _: False, WORKERS)(Position(), count, 0):
        (batch,) = work.micro
        if (
            batch.latents is None
            or batch.places
            or batch.tokens is None
            or batch.tokens[0].shape[1] != TOKENS // 75
        ):
            raise ValueError("a batch is not ready for the step")
        yield work.real


def tokenizers() -> tuple[Any, Any]:
    """Those of SDXL, from the package that brings the vocabulary."""
    from clusterft_trainer.model import tokenizers as found

    return found.load(Path("/nowhere"), None, (49408, 49408))


class Npz:
    """The baseline's data set: a file for each sample, as kohya's cache has it."""

    def __init__(self, folder: Path, texts: list[str], *, whole: bool) -> None:
        self._files = sorted(folder.glob("*.npz"))
        self._texts = texts
        self._tokenizers = tokenizers() if whole else ()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        from clusterft_trainer.model import text

        latents = np.load(self._files[number])["latents"]
        told = self._texts[number % len(self._texts)]
        return latents, *(text.token_ids(t, [told], TOKENS)[0] for t in self._tokenizers)


def speed(steps: Iterator[int], warm: int) -> float:
    """Samples a second after so many steps."""
    began, samples = 0.0, 0
    for number, real in enumerate(steps):
        if number == warm:
            began, samples = time.perf_counter(), 0
        samples += real
    return samples / (time.perf_counter() - began)


def baseline(folder: Path, texts: list[str], count: int, *, whole: bool) -> Iterator[int]:
    """Torch's loader over the files."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        Npz(folder, texts, whole=whole),  # type: ignore[arg-type]
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        drop_last=True,
    )
    done = 0
    while done < count:
        for batch in loader:
            yield len(batch[0])
            done += 1
            if done == count:
                break


def throughput(folder: Path, quick: bool) -> list[Figure]:
    """Samples a second, warm, medians of interleaved rounds."""
    entries, rounds = (400, 1) if quick else (2000, 5)
    steps = 200 if quick else 3000
    first = entries // BATCH  # an epoch, in which pages, words and checksums are met for the first time
    texts = captions(1000)
    keys = entry_keys(make_index(folder / "index", entries, texts))
    make_shards(folder / "latents", keys)
    (folder / "npz").mkdir()
    noise = np.random.default_rng(1).standard_normal((4, SIDE // 8, SIDE // 8), np.float32)
    for number in range(entries):
        np.savez(folder / "npz" / f"{number:08d}.npz", latents=noise, original_size=[SIDE, SIDE])
    ours, whole, bare = [], [], []
    for _ in range(rounds):
        ours.append(speed(walk(folder, steps + first), first))
        whole.append(speed(baseline(folder / "npz", texts, steps // 5 + 50, whole=True), 50))
        bare.append(speed(baseline(folder / "npz", texts, steps // 2 + 50, whole=False), 50))
    mine, theirs = statistics.median(ours), statistics.median(whole)
    return [
        Figure("loader.ours", round(mine), "samples/s", 8000, mine >= 8000),
        Figure("loader.npz", round(theirs), "samples/s"),
        Figure("loader.over_npz", round(mine / theirs, 2), "x", 3, mine / theirs >= 3),
        Figure("loader.npz_latents_alone", round(statistics.median(bare)), "samples/s"),
        Figure("loader.over_npz_latents_alone", round(mine / statistics.median(bare), 2), "x"),
    ]


def memory(folder: Path, quick: bool) -> list[Figure]:
    """Private memory of a process that loads, small against large."""
    small, large = (10_000, 200_000) if quick else (100_000, 2_000_000)
    texts = captions(1000)
    used = {}
    for count in (small, large):
        place = folder / f"of-{count}"
        keys = entry_keys(make_index(place / "index", count, texts))
        make_shards(place / "latents", keys[:50])
        point(place / "latents", keys)
        command = [sys.executable, "-m", "_data_loader", str(place)]
        here = str(Path(__file__).parent)
        run = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": here}
        )
        used[count] = int(run.stdout)
    grown = (used[large] - used[small]) / 2**20
    return [
        Figure(f"loader.private_memory_of_{small}", round(used[small] / 2**20), "MiB"),
        Figure(f"loader.private_memory_of_{large}", round(used[large] / 2**20), "MiB"),
        Figure("loader.private_memory_growth", round(grown, 1), "MiB", 50, grown <= 50),
    ]


def private() -> int:
    """Bytes that belong to this process alone: what it has mapped is the page cache's."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024


def measure(folder: Path, quick: bool) -> list[Figure]:
    """All figures of the loader."""
    return throughput(folder / "throughput", quick) + memory(folder / "memory", quick)


if __name__ == "__main__":
    for _ in walk(Path(sys.argv[1]), 1000):
        pass
    print(private())
