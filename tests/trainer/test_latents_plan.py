"""Proves that tasks hold every missing entry exactly once, in one bucket each, the same ones for all."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_cache import pictures, row
from PIL import Image

from clusterft_trainer import decoding
from clusterft_trainer.buckets import Bucket, Fit
from clusterft_trainer.corpus import index
from clusterft_trainer.corpus.index import Row
from clusterft_trainer.latents import needs, pixels, plan, shard
from clusterft_trainer.latents.key import TextRecipe, text_key
from clusterft_trainer.latents.pixels import Unusable
from clusterft_trainer.latents.plan import Plan, Wanted

pytestmark = pytest.mark.trainer
SIDES = ((64, 64), (64, 128), (128, 64), (2048, 2048))


def _wanted(numbers: list[int], sides: list[int]) -> Wanted:
    """Rows with small numbers as keys; 0 needs nothing."""
    keys = np.zeros((len(numbers), 16), np.uint8)
    keys[:, 7] = numbers
    keys[:, 15] = numbers
    # a key says which bucket, so that equal ones agree
    sizes = np.array([SIDES[(number + sides[0]) % len(SIDES)] for number in numbers], np.int32).reshape(-1, 2)
    fits = np.arange(4 * len(numbers), dtype=np.int32).reshape(-1, 4)
    return Wanted(keys, sizes, fits)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 60), max_size=120),
    st.lists(st.integers(0, 3), min_size=1, max_size=1),
    st.sets(st.integers(1, 60)),
    st.sets(st.integers(1, 60)),
)
def test_what_is_missing_is_planned_once(
    tmp_path_factory: pytest.TempPathFactory,
    numbers: list[int],
    sides: list[int],
    have: set[int],
    broken: set[int],
) -> None:
    path = tmp_path_factory.mktemp("plan") / "t"
    wanted = _wanted(numbers, sides)
    known = np.isin(wanted.keys[:, 7], list(have))
    hopeless = np.zeros((len(broken), 16), np.uint8)
    hopeless[:, 7] = hopeless[:, 15] = sorted(broken)
    plan.write(path, wanted, known, hopeless, 4.0)
    made = Plan(path)
    assert sorted(made.keys[:, 7].tolist()) == sorted(set(numbers) - have - broken - {0})
    assert sum(map(len, made.tasks.values())) == len(made)
    for number, entry_row in enumerate(made.rows.tolist()):
        assert numbers.index(int(made.keys[number, 7])) == entry_row, "the first row of several counts"
        assert made.fit(number) == Fit(*wanted.fits[entry_row].tolist())
    for task in made.tasks.values():
        assert {tuple(wanted.sizes[r]) for r in made.rows[task.first : task.end].tolist()} == {
            (task.bucket.width, task.bucket.height)
        }
        assert list(made.rows[task.first : task.end]) == sorted(made.rows[task.first : task.end])
    assert {int(k[7]) for k in made.skipped} == (set(numbers) & broken) - have


def test_the_same_rows_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        wanted = _wanted([5, 3, 5, 9], [0])
        plan.write(tmp_path / name, wanted, np.zeros(4, bool), np.zeros((0, 16), np.uint8), 4.0)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("count", "side", "size", "most"),
    [
        (100, 64, 4.0, 64),
        (100_000, 64, 0.25, 100_000 // 256),
        (1_000_000, 64, 0.25, 1000),
        (1_000_000, 1024, 0.25, 1000),
        (1_000_000, 2048, 0.5, 128),  # 2 MB each, 256 MB together
    ],
)
def test_tasks_are_many_enough_to_share_and_no_larger_than_a_shard(
    count: int, side: int, size: float, most: int
) -> None:
    ends = plan.cut(np.full((count, 2), side, np.int32), size)
    lengths = np.diff([0, *ends])
    assert lengths.max() == most and lengths.sum() == count
    assert lengths.max() * side * side * size <= shard.MOST_BYTES


def test_an_index_of_pictures_and_kohya_caches_needs_what_has_no_cache(tmp_path: Path) -> None:
    rows = pictures(tmp_path / "pictures", 8)
    cached = [Row(**{f: getattr(r, f) for f in Row.__slots__} | {"npz": "/x.npz"}) for r in rows[:3]]
    alone = Row(0, "zz", "", -1, 0, b"", 64, 64, "c", None, "/y.npz")
    found = index.write(tmp_path / "index", [*cached, *rows[3:], alone])
    assert needs.hashes(found).any(axis=1).sum() == 8
    assert needs.hashes(found, npz=True).any(axis=1).sum() == 5
    assert needs.hashes(found)[4].tobytes() == rows[4].hash


def test_captions_are_wanted_as_the_tokenizers_get_them(tmp_path: Path) -> None:
    rows = [
        row(tmp_path, f"{n}.bmp", b"x%d" % n, (64, 64), caption)
        for n, caption in enumerate(["a", "b", "a", "ä\n"])
    ]
    found = index.write(tmp_path / "index", rows)
    recipe = TextRecipe("clip", "float32", 75)
    order = needs.texts(found, lambda text: f"by x, {text}", recipe, tmp_path, 10)
    keys = [key.tobytes() for key in order.wanted().keys]
    assert keys == [text_key(f"by x, {r.caption}", recipe) for r in rows]
    other = needs.texts(found, lambda text: text, recipe, tmp_path, 10)
    assert other.identity != order.identity


def _png(image: Image.Image, **about: object) -> bytes:
    held = io.BytesIO()
    image.save(held, "PNG", **about)
    return held.getvalue()


def test_pixels_are_those_that_the_loader_decodes(tmp_path: Path) -> None:
    source = np.random.default_rng(2)
    image = Image.fromarray(source.integers(0, 256, (90, 120, 4), np.uint8), "RGBA")
    exif = Image.Exif()
    exif[274] = 6  # on its side
    data = _png(image, exif=exif.tobytes())
    found = row(tmp_path, "a.png", data, (90, 120))
    bucket, fit = Bucket(64, 64), Fit(64, 85, 0, 10)
    ours = pixels.load(found, fit, bucket)
    assert ours.shape == (64, 64, 3)
    np.testing.assert_array_equal(ours, decoding.pixels(found, fit, bucket))
    packed = tmp_path / "a.tar"
    packed.write_bytes(b"before" + data + b"behind")
    inside = Row(0, "a.png", str(packed), 6, len(data), found.hash, 90, 120, "", None, "")
    np.testing.assert_array_equal(ours, pixels.load(inside, fit, bucket))


def _bomb() -> bytes:
    """Says of itself that it is 50,000 pixels wide and high."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "broken"),
        (b"RIFF\x00\x10\x00\x00WEBPVP8 ", "broken"),
        (_png(Image.new("RGB", (64, 64)))[:60], "broken"),
        (_png(Image.new("RGB", (32, 32))), "broken"),  # of another size than was indexed
        (_bomb(), "broken"),
    ],
)
def test_a_broken_picture_is_told_as_one(tmp_path: Path, data: bytes, kind: str) -> None:
    with pytest.raises(Unusable) as raised:
        pixels.load(row(tmp_path, "a.png", data, (64, 64)), Fit(64, 64, 0, 0), Bucket(64, 64))
    assert raised.value.kind == kind


def test_bytes_that_are_not_those_of_the_index_are_no_content_for_its_key(tmp_path: Path) -> None:
    found = row(tmp_path, "a.png", _png(Image.new("RGB", (64, 64))), (64, 64))
    Path(found.file).write_bytes(_png(Image.new("RGB", (64, 64), "red")))
    with pytest.raises(Unusable) as raised:
        pixels.load(found, Fit(64, 64, 0, 0), Bucket(64, 64))
    assert raised.value.kind == "changed"
    os.remove(found.file)
    with pytest.raises(Unusable) as raised:
        pixels.load(found, Fit(64, 64, 0, 0), Bucket(64, 64))
    assert raised.value.kind == "unreadable"
