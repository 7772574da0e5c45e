"""Kohya's .npz caches into shards, and shards into .npz files that kohya's trainer reads.

A row without a picture is known by `kohya.Seen.identity`, of its stem and of the checksums in its file: moved, it
stays itself; made anew, it is another. Owns both ways. Refuses latents that were made for other buckets than the
settings give, and to let kohya's, which are samples, pass for means; what cannot be imported is counted and named.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow.compute as pc

from clusterft_trainer import kohya, placing
from clusterft_trainer.buckets import Bucket
from clusterft_trainer.config import Buckets
from clusterft_trainer.corpus import reach
from clusterft_trainer.corpus.index import Index, Row
from clusterft_trainer.corpus.picture import stem_of
from clusterft_trainer.errors import ConfigError, DataError, storing
from clusterft_trainer.kohya import Cached
from clusterft_trainer.latents import shard
from clusterft_trainer.latents.catalogue import Catalogue
from clusterft_trainer.latents.key import KEY, Recipe, entry_keys
from clusterft_trainer.latents.landing import Landing
from clusterft_trainer.placing import Rules

_SHOWN = 5
_ROWS = 1 << 15


@dataclass(frozen=True, slots=True)
class Store:
    """A cache, and the rows that it is of."""

    index: Index
    folder: Path
    by: Rules
    recipe: Recipe


@dataclass(slots=True)
class Report:
    """What became of some entries."""

    done: int = 0
    there: int = 0  # before
    without: int = 0  # rows without an .npz file, or without an entry in the cache
    refused: int = 0
    seconds: float = 0.0
    first: list[str] = field(default_factory=list)  # of those refused, and why

    def refuse(self, why: str) -> None:
        """Count one that cannot be used."""
        self.refused += 1
        if len(self.first) < _SHOWN:
            self.first.append(why)

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"schema": 1, **asdict(self)})

    def text(self, done: str) -> str:
        """For a person."""
        lines = [
            f"{self.done} {done} in {self.seconds:.1f} s, {self.there} were there, {self.without} had none, "
            f"{self.refused} refused",
            *(f"  {why}" for why in self.first),
        ]
        if self.refused > len(self.first):
            lines.append(f"  and {self.refused - len(self.first)} more")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Rows that are to be imported, bucket by bucket."""

    rows: np.ndarray  # (n,) int64
    keys: np.ndarray  # (n, 16) uint8
    sizes: np.ndarray  # (n, 2) int32 of the bucket


def import_npz(store: Store, *, codec: shard.Codec = "none") -> Report:
    """Write shards of all rows that have an .npz file and no entry yet; the recipe says which VAE made them."""
    if store.recipe.take != "sample":
        raise ConfigError(
            "Kohya's latents are samples of what the VAE says, and this recipe is for means.",
            "Set data.cache.take: sample.",
        )
    began, report = time.monotonic(), Report()
    with storing("The cache", store.folder):
        store.folder.mkdir(parents=True, exist_ok=True)
    wanted = _wanted(store, report)
    known = Catalogue.open(store.folder, store.recipe.to_json()).locate(wanted.keys) >= 0
    report.there = int(known.sum())
    order = np.lexsort((wanted.rows, wanted.sizes[:, 1], wanted.sizes[:, 0]))
    order = order[~known[order]]
    for first, end in _runs(wanted.sizes[order]):
        _import_bucket(store, codec, wanted, order[first:end], report)
    report.seconds = time.monotonic() - began
    return report


def _wanted(store: Store, report: Report) -> _Wanted:
    """Names and sizes of what there is to import; files are looked at only where no picture's hash is known."""
    index, rows, hashes = store.index, array("q"), bytearray()
    for number in range(len(index)):
        row = index.row(number)
        if not row.npz:
            report.without += 1
            continue
        if reach.is_url(row.npz):
            report.refuse(f"{row.npz} is not on this machine; copy it, or leave it to be read where it is.")
            continue
        try:
            hashes += row.hash or kohya.look(Path(row.npz)).identity
        except DataError as error:
            report.refuse(error.message)
            continue
        rows.append(number)
    chosen = np.array(rows, np.int64)
    keys: np.ndarray = np.zeros((len(rows), KEY), np.uint8)
    sides: np.ndarray = np.zeros((len(rows), 2), np.int32)
    every = np.frombuffer(bytes(hashes), np.uint8).reshape(-1, KEY)
    sizes = np.asarray(index.sizes())
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        placed = placing.place_all(sizes[chosen[part]], store.by)
        sides[part] = np.array([(bucket.width, bucket.height) for bucket in placed.table])[placed.numbers]
        keys[part] = entry_keys(every[part], sides[part], placed.fits, store.recipe)
    return _Wanted(chosen, keys, sides)


def _runs(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where each bucket begins and ends in entries that are sorted by it."""
    if len(sizes):
        changes: list[int] = (np.flatnonzero((sizes[1:] != sizes[:-1]).any(axis=1)) + 1).tolist()
        yield from zip([0, *changes], [*changes, len(sizes)], strict=True)


def _import_bucket(store: Store, codec: shard.Codec, wanted: _Wanted, order: np.ndarray, report: Report) -> None:
    width, height = wanted.sizes[order[0]].tolist()
    shape = (kohya.CHANNELS, height // kohya.FACTOR, width // kohya.FACTOR)
    form = shard.latent_form(store.recipe, shape, (width, height), codec)
    seen: set[bytes] = set()  # two rows of the same picture have one entry
    places: list[int] = []
    payloads: list[bytes] = []
    for place in order.tolist():
        key = wanted.keys[place].tobytes()
        if key in seen:
            report.there += 1
            continue
        try:
            payloads.append(_payload(store.index.row(int(wanted.rows[place])), form, store.recipe))
        except DataError as error:
            report.refuse(error.message)
            continue
        seen.add(key)
        places.append(place)
        if len(places) == form.most:
            _save(store.folder, form, wanted, places, payloads, report)
    if places:
        _save(store.folder, form, wanted, places, payloads, report)


def _save(
    folder: Path, form: shard.Form, wanted: _Wanted, places: list[int], payloads: list[bytes], report: Report
) -> None:
    shard.save(folder, form, wanted.keys[places], payloads)
    report.done += len(places)
    places.clear()
    payloads.clear()


def _payload(row: Row, form: shard.Form, recipe: Recipe) -> bytes:
    """An entry's bytes out of a file of kohya's."""
    path = Path(row.npz)
    cached = kohya.read(path)
    height, width = cached.latents.shape[1:]
    size = (width * kohya.FACTOR, height * kohya.FACTOR)
    if size != (form.width, form.height):
        raise kohya.damaged(
            path, f"it was made for {size[0]}x{size[1]}, the settings say {form.width}x{form.height}"
        )
    if cached.original != (row.width, row.height):
        raise kohya.damaged(path, f"it is of a picture of {cached.original}, not {(row.width, row.height)}")
    values = cached.latents
    if recipe.flip:
        flipped = cached.flipped if cached.flipped is not None else kohya.latents(path, mirrored=True)
        values = np.stack([cached.latents, flipped])
    if not np.isfinite(values).all():
        raise kohya.damaged(path, "it holds numbers that are not finite")
    return shard.payload(form, [values])


def export_npz(store: Store, out: Path, *, legacy: bool = False, overwrite: bool = False) -> Report:
    """Write an .npz file for each row that has an entry: `<stem>.npz` if legacy, else with the picture's size."""
    began, report, index = time.monotonic(), Report(), store.index
    catalogue = Catalogue.open(store.folder, store.recipe.to_json())
    several = len(pc.unique(index.column("source"))) > 1
    with Landing(out, overwrite=overwrite) as landing:
        for number, position, bucket in _entries(store, catalogue, report):
            row = index.row(number)
            body = kohya.encode(_cached(catalogue.read(position, check=True), row, bucket))
            name = _name(row, legacy=legacy, several=several)
            landing.put(name, len(body), lambda body=body: [body])  # type: ignore[misc]
    report.done, report.there = landing.written, landing.there
    report.seconds = time.monotonic() - began
    return report


def _entries(store: Store, catalogue: Catalogue, report: Report) -> Iterator[tuple[int, int, Bucket]]:
    """Rows that have an entry, where it is, and of which size."""
    index = store.index
    sizes = np.asarray(index.sizes())
    for start in range(0, len(index), _ROWS):
        end = min(start + _ROWS, len(index))
        placed = placing.place_all(sizes[start:end], store.by)
        chosen = [placed.table[number] for number in placed.numbers]
        hashes = b"".join(_hash(index.row(number)) for number in range(start, end))
        sides = np.array([(bucket.width, bucket.height) for bucket in chosen])
        keys = entry_keys(np.frombuffer(hashes, np.uint8).reshape(-1, KEY), sides, placed.fits, store.recipe)
        for offset, position in enumerate(catalogue.locate(keys).tolist()):
            if position < 0:
                report.without += 1
            else:
                yield start + offset, position, chosen[offset]


def _hash(row: Row) -> bytes:
    if row.hash or not row.npz or reach.is_url(row.npz) or not Path(row.npz).is_file():
        return row.hash or bytes(KEY)
    return kohya.look(Path(row.npz)).identity


def _cached(values: np.ndarray, row: Row, bucket: Bucket) -> Cached:
    latents, flipped = (values[0], values[1]) if values.ndim == 4 else (values, None)
    size = (row.width, row.height)
    return Cached(latents, size, placing.letterbox(size, bucket), flipped)


def _name(row: Row, *, legacy: bool, several: bool) -> str:
    """A file's name below the folder: as the row's, with the source's number where there are several."""
    stem = stem_of(row.name)
    if PurePosixPath(stem).is_absolute():
        stem = stem.lstrip("/")
    name = kohya.names(stem, (row.width, row.height))[0 if legacy else 1]
    return f"{row.source}/{name}" if several else name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What both ways need to know."""
    parser.add_argument("--index", type=Path, required=True, help="folder of the index that prep made")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the shards: latents/<recipe>")
    parser.add_argument("--recipe", required=True, help="as JSON: which VAE made the latents, and how")
    parser.add_argument("--resolution", type=int, default=1024, help="data.resolution")
    parser.add_argument("--buckets", default="{}", help="data.buckets, as JSON")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """What the way back needs beside that."""
    add_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the .npz files")
    parser.add_argument("--legacy", action="store_true", help="names without the picture's size")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there and differ")


def run_import(arguments: argparse.Namespace) -> int:
    """Import, and tell; 3 if something was refused."""
    return _say(import_npz(_asked(arguments)), arguments, "imported")


def run_export(arguments: argparse.Namespace) -> int:
    """Export, and tell."""
    report = export_npz(_asked(arguments), arguments.out, legacy=arguments.legacy, overwrite=arguments.overwrite)
    return _say(report, arguments, "files written")


def _asked(arguments: argparse.Namespace) -> Store:
    from pydantic import ValidationError

    try:
        settings = Buckets.model_validate_json(arguments.buckets)
    except ValidationError as error:
        raise ConfigError(f"--buckets: {error.errors()[0]['msg']}.", "Copy data.buckets of the job.") from error
    return Store(
        Index.open(arguments.index),
        arguments.cache,
        placing.rules(settings, arguments.resolution),
        Recipe.from_json(arguments.recipe),
    )


def _say(report: Report, arguments: argparse.Namespace, done: str) -> int:
    sys.stdout.write(report.to_json() + "\n" if arguments.json else report.text(done))
    return 3 if report.refused else 0
