"""Damaged shards of a cache, moved aside before a plan is made, so that the plan has what they held made again.

Owns the notes by which whoever reads a damaged entry says so (`suspects/<shard>`), and which shards are looked at:
of all of them head and tables, of those noted every entry, as verify does. Refuses to touch a shard that storage
does not give now, or that another recipe made.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from clusterft_trainer.errors import storing
from clusterft_trainer.latents import tables, verify
from clusterft_trainer.latents.catalogue import SUSPECTS, Catalogue, shard_names
from clusterft_trainer.latents.shard import Handle, Shard

_AT_ONCE = 16  # shards that are opened at the same time: a shared directory takes its time to answer


def suspects(folder: Path) -> set[str]:
    """Names of shards in which somebody has read a damaged entry."""
    try:
        return set(os.listdir(folder / SUSPECTS))
    except FileNotFoundError:
        return set()


def doubted(found: Catalogue, positions: np.ndarray) -> np.ndarray:
    """Which of some positions, (n,) bool, lie in a shard that somebody has found damaged."""
    named = suspects(found.folder)
    numbers = [number for number, name in enumerate(found.shards) if name in named]
    return np.isin(found.numbers(positions), numbers) & (positions >= 0)


def heal(folder: Path, recipe: str) -> list[str]:
    """Move damaged shards aside, after saving what is good of them; their names."""
    named = suspects(folder)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        whole = list(pool.map(lambda name: _opens(folder / name, recipe), names := shard_names(folder)))
    moved = [name for name, fine in zip(names, whole, strict=True) if not fine]
    moved += [name for name, fine in zip(names, whole, strict=True) if fine and name in named]
    moved = [name for name in moved if _moved(folder, name)]
    _forget(folder, named)
    return moved


def _opens(path: Path, recipe: str) -> bool:
    """Whether head and tables are whole."""
    try:
        Shard(path, Handle(path)).expect(recipe)
    except tables.Damaged:
        return False
    except FileNotFoundError:
        return True  # verify has moved it aside a moment ago
    except OSError as error:
        raise verify.unread(path, error) from error
    return True


def _moved(folder: Path, name: str) -> bool:
    """Look at every entry; move the shard aside if one is bad."""
    try:
        bad = verify.look_at_shard((folder, name)).bad
        if bad:
            verify.save_good(folder / name, bad)
            verify.set_aside(folder, name, bad)
    except FileNotFoundError:
        return False
    return bool(bad)


def _forget(folder: Path, names: Sequence[str] | set[str]) -> None:
    with storing("The cache", folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                (folder / SUSPECTS / name).unlink()
