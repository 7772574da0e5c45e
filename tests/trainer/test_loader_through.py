"""Proves that copies of shards are whole, bounded and shared, and that nobody waits for them."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from clusterft_trainer.errors import DataError
from clusterft_trainer.latents import catalogue, shard, tables, through
from clusterft_trainer.latents.key import Recipe
from clusterft_trainer.latents.through import Copies, Near, Room

RECIPE = Recipe("a vae", "float32", "mean", flip=False, seed=0)
SHAPE = (4, 8, 8)


def store(folder: Path, shards: int, entries: int = 3) -> np.ndarray:
    """Shards in which an entry's values are its number; returns the keys."""
    folder.mkdir(parents=True)
    form = shard.latent_form(RECIPE, SHAPE, (64, 64))
    keys = np.random.default_rng(1).integers(1, 255, (shards * entries, 16), np.uint8)
    for first in range(0, len(keys), entries):
        payloads = [shard.payload(form, [np.full(SHAPE, first + n, np.float32)]) for n in range(entries)]
        shard.save(folder, form, keys[first : first + entries], payloads)
    return keys


def size(folder: Path) -> int:
    with through._alone(folder):
        return sum(p.stat().st_size for p in folder.rglob(f"*{shard.SUFFIX}"))


def wait(happened: object) -> None:
    until = time.monotonic() + 10
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.01)


def test_entries_are_read_from_afar_until_the_copy_is_there(tmp_path: Path) -> None:
    keys = store(tmp_path / "far", 4)
    told: list[str] = []
    near = Near.open(tmp_path / "far", RECIPE.to_json())
    assert isinstance(near, Near)
    near.copies = Copies(tmp_path / "far", Room(tmp_path / "near", 1 << 30), told.append)
    places = near.locate(keys).tolist()
    assert [float(near.read(p, check=True).mean()) for p in places] == list(range(12))
    names = catalogue.shard_names(tmp_path / "far")
    copies = tmp_path / "near" / "far"
    wait(lambda: catalogue.shard_names(copies) == names)
    assert all((copies / n).read_bytes() == (tmp_path / "far" / n).read_bytes() for n in names)
    near.read(places[0])
    for name in names:  # all is at hand now: nobody needs the far ones
        (tmp_path / "far" / name).unlink()
    assert [float(near.read(p, check=True).mean()) for p in places] == list(range(12))
    assert not told
    near.copies.close()


def test_room_is_bounded_and_only_what_nobody_reads_is_given_up(tmp_path: Path) -> None:
    store(tmp_path / "far", 6)
    names = catalogue.shard_names(tmp_path / "far")
    one = (tmp_path / "far" / names[0]).stat().st_size
    room = Room(tmp_path / "near", 3 * one + 10, idle=60)
    near = room.folder / "far"
    near.mkdir(parents=True)
    made = [through.copy(tmp_path / "far" / n, near / n, room) for n in names[:4]]
    assert made == [True, True, True, False], "those in use stay"
    assert size(room.folder) == 3 * one
    long_ago = time.time() - 100
    os.utime(near / names[1], (long_ago, long_ago))
    assert through.copy(tmp_path / "far" / names[4], near / names[4], room)
    assert sorted(p.name for p in near.iterdir()) == sorted([names[0], names[2], names[4]])
    huge = Room(room.folder, one - 1, idle=0)
    assert not through.copy(tmp_path / "far" / names[5], near / names[5], huge)


def test_a_copy_that_differs_in_a_byte_is_no_copy(tmp_path: Path) -> None:
    store(tmp_path / "far", 1)
    (name,) = catalogue.shard_names(tmp_path / "far")
    data = bytearray((tmp_path / "far" / name).read_bytes())
    data[-5] ^= 1
    (tmp_path / "far" / name).write_bytes(data)
    (tmp_path / "near").mkdir()
    with pytest.raises(DataError, match="checksum of entry 2"):
        through.copy(tmp_path / "far" / name, tmp_path / "near" / name, Room(tmp_path, 1 << 30))
    assert not list((tmp_path / "near").iterdir())


def test_what_cannot_be_copied_is_told_once_and_read_from_afar(tmp_path: Path) -> None:
    keys = store(tmp_path / "far", 3)
    told: list[str] = []
    near = Near.open(tmp_path / "far")
    assert isinstance(near, Near)
    copies = near.copies = Copies(tmp_path / "far", Room(tmp_path / "near", 1 << 30), told.append)
    (tmp_path / "near" / "far").rmdir()  # as a disk that went away
    assert [float(near.read(p).mean()) for p in near.locate(keys).tolist()] == list(range(9))
    wait(lambda: told and copies._queue.empty())
    time.sleep(0.05)
    assert len(told) == 1 and "without copies on this node" in told[0]
    copies.close()


def test_what_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    store(tmp_path / "far", 1)
    (name,) = catalogue.shard_names(tmp_path / "far")
    target = tmp_path / "near" / "far" / name
    target.parent.mkdir(parents=True)
    tables.draft_of(target, "copy").write_bytes(b"x" * 10**6)
    assert through.copy(tmp_path / "far" / name, target, Room(tmp_path / "near", 1 << 30))
    assert target.read_bytes() == (tmp_path / "far" / name).read_bytes()
    assert [p.name for p in target.parent.iterdir()] == [name]


def _copies(far: Path, room: Room) -> None:
    for name in catalogue.shard_names(far):
        through.copy(far / name, room.folder / "far" / name, room)


def test_several_processes_make_each_copy_once_and_keep_the_bound_together(tmp_path: Path) -> None:
    store(tmp_path / "far", 12, 40)
    names = catalogue.shard_names(tmp_path / "far")
    one = (tmp_path / "far" / names[0]).stat().st_size
    room = Room(tmp_path / "near", 8 * one, idle=60)
    (room.folder / "far").mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_copies, args=(tmp_path / "far", room)) for _ in range(4)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        assert size(room.folder) <= room.most
        time.sleep(0.001)
    assert [worker.exitcode for worker in workers] == [0] * 4
    there = sorted(p.name for p in (room.folder / "far").iterdir())
    assert 7 <= len(there) <= 8 and set(there) <= set(names)
    assert all((room.folder / "far" / n).read_bytes() == (tmp_path / "far" / n).read_bytes() for n in there)
