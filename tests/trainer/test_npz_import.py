"""Proves that kohya's caches become shards and come back equal, with or without the pictures."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clusterft_trainer import kohya, placing
from clusterft_trainer.buckets import Bucket
from clusterft_trainer.config import Buckets
from clusterft_trainer.corpus import index as indices
from clusterft_trainer.corpus.index import Index, Row
from clusterft_trainer.errors import ConfigError, DataError
from clusterft_trainer.latents import importing, shard
from clusterft_trainer.latents.catalogue import Catalogue, shard_names
from clusterft_trainer.latents.importing import Store
from clusterft_trainer.latents.key import Recipe

BY = placing.rules(Buckets(), 128)
RECIPE = Recipe("vae", "float32", "sample", False, 7)
SIZES = [(128, 128), (300, 200), (200, 300), (128, 128), (1000, 90), (640, 480)]


def cached(
    size: tuple[int, int], seed: int, *, flipped: bool = False, bucket: Bucket | None = None
) -> kohya.Cached:
    """What kohya would have written of a picture."""
    chosen = bucket or placing.place(*size, BY)[0]
    source = np.random.default_rng(seed)
    shape = (4, chosen.height // 8, chosen.width // 8)
    values = source.standard_normal(shape, np.float32)
    other = source.standard_normal(shape, np.float32) if flipped else None
    return kohya.Cached(values, size, placing.letterbox(size, chosen), other)


def rows(root: Path, *, flipped: bool = False, pictures: bool = False) -> list[Row]:
    """Rows of files that are there, of both generations."""
    root.mkdir(exist_ok=True)
    (root / "sub").mkdir(exist_ok=True)
    found = []
    for n, size in enumerate(SIZES):
        stem = f"sub/p{n}" if n % 2 else f"p{n}"
        name = kohya.names(stem, size)[n % 2]
        (root / name).write_bytes(kohya.encode(cached(size, n, flipped=flipped)))
        told = bytes([n + 1]) * 16 if pictures else b""
        found.append(Row(0, f"{stem}.webp", "", -1, 0, told, *size, f"caption {n}", None, str(root / name)))
    return found


def store(tmp_path: Path, found: list[Row], recipe: Recipe = RECIPE) -> Store:
    """A cache without entries beside an index of these rows."""
    return Store(indices.write(tmp_path / "index", found), tmp_path / "cache", BY, recipe)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_read_imported_and_written_back_the_files_are_equal(
    tmp_path: Path, flipped: bool, pictures: bool, codec: shard.Codec
) -> None:
    found = rows(tmp_path / "npz", flipped=flipped, pictures=pictures)
    here = store(tmp_path, found, replace(RECIPE, flip=flipped))
    report = importing.import_npz(here, codec=codec)
    assert (report.done, report.there, report.without, report.refused) == (len(SIZES), 0, 0, 0)
    back = importing.export_npz(here, tmp_path / "out")
    assert (back.done, back.without) == (len(SIZES), 0)
    for row in found:
        stem = row.name.removesuffix(".webp")
        written = tmp_path / "out" / kohya.names(stem, (row.width, row.height))[1]
        assert written.read_bytes() == Path(row.npz).read_bytes()
    legacy = importing.export_npz(here, tmp_path / "legacy", legacy=True)
    assert legacy.done == len(SIZES) and (tmp_path / "legacy/sub/p1.npz").is_file()


def test_bfloat16_comes_back_rounded_and_no_worse(tmp_path: Path) -> None:
    found = rows(tmp_path / "npz")
    here = store(tmp_path, found, replace(RECIPE, dtype="bfloat16"))
    importing.import_npz(here)
    importing.export_npz(here, tmp_path / "out", legacy=True)
    before, after = kohya.latents(Path(found[0].npz)), kohya.latents(tmp_path / "out/p0.npz")
    assert np.abs(before - after).max() <= 2**-8 * np.abs(before).max()


def test_a_rerun_imports_nothing_and_a_new_file_alone(tmp_path: Path) -> None:
    found = rows(tmp_path / "npz")
    importing.import_npz(store(tmp_path, found[:-1]))
    before = set(shard_names(tmp_path / "cache"))
    again = importing.import_npz(store(tmp_path, found[:-1]))
    assert (again.done, again.there) == (0, len(SIZES) - 1)
    more = importing.import_npz(store(tmp_path, found))
    assert (more.done, more.there) == (1, len(SIZES) - 1)
    assert before < set(shard_names(tmp_path / "cache"))


def test_a_row_without_a_picture_is_found_again_after_its_files_moved(tmp_path: Path) -> None:
    found = rows(tmp_path / "npz")
    importing.import_npz(store(tmp_path, found))
    (tmp_path / "npz").rename(tmp_path / "elsewhere")
    moved = [replace(row, npz=row.npz.replace("/npz/", "/elsewhere/")) for row in found]
    assert importing.import_npz(store(tmp_path, moved)).there == len(SIZES)
    known = [replace(row, hash=kohya.look(Path(row.npz)).identity) for row in moved]
    assert importing.import_npz(store(tmp_path, known)).there == len(SIZES), "the index may hold the identity"


def test_the_shards_are_the_same_whoever_imports(tmp_path: Path) -> None:
    found = rows(tmp_path / "npz")
    one = store(tmp_path, found)
    other = replace(one, folder=tmp_path / "other")
    for each in (one, other):
        importing.import_npz(each)
    names = shard_names(one.folder)
    assert names == shard_names(other.folder) and len(names) >= 3
    assert all((one.folder / n).read_bytes() == (other.folder / n).read_bytes() for n in names)


def test_what_cannot_be_used_is_counted_named_and_costs_no_other(tmp_path: Path) -> None:
    found = rows(tmp_path / "npz")
    Path(found[0].npz).write_bytes(b"junk")
    Path(found[1].npz).write_bytes(kohya.encode(cached(SIZES[1], 1, bucket=Bucket(64, 64))))
    wrong = kohya.encode(replace(cached(SIZES[2], 2), original=(201, 300)))
    Path(found[2].npz).write_bytes(wrong)
    endless = cached(SIZES[3], 3)
    endless.latents[0, 0, 0] = np.nan
    Path(found[3].npz).write_bytes(kohya.encode(endless))
    found[4] = replace(found[4], npz="s3://bucket/p4.npz")
    found[5] = replace(found[5], npz="")
    extra = replace(found[0], name="z.webp", npz=str(tmp_path / "npz/z.npz"))
    Path(extra.npz).write_bytes(kohya.encode(cached(SIZES[0], 99)))
    report = importing.import_npz(store(tmp_path, [*found, extra]))
    assert (report.done, report.without, report.refused) == (1, 1, 5)
    text = "\n".join(report.first)
    for part in ("p0.npz", "made for 64x64", "(201, 300)", "not finite", "s3://bucket/p4.npz"):
        assert part in text


def test_two_rows_of_one_picture_have_one_entry(tmp_path: Path) -> None:
    found = rows(tmp_path / "npz", pictures=True)
    twin = replace(found[0], name="twin.webp")
    report = importing.import_npz(store(tmp_path, [*found, twin]))
    assert (report.done, report.there) == (len(SIZES), 1)


def test_samples_do_not_pass_for_means_and_mirrored_ones_must_be_there(tmp_path: Path) -> None:
    found = rows(tmp_path / "npz")
    with pytest.raises(ConfigError, match="samples"):
        importing.import_npz(store(tmp_path, found, replace(RECIPE, take="mean", seed=0)))
    report = importing.import_npz(store(tmp_path, found, replace(RECIPE, flip=True)))
    assert report.refused == len(SIZES) and "latents_flipped" in report.first[0]


def test_files_are_not_replaced_unless_asked_and_one_name_is_not_used_twice(tmp_path: Path) -> None:
    found = rows(tmp_path / "npz")
    here = store(tmp_path, found)
    importing.import_npz(here)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/p0.npz").write_bytes(b"other")
    with pytest.raises(DataError, match="another file"):
        importing.export_npz(here, tmp_path / "out", legacy=True)
    importing.export_npz(here, tmp_path / "out", legacy=True, overwrite=True)
    assert importing.export_npz(here, tmp_path / "out", legacy=True).there == len(SIZES)
    same_stem = replace(found[3], name="p0.png")  # beside p0.webp
    twice = store(tmp_path, [*found, same_stem])
    with pytest.raises(DataError, match="another file"):
        importing.export_npz(twice, tmp_path / "twice", legacy=True)


def test_rows_of_several_sources_are_written_apart(tmp_path: Path) -> None:
    found = rows(tmp_path / "npz")
    here = store(tmp_path, [*found, replace(found[0], source=1)])
    importing.import_npz(here)
    importing.export_npz(here, tmp_path / "out", legacy=True)
    assert (tmp_path / "out/0/p0.npz").read_bytes() == (tmp_path / "out/1/p0.npz").read_bytes()


def test_a_cache_of_another_vae_is_refused(tmp_path: Path) -> None:
    found = rows(tmp_path / "npz")
    importing.import_npz(store(tmp_path, found))
    with pytest.raises(DataError, match="another recipe"):
        importing.import_npz(store(tmp_path, found, replace(RECIPE, vae="other")))


def test_the_commands_tell_what_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path, rows(tmp_path / "npz"))
    parser = argparse.ArgumentParser()
    importing.add_export_arguments(parser)
    words = [f"--index={tmp_path / 'index'}", f"--cache={tmp_path / 'cache'}", f"--recipe={RECIPE.to_json()}"]
    told = parser.parse_args([*words, "--resolution=128", f"--out={tmp_path / 'out'}"])
    assert importing.run_import(told) == 0
    assert f"{len(SIZES)} imported" in capsys.readouterr().out
    told.json = True
    assert importing.run_export(told) == 0
    assert json.loads(capsys.readouterr().out)["done"] == len(SIZES)
    told.buckets = '{"smallest": 3}'
    with pytest.raises(ConfigError, match="buckets"):
        importing.run_import(told)
    assert isinstance(Index.open(tmp_path / "index"), Index)
    assert len(Catalogue.open(tmp_path / "cache", RECIPE.to_json())) == len(SIZES)
