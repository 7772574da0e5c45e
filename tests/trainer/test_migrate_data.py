"""Proves that kohya's pictures, repeats, buckets, caches and caption settings become the same ones here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_migrate import at, left, loads, of

from clusterft_trainer import migrate


def of_file(data: str, flags: str = "") -> migrate.Migration:
    """The migration of a command with a data set file."""
    command = (
        f"accelerate launch sdxl_train.py --dataset_config d.toml --pretrained_model_name_or_path /m.ckpt {flags}"
    )
    return migrate.run(command, "train.sh", migrate.AtHand({"d.toml": data}))


@pytest.mark.parametrize(
    ("flags", "path", "value"),
    [
        ("--in_json=/m.json", "sources", [{"kohya": "/m.json", "folder": "/d"}]),
        ("--in_json=/m.json --dataset_repeats=4", "sources", [{"kohya": "/m.json", "folder": "/d", "repeats": 4}]),
        ("--caption_extension=.txt", "sources", [{"folder": "/d"}]),
        # where texts of both kinds lie beside a picture, .txt would count
        ("--caption_extension=caption", "sources", [{"folder": "/d", "suffixes": [".caption"]}]),
        ("--caption_extention=.tags", "sources", [{"folder": "/d", "suffixes": [".tags"]}]),
        ("--enable_bucket --max_bucket_reso=2048", "buckets", {"largest": 2048}),
        ("--enable_bucket --max_bucket_reso=1024 --min_bucket_reso=256", "buckets", None),
        ("--enable_bucket --max_bucket_reso=2000 --min_bucket_reso=200", "buckets",
         {"largest": 2048, "smallest": 192}),
        ("--enable_bucket --bucket_reso_steps=32 --max_bucket_reso=1500", "buckets",
         {"step": 32, "largest": 1504}),
        ("--enable_bucket --resolution=768", "buckets", {"largest": 1024, "smallest": 256}),
        ("--enable_bucket --resolution=768 --max_bucket_reso=768 --min_bucket_reso=192", "buckets", None),
        ("--enable_bucket --resolution=1536 --max_bucket_reso=1536", "buckets", {"smallest": 256}),
        ("--enable_bucket --resolution=256", "buckets", {"step": 64, "largest": 1024, "smallest": 256}),
        ("--enable_bucket --bucket_no_upscale --bucket_reso_steps=32", "buckets", {"step": 32, "upscale": False}),
        ("--resolution=768", "buckets", None),
        ("--cache_latents", "cache", None),
        ("--cache_latents --cache_latents_to_disk", "cache", {"take": "sample"}),
        ("--cache_latents_to_disk --in_json=/m.json", "cache", {"take": "sample", "npz": True}),
        ("--cache_latents --flip_aug", "cache", {"take": "sample", "flip": True}),
        ("--cache_latents_to_disk --flip_aug", "cache", {"take": "sample", "flip": True}),
        ("--flip_aug --in_json=/m.json", "cache", {"take": "sample", "flip": True}),
        ("--cache_text_encoder_outputs --keep_tokens_separator='|||'", "cache.text", True),
        ("--cache_text_encoder_outputs --caption_dropout_rate=0.1", "cache", None),
        ("--token_warmup_step=100 --token_warmup_min=3", "captions", {"warmup": {"steps": 100, "least": 3}}),
        ("--token_warmup_step=0.25 --max_train_steps=1000", "captions", {"warmup": {"steps": 250}}),
        ("--token_warmup_step=9.5 --keep_tokens=2", "captions", {"warmup": {"steps": 10}, "keep": 2}),
        ("--caption_tag_dropout_rate=0.1 --caption_separator=';'", "captions",
         {"tag_dropout": 0.1, "separator": ";"}),
        ("--caption_prefix='a b' --caption_suffix=c --secondary_separator=';'", "captions",
         {"prefix": "a b", "suffix": "c", "secondary_separator": ";"}),
    ],
)  # fmt: skip
def test_a_flag_of_the_data_becomes_the_setting_that_trains_alike(
    flags: str, path: str, value: Any, tmp_path: Path
) -> None:
    migration = of(flags)
    assert at(migration, f"data.{path}") == value
    loads(migration, tmp_path)


def test_buckets_become_those_of_kohya() -> None:
    """Its own rule, written again from its text, at limits that it was told and that it was not."""
    from clusterft_trainer import buckets, placing
    from clusterft_trainer.config import Buckets

    def kohyas(side: int, smallest: int, largest: int, step: int) -> set[tuple[int, int]]:
        found = {(side // step * step, side // step * step)}
        for width in range(smallest, largest + 1, step):
            height = min(largest, side * side // width // step * step)
            found |= {(width, height), (height, width)} if height >= smallest else set()
        return found

    cases = (
        ("--resolution=768", (768, 256, 1024, 64)),
        ("--resolution=512 --max_bucket_reso=700 --min_bucket_reso=130", (512, 128, 704, 64)),
        ("--resolution=448 --bucket_reso_steps=64", (448, 256, 1024, 64)),
        ("--resolution=1024 --max_bucket_reso=2048 --bucket_reso_steps=32", (1024, 256, 2048, 32)),
    )
    for flags, told in cases:
        migration = of(f"--enable_bucket {flags}")
        ours = placing.rules(Buckets(**(at(migration, "data.buckets") or {})), at(migration, "data.resolution"))
        assert set(ours.table) == {buckets.Bucket(*size) for size in kohyas(*told)}, flags


def test_folders_with_repeats_in_their_names_become_sources(tmp_path: Path) -> None:
    for name in ("10_cat", "1_dog", "0_none", "rest", "3"):
        (tmp_path / "img" / name).mkdir(parents=True)
    (tmp_path / "img" / "2_file").touch()
    text = f"accelerate launch sdxl_train.py --train_data_dir={tmp_path}/img/ --caption_extension=.cap"
    migration = migrate.run(text, "t.sh", migrate.Beside(tmp_path / "t.sh"))
    assert at(migration, "data.sources") == [
        {"folder": f"{tmp_path}/img/10_cat", "repeats": 10, "suffixes": [".cap"]},
        {"folder": f"{tmp_path}/img/1_dog", "suffixes": [".cap"]},
        {"folder": f"{tmp_path}/img/3", "repeats": 3, "suffixes": [".cap"]},
    ]
    assert any("left out: 0_none, rest" in note for note in migration.notes)
    loads(migration, tmp_path)


def test_folders_that_are_not_at_hand_are_told_with_what_to_write(tmp_path: Path) -> None:
    told = "{folder: /d/10_name, repeats: 10}"
    assert any("/d is not at hand here" in note and told in note for note in of("").notes)
    (tmp_path / "img").mkdir()
    text = "accelerate launch sdxl_train.py --train_data_dir=img"
    migration = migrate.run(text, "t.sh", migrate.Beside(tmp_path / "t.sh"))
    assert at(migration, "data.sources") == [{"folder": "img"}]
    assert any("img has no folder like 10_name" in note for note in migration.notes)


def test_each_subset_becomes_a_source_with_the_words_that_hold_for_it(tmp_path: Path) -> None:
    migration = of_file(
        """
[general]
num_repeats = 2
caption_extension = ".tags"
[[datasets]]
  [[datasets.subsets]]
  image_dir = "/a"
  num_repeats = 10
  [[datasets.subsets]]
  image_dir = "/b"
  caption_extension = ".txt"
[[datasets]]
num_repeats = 3
  [[datasets.subsets]]
  metadata_file = "/c.json"
  image_dir = "/c"
  [[datasets.subsets]]
  metadata_file = "/d.json"
  num_repeats = 1
""",
        "--dataset_repeats=7 --in_json=/x.json --max_train_epochs=4 --save_every_n_epochs=2",
    )
    assert at(migration, "data.sources") == [
        {"folder": "/a", "suffixes": [".tags"], "repeats": 10},
        {"folder": "/b", "repeats": 2},
        {"kohya": "/c.json", "folder": "/c", "repeats": 3},
        {"kohya": "/d.json"},
    ]
    assert (at(migration, "epochs"), at(migration, "output.every_epochs")) == (4, 2)  # as long as they were
    assert left(migration) == {
        "--dataset_repeats": "overruled: no subset is left for which it counts",
        "--in_json": "overruled: kohya ignores it beside a data set file",
    }
    loads(migration, tmp_path)


def test_the_command_lines_repeats_hold_where_no_subset_says_otherwise() -> None:
    migration = of_file("[[datasets]]\n[[datasets.subsets]]\nimage_dir = '/a'\n", "--dataset_repeats=7")
    assert at(migration, "data.sources") == [{"folder": "/a", "repeats": 7}]
    assert not left(migration)


def test_subsets_that_kohya_leaves_out_or_that_cannot_be_taken_are_left_out_aloud() -> None:
    migration = of_file(
        """
[[datasets]]
  [[datasets.subsets]]
  image_dir = "/a"
  [[datasets.subsets]]
  image_dir = "/never"
  num_repeats = 0
  [[datasets.subsets]]
  image_dir = "/regular"
  is_reg = true
  num_repeats = 5
[[datasets]]
resolution = 512
  [[datasets.subsets]]
  image_dir = "/a"
  num_repeats = 4
"""
    )
    assert at(migration, "data.sources") == [{"folder": "/a"}]
    assert any("/never is left out, as kohya does" in note for note in migration.notes)
    reasons = [(entry.flag.rpartition(" ")[2], entry.value, entry.reason[:23]) for entry in migration.unknown]
    assert ("image_dir", "/regular", "prior preservation is n") in reasons
    assert ("num_repeats", "5", "prior preservation is n") in reasons
    assert ("image_dir", "/a", "these pictures are in a") in reasons
    assert ("num_repeats", "4", "these pictures are in a") in reasons


def test_a_number_of_repeats_that_is_none_is_told() -> None:
    for repeats in ("'many'", "1.5", "[2]"):
        migration = of_file(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '/a'\nnum_repeats = {repeats}\n")
        assert at(migration, "data.sources") == [{"folder": "/a"}]
        assert left(migration)["[[datasets.subsets]] num_repeats"].startswith("unreadable")


def test_what_only_some_subsets_say_is_told_to_hold_for_all() -> None:
    migration = of_file(
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '/a'\nflip_aug = true\ncaption_prefix = 'x'\n"
        "[[datasets.subsets]]\nimage_dir = '/b'\n"
    )
    assert at(migration, "data.cache.flip") and at(migration, "data.captions") == {"prefix": "x"}
    for told in ("data.cache: flip_aug was for 1 of 2", "data.captions: caption_prefix was for 1 of 2"):
        assert any(told in note for note in migration.notes), migration.notes


def test_a_cache_that_kohya_did_not_keep_is_told() -> None:
    told = "data.cache: flip needs it, and"
    assert any(told in note for note in of("--flip_aug").notes)
    assert not any(told in note for note in of("--flip_aug --cache_latents").notes)
    assert any("_te_outputs.npz are not taken" in n for n in of("--cache_text_encoder_outputs_to_disk").notes)


def test_caches_that_nothing_here_would_find_are_told() -> None:
    told = "found through its metadata file only"
    assert any(told in note for note in of("--cache_latents_to_disk").notes)
    assert not any(told in note for note in of("--cache_latents_to_disk --in_json=/m.json").notes)
