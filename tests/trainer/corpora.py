"""Small picture sets of every kind of source, as tests and benchmarks need them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clusterft_trainer.config.data import Problems
from clusterft_trainer.corpus.index import Index
from clusterft_trainer.corpus.ingest import index_key, ingest


def picture(width: int = 40, height: int = 30, *, kind: str = "PNG", seed: int = 0) -> bytes:
    """A small picture of its own."""
    colours = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(colours).save(out, kind)
    return out.getvalue()


def put(path: Path, data: bytes | str) -> Path:
    """Write a file, and its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def pairs(folder: Path, count: int, *, start: int = 0) -> Path:
    """Pictures with captions, some of them in folders."""
    for k in range(start, start + count):
        place = folder / (f"sub{k % 3}" if k % 3 else "") / f"{k:04d}"
        put(place.with_suffix(".png"), picture(20 + k % 7, 30 + k % 5, seed=k))
        put(place.with_suffix(".txt"), f"tag{k}, cat")
    return folder


def npz(path: Path, size: tuple[int, int] | None = None) -> Path:
    """A latent cache as kohya writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    more = {} if size is None else {"original_size": np.array(size), "crop_ltrb": np.zeros(4)}
    np.savez(path, latents=np.zeros((4, 8, 8), np.float32), **more)
    return path


def tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """A tar with these members in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def indexed(
    out: Path,
    *sources: Any,
    problems: Problems | None = None,
    processes: int = 1,
    say: Callable[[Any], None] = lambda _: None,
    npz: bool = True,
) -> Index:
    """What ingest makes of these sources."""
    settings = problems or Problems()
    folder = out / index_key(sources, settings)
    return ingest(sources, settings, folder, processes=processes, say=say, npz=npz)


def report(out: Path) -> dict[str, Any]:
    """The newest report below a folder."""
    path = max(out.glob("*/report.json"), key=lambda p: p.stat().st_mtime_ns)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


SKIPPING = Problems(broken="skip", no_caption="skip", duplicate="skip")
