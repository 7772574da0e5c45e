"""Proves that no entry of a cache is trusted unless it is whole, and that whole ones outlive their neighbours."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from clusterft_trainer import kohya, placing
from clusterft_trainer.buckets import Bucket
from clusterft_trainer.errors import DataError, RunError
from clusterft_trainer.latents import shard, spreading, verify
from clusterft_trainer.latents.catalogue import Catalogue
from clusterft_trainer.latents.key import Recipe, TextRecipe
from clusterft_trainer.latents.shard import Codec, Form

SIZE = (64, 48)
SHAPE = (4, 6, 8)


def recipe(*, flip: bool = False, bf16: bool = False) -> Recipe:
    """Some VAE's."""
    return Recipe("vae", "bfloat16" if bf16 else "float32", "sample", flip, 7)


def keys(count: int, seed: int = 1) -> np.ndarray:
    """Names of entries."""
    found: np.ndarray = np.random.default_rng(seed).integers(0, 256, (count, 16), np.uint8)
    return found


def filled(form: Form, count: int, spoiled: dict[int, float] | None = None) -> list[bytes]:
    """Payloads with numbers of their own; `spoiled` puts one into an entry."""
    source, found = np.random.default_rng(2), []
    for slot in range(count):
        values = [source.standard_normal(array.shape, np.float32) for array in form.arrays]
        if spoiled and slot in spoiled:
            values[0].reshape(-1)[3] = spoiled[slot]
        found.append(shard.payload(form, values))
    return found


def made(folder: Path, count: int = 5, *, seed: int = 1, codec: Codec = "none", **kind: bool) -> Path:
    """A shard of latents that is whole."""
    folder.mkdir(exist_ok=True)
    form = shard.latent_form(recipe(**kind), SHAPE, SIZE, codec)
    return shard.save(folder, form, keys(count, seed), filled(form, count))


def spoil(path: Path, at: int, by: bytes = b"\x55") -> None:
    """Overwrite some bytes; counted from the end if negative."""
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        file.write(by)


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_cache_that_is_whole_passes(tmp_path: Path, codec: Codec, flip: bool, bf16: bool) -> None:
    made(tmp_path / "c", codec=codec, flip=flip, bf16=bf16)
    report = verify.cache(tmp_path / "c")
    assert (report.files, report.entries, report.bad, report.moved) == (1, 5, 0, 0)
    assert not (tmp_path / "c" / verify.JOURNAL).exists()


def test_text_states_are_looked_at_too(tmp_path: Path) -> None:
    form = shard.text_form(TextRecipe("clips", "float32", 75), (8, 12, 12))
    shard.save(tmp_path, form, keys(3), filled(form, 3))
    assert verify.cache(tmp_path).bad == 0
    shard.save(tmp_path, form, keys(2, 9), filled(form, 2, {1: np.nan}))
    assert verify.cache(tmp_path, move=False).bad == 1


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_changed_byte_costs_its_entry_and_no_other(tmp_path: Path, codec: Codec) -> None:
    path = made(tmp_path / "c", codec=codec)
    before = Catalogue.open(tmp_path / "c")
    whole = [before.read(p, check=True) for p in before.locate(keys(5)).tolist()]
    spoil(path, -10)  # in the last entry
    report = verify.cache(tmp_path / "c")
    assert (report.entries, report.bad, report.moved) == (5, 1, 1)
    assert (report.first[0].file, report.first[0].entry) == (path.name, 4)
    assert not path.exists() and path.with_name(path.name + verify.ASIDE).is_file()
    after = Catalogue.open(tmp_path / "c")
    places = after.locate(keys(5)).tolist()
    assert places[4] == -1, "the bad entry still counts as there"
    assert all(np.array_equal(after.read(p, check=True), w) for p, w in zip(places[:4], whole[:4], strict=True))
    assert verify.cache(tmp_path / "c").bad == 0, "a second look finds it again"
    (line,) = (tmp_path / "c" / verify.JOURNAL).read_text().splitlines()
    assert json.loads(line)["key"] == keys(5)[4].tobytes().hex()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bf16", [False, True])
def test_numbers_that_are_not_finite_are_found(tmp_path: Path, number: float, bf16: bool) -> None:
    form = shard.latent_form(recipe(bf16=bf16), SHAPE, SIZE)
    shard.save(tmp_path, form, keys(3), filled(form, 3, {1: number}))
    report = verify.cache(tmp_path)
    assert report.bad == 1 and report.first[0].entry == 1 and "finite" in report.first[0].why
    assert Catalogue.open(tmp_path).locate(keys(3)).tolist()[1] == -1


def test_a_shard_without_its_tail_or_tables_is_moved_aside_whole(tmp_path: Path) -> None:
    lost, spoiled, empty = (made(tmp_path / "c", seed=n) for n in (1, 2, 3))
    os.truncate(lost, lost.stat().st_size - 100)
    spoil(spoiled, 2000, b"\x00" * 40)
    os.truncate(empty, 0)
    good = made(tmp_path / "c", seed=4)
    report = verify.cache(tmp_path / "c", processes=2)
    assert report.files == 4 and report.entries >= 5 and report.moved == 3
    assert [p.name for p in (tmp_path / "c").glob("*.safetensors")].count(good.name) == 1
    assert verify.cache(tmp_path / "c").bad == 0


def test_arrays_of_another_shape_than_their_bucket_are_refused(tmp_path: Path) -> None:
    form = shard.latent_form(recipe(), SHAPE, (64, 64))
    shard.save(tmp_path, form, keys(2), filled(form, 2))
    report = verify.cache(tmp_path)
    assert report.bad == 1 and "bucket" in report.first[0].why


def test_a_report_alone_moves_nothing(tmp_path: Path) -> None:
    path = made(tmp_path / "c")
    spoil(path, -10)
    before = sorted(p.name for p in path.parent.iterdir())
    assert verify.cache(tmp_path / "c", move=False).bad == 1
    assert sorted(p.name for p in path.parent.iterdir()) == before


def kohyas(path: Path, **changes: object) -> Path:
    """A good cache of kohya's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (530, 400)
    cached = kohya.Cached(
        np.random.default_rng(3).standard_normal(SHAPE, np.float32),
        size,
        placing.letterbox(size, Bucket(*SIZE)),
    )
    body = {
        "latents": cached.latents,
        "original_size": np.array(size),
        "crop_ltrb": np.array(cached.crop),
    } | changes
    np.savez(path, **body)
    return path


def test_npz_trees_are_searched_and_bad_files_moved_aside(tmp_path: Path) -> None:
    root = tmp_path / "npz"
    for n in range(20):
        kohyas(root / f"sub{n % 3}/{n}_0530x0400_sdxl.npz")
    kohyas(root / "old.npz", latents_flipped=np.zeros(SHAPE, np.float32))
    (root / "a_te_outputs.npz").write_bytes(
        kohya.encode_text(kohya.States(np.zeros((77, 8)), np.zeros((77, 12)), np.zeros(12)))
    )
    (root / "picture.webp").write_bytes(b"x")
    assert (verify.npz(root).entries, verify.npz(root).bad) == (22, 0)
    os.truncate(root / "sub0/3_0530x0400_sdxl.npz", 900)
    spoil(root / "sub1/4_0530x0400_sdxl.npz", 400)
    kohyas(root / "nan.npz", latents=np.full(SHAPE, np.nan, np.float32))
    kohyas(root / "flip.npz", latents_flipped=np.full(SHAPE, np.inf, np.float32))
    kohyas(root / "name_0531x0400_sdxl.npz")
    os.mkfifo(root / "pipe.npz")
    report = verify.npz(root, processes=2)
    bad = {"sub0/3_0530x0400_sdxl.npz", "sub1/4_0530x0400_sdxl.npz", "nan.npz", "flip.npz", "pipe.npz"}
    bad.add("name_0531x0400_sdxl.npz")
    assert (report.entries, report.bad, report.moved) == (26, 6, 6)
    assert {p.relative_to(root).as_posix() for p in root.rglob("*.bad")} == {f"{name}.bad" for name in bad}
    told = [json.loads(line) for line in (root / verify.JOURNAL).read_text().splitlines()]
    assert {one["file"] for one in told} == bad and all(one["why"] for one in told)
    assert verify.npz(root).bad == 0


def test_npz_of_sizes_that_are_no_bucket_are_found_where_the_buckets_are_known(tmp_path: Path) -> None:
    kohyas(tmp_path / "a.npz")
    assert verify.npz(tmp_path, sizes=frozenset({SIZE})).bad == 0
    report = verify.npz(tmp_path, sizes=frozenset({(64, 64)}), move=False)
    assert report.bad == 1 and "none of the buckets" in report.first[0].why


@pytest.mark.parametrize("call", ["fsync", "write"])
def test_nothing_is_moved_aside_that_could_not_be_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = made(tmp_path / "c")
    spoil(path, -10)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(RunError, match="No space left"):
            verify.cache(tmp_path / "c")
    assert path.is_file()
    assert verify.cache(tmp_path / "c").moved == 1


@pytest.mark.parametrize("kind", ["shards", "npz"])
def test_storage_that_fails_is_no_fault_of_its_files(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    made(tmp_path) if kind == "shards" else kohyas(tmp_path / "a_0064x0064_sdxl.npz")
    before = sorted(os.listdir(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", stale)
        patch.setattr(os, "preadv", stale)
        patch.setattr(os, "readv", stale)
        with pytest.raises(RunError, match="could not be read") as raised:
            (verify.cache if kind == "shards" else verify.npz)(tmp_path)
    assert raised.value.failure == "storage" and sorted(os.listdir(tmp_path)) == before


def test_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    kohyas(tmp_path / "outside/a.npz")
    kohyas(tmp_path / "in/b.npz")
    (tmp_path / "in/link").symlink_to(tmp_path / "outside")
    assert verify.npz(tmp_path / "in").entries == 1


def _die(task: int) -> int:
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def test_a_process_that_is_killed_ends_the_work_with_a_reason() -> None:
    with pytest.raises(RunError, match="killed"):
        list(spreading.spread(_die, range(10), 2))
    assert [found for _, found in spreading.spread(_die, range(3), 2)] == [0, 1, 2]


def asked(*words: str) -> argparse.Namespace:
    """Arguments as the command line gives them."""
    parser = argparse.ArgumentParser()
    verify.add_arguments(parser)
    return parser.parse_args(words)


def test_the_command_tells_and_its_exit_code_says_whether_all_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made(tmp_path / "c")
    assert verify.run(asked(str(tmp_path / "c"))) == 0
    spoil(path, -10)
    capsys.readouterr()
    assert verify.run(asked(str(tmp_path / "c"), "--report-only", "--json")) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["bad"], told["entries"], told["first"][0]["entry"]) == (1, 5, 4)
    assert verify.run(asked(str(tmp_path / "c"), "--processes", "1")) == 3
    assert "moved aside" in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    for folder in ("none", "gone"):
        with pytest.raises(DataError, match=folder):
            verify.run(asked(str(tmp_path / folder)))
