"""Verify against a bare loop that reads and checksums; pack against GNU tar. One process each, warm page cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from _figures import Figure, ratio

from clusterft_trainer import kohya, placing
from clusterft_trainer.buckets import Bucket
from clusterft_trainer.latents import packing, shard, verify
from clusterft_trainer.latents.key import Recipe

_ROUNDS = 5
_TWICE = 2.0  # at least half the speed
_CHUNK = 1 << 20
_RECIPE = Recipe("benchmark", "float32", "sample", False, 1)


def figures(quick: bool) -> list[Figure]:
    """All of this file, in a folder of its own that is removed."""
    rounds = 1 if quick else _ROUNDS
    found: list[Figure] = []
    for measure in (verify_shards, verify_npz, verify_small_npz, pack):
        with tempfile.TemporaryDirectory(prefix="clusterft-benchmark-") as folder:
            found += measure(Path(folder), rounds, quick=quick)
    return found


def verify_shards(folder: Path, rounds: int, *, quick: bool) -> list[Figure]:
    """A cache of 4x128x128 in float32."""
    form = shard.latent_form(_RECIPE, (4, 128, 128), (1024, 1024))
    source = np.random.default_rng(1)
    for _ in range(1 if quick else 4):
        keys = source.integers(0, 256, (form.most, 16), np.uint8)
        payloads = [source.standard_normal((4, 128, 128), np.float32).tobytes() for _ in range(form.most)]
        shard.save(folder, form, keys, payloads)
    files = sorted(folder.glob("*.safetensors"))

    def ours() -> None:
        if verify.cache(folder).bad:
            raise RuntimeError("a cache that is whole was found bad")

    return _compared("verify.shards", ours, lambda: _checksummed(files), rounds, files)


def verify_npz(folder: Path, rounds: int, *, quick: bool) -> list[Figure]:
    """Kohya's files at their usual size, 262 KB."""
    return _npz("verify.npz", folder, rounds, 400 if quick else 4000, 128)


def verify_small_npz(folder: Path, rounds: int, *, quick: bool) -> list[Figure]:
    """Files of 17 KB, as in the peers' figures."""
    return _npz("verify.npz-17KB", folder, rounds, 2000 if quick else 20_000, 32)


def _npz(name: str, folder: Path, rounds: int, count: int, side: int) -> list[Figure]:
    files = _write_npz(folder, count, side)

    def ours() -> None:
        if verify.npz(folder).bad:
            raise RuntimeError("files that are whole were found bad")

    return _compared(name, ours, lambda: _checksummed(files), rounds, files)


def _write_npz(folder: Path, count: int, side: int) -> list[Path]:
    source, size = np.random.default_rng(2), (side * 8, side * 8)
    crop = placing.letterbox(size, Bucket(*size))
    for number in range(count):
        values = source.standard_normal((4, side, side), np.float32)
        (folder / f"{number:06d}.npz").write_bytes(kohya.encode(kohya.Cached(values, size, crop)))
    return sorted(folder.glob("*.npz"))


def _checksummed(files: Sequence[Path]) -> None:
    """The floor: open, read, CRC32, close."""
    for path in map(str, files):
        handle = os.open(path, os.O_RDONLY)
        size, crc = os.fstat(handle).st_size, 0
        while size > 0:
            body = os.read(handle, min(size, _CHUNK))
            crc = zlib.crc32(body, crc)
            size -= len(body)
        os.close(handle)


def pack(folder: Path, rounds: int, *, quick: bool) -> list[Figure]:
    """Files of 17 KB into one tar, and 20 into each; all of it on the disk at the end, as tar's are, too."""
    root = folder / "npz"
    root.mkdir()
    files = _write_npz(root, 2000 if quick else 20_000, 32)
    out, other = folder / "ours", folder / "gnu.tar"

    def packed(most: int) -> Callable[[], None]:
        def once() -> None:
            shutil.rmtree(out, ignore_errors=True)
            packing.pack(root, out, files=most)

        return once

    def gnu() -> None:
        other.unlink(missing_ok=True)
        subprocess.run(["tar", "-cf", other, "-C", folder, "npz"], check=True)
        handle = os.open(other, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

    found = _compared("pack.one-tar", packed(len(files)), gnu, rounds, files)
    times = [_timed(packed(20)) for _ in range(rounds)]
    rate = len(files) / sorted(times)[len(times) // 2]
    return [*found, Figure("pack.20-in-each-tar", round(rate), "files/s")]


def _compared(
    name: str, ours: Callable[[], None], floor: Callable[[], None], rounds: int, files: Sequence[Path]
) -> list[Figure]:
    """Both in turn after a warm-up, and how many bytes ours came through in a second."""
    ours()
    floor()
    mine, theirs = [], []
    for _ in range(rounds):
        theirs.append(_timed(floor))
        mine.append(_timed(ours))
    total = sum(path.stat().st_size for path in files)
    rate = Figure(f"{name}.rate", round(total / 1e6 / sorted(mine)[len(mine) // 2]), "MB/s")
    return [*ratio(name, mine, theirs, _TWICE), rate]


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
