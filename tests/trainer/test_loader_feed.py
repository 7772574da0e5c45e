"""Proves that a batch gets its own pictures' latents out of the cache, whole, the right way round, or none."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from clusterft_trainer import decoding, kohya, placing
from clusterft_trainer.config import Buckets
from clusterft_trainer.corpus import index
from clusterft_trainer.corpus.index import Index, Row
from clusterft_trainer.errors import DataError
from clusterft_trainer.latents import feed, shard
from clusterft_trainer.latents.catalogue import Catalogue
from clusterft_trainer.latents.feed import Feed, Texts, located
from clusterft_trainer.latents.key import Recipe, TextRecipe, entry_key, text_keys

SIZES = [(64, 64), (130, 60), (60, 200), (500, 500), (64, 64)]
PLAIN = Recipe("a vae", "float32", "mean", flip=False, seed=0)


def rows(folder: Path, count: int = 5, nameless: tuple[int, ...] = ()) -> Index:
    """Pictures that are known by hash and size; those that are `nameless` have neither picture nor hash."""
    made = []
    for n in range(count):
        known = b"" if n in nameless else xxhash.xxh3_128_digest(b"%d" % n)
        made.append(Row(0, f"{n:04d}.png", f"/p/{n:04d}.png", -1, 9, known, *SIZES[n % 5], f"c{n}", None, ""))
    return index.write(folder, made)


def rules(**settings: Any) -> placing.Rules:
    return placing.rules(Buckets.model_validate(settings), 128)


def values(row: int, shape: tuple[int, ...]) -> np.ndarray:
    """Latents that no other row has, in numbers that bfloat16 can hold."""
    return (np.arange(np.prod(shape)).reshape(shape) % 16 + 16 * row).astype(np.float32)


def store(
    folder: Path, found: Index, recipe: Recipe, only: set[int], codec: Literal["none", "zstd"] = "none"
) -> None:
    """A shard for each of these rows."""
    folder.mkdir(exist_ok=True)
    for n in only:
        row = found.row(n)
        bucket, fit = placing.place(row.width, row.height, rules())
        shape = (4, bucket.height // 8, bucket.width // 8)
        form = shard.latent_form(recipe, shape, (bucket.width, bucket.height), codec)
        one = values(n, shape)
        whole = np.stack([one, one + 128]) if recipe.flip else one
        key = np.frombuffer(entry_key(row.hash, bucket, fit, recipe), np.uint8)[None]
        shard.save(folder, form, key, [shard.payload(form, [whole])])


def opened(folder: Path, found: Index, recipe: Recipe) -> Feed:
    there = Catalogue.open(folder, recipe.to_json())
    return Feed(there, located(there, found, rules(), recipe), found)


def room(found: Index, row: int) -> np.ndarray:
    bucket, _ = placing.place(*found.sizes()[row].tolist(), rules())
    return np.full((4, bucket.height // 8, bucket.width // 8), -1, np.float32)


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("flip", [False, True])
def test_each_row_gets_its_own_latents_the_right_way_round(
    tmp_path: Path,
    codec: Literal["none", "zstd"],
    dtype: Literal["float32", "bfloat16"],
    flip: bool,
) -> None:
    found = rows(tmp_path / "index")
    recipe = Recipe("a vae", dtype, "sample", flip=flip, seed=4)
    store(tmp_path / "latents", found, recipe, {0, 1, 2, 4}, codec)
    made = opened(tmp_path / "latents", found, recipe)
    for _ in range(2):  # the second time without its checksum
        for row in range(5):
            for mirrored in (False, True) if flip else (False,):
                out = room(found, row)
                assert made.read(row, mirrored, out) == (row != 3)
                assert np.array_equal(out, values(row, out.shape) + 128 * mirrored if row != 3 else room(found, 3))


def test_another_vae_or_another_setting_finds_nothing(tmp_path: Path) -> None:
    found = rows(tmp_path / "index")
    store(tmp_path / "latents", found, PLAIN, set(range(5)))
    there = Catalogue.open(tmp_path / "latents")
    assert (located(there, found, rules(), PLAIN) >= 0).all()
    for other in (
        Recipe("another vae", "float32", "mean", flip=False, seed=0),
        Recipe("a vae", "float32", "sample", flip=False, seed=0),
    ):
        assert (located(there, found, rules(), other) == -1).all()
    # another bucket for one shape: only that one is missing
    wide = located(there, found, rules(sizes=["64x128", "128x128", "128x96"]), PLAIN)
    assert (wide >= 0).sum() < 5


def test_pictures_without_a_hash_have_no_entry(tmp_path: Path) -> None:
    found = rows(tmp_path / "index", nameless=(1, 3))
    store(tmp_path / "latents", found, PLAIN, {0, 2, 4})
    there = Catalogue.open(tmp_path / "latents")
    assert (located(there, found, rules(), PLAIN) >= 0).tolist() == [True, False, True, False, True]


def test_an_entry_that_changed_is_refused_when_it_is_first_read(tmp_path: Path) -> None:
    found = rows(tmp_path / "index")
    store(tmp_path / "latents", found, PLAIN, {2})
    made = opened(tmp_path / "latents", found, PLAIN)
    (path,) = (tmp_path / "latents").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"{path.name} is damaged: the checksum of entry 0 is another one"):
        made.read(2, False, room(found, 2))


def test_storage_that_fails_while_training_is_told_with_the_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rows(tmp_path / "index")
    store(tmp_path / "latents", found, PLAIN, {2})
    made = opened(tmp_path / "latents", found, PLAIN)
    (path,) = (tmp_path / "latents").glob("*.safetensors")

    def broken(*_: object) -> int:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("os.preadv", broken)
    with pytest.raises(DataError, match=rf"Entry 0 of .*{path.name} cannot be read \(Stale file handle\)"):
        made.read(2, False, room(found, 2))


def test_many_threads_read_what_one_would(tmp_path: Path) -> None:
    found = rows(tmp_path / "index", 40)
    recipe = Recipe("a vae", "float32", "mean", flip=True, seed=0)
    store(tmp_path / "latents", found, recipe, set(range(40)))
    made = opened(tmp_path / "latents", found, recipe)

    def right(n: int) -> bool:
        out = room(found, n % 40)
        return made.read(n % 40, n % 2 == 1, out) and bool(out[0, 0, 1] == 16 * (n % 40) + 1 + 128 * (n % 2))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(right, range(400)))


def test_little_that_is_missing_is_made_by_the_run_and_much_is_refused() -> None:
    feed.refuse_absent(10, 1000, "/cache")
    feed.refuse_absent(0, 0, "/cache")
    with pytest.raises(
        DataError, match=r"11 of 1000 pictures have no latents .* /cache\..*clusterft prep job.yaml"
    ):
        feed.refuse_absent(11, 1000, "/cache")


@given(st.lists(st.tuples(st.integers(0, 2**21 - 1), st.integers(0, 999)), max_size=20))
def test_positions_survive_being_packed(places: list[tuple[int, int]]) -> None:
    wide = np.array([number << 20 | slot for number, slot in places] + [-1], np.int64)
    packed = feed._packed(wide)
    assert packed[-1] == -1 and (packed[:-1] >= 0).all()
    assert [feed.unpacked(int(one)) for one in packed[:-1]] == wide[:-1].tolist()


@pytest.mark.parametrize("position", [2**21 << 20, 1024])
def test_a_cache_too_large_for_packed_positions_is_told(position: int) -> None:
    with pytest.raises(ValueError, match="more shards, or larger ones"):
        feed._packed(np.array([position], np.int64))


def test_states_of_captions_are_found_together_or_not_at_all(tmp_path: Path) -> None:
    recipe = TextRecipe("encoders", "float32", 75)
    form = shard.text_form(recipe, (3, 5, 2))
    captions = ["a cat", "", "ein Ä"]
    payloads = [
        shard.payload(form, [np.full(a.shape, n, np.float32) for a in form.arrays]) for n in range(len(captions))
    ]
    shard.save(tmp_path, form, text_keys(captions, recipe), payloads)
    made = Texts(Catalogue.open(tmp_path), recipe)
    found = made.read(["ein Ä", "a cat", "ein Ä"])
    assert found is not None
    assert [tuple(part.shape for part in one) for one in found] == [((77, 3), (77, 5), (2,))] * 3
    assert [[float(part.mean()) for part in one] for one in found] == [[2] * 3, [0] * 3, [2] * 3]
    assert made.read(["a cat", "a dog"]) is None


def kohyas(
    folder: Path, number: int, size: tuple[int, int], shape: tuple[int, int], *, flipped: bool = True
) -> Row:
    """A row of which there is kohya's cache alone."""
    whole = np.full((4, *shape), number, np.float32)
    made = kohya.Cached(whole, size, (0.0, 0.0, 1.0, 1.0), whole + 0.5 if flipped else None)
    path = folder / f"{number:04d}.npz"
    path.write_bytes(kohya.encode(made))
    return Row(0, path.stem, "", -1, 0, b"", *size, "c", None, str(path))


def test_kohyas_caches_are_read_where_they_lie_without_pictures(tmp_path: Path) -> None:
    found = index.write(tmp_path / "index", [kohyas(tmp_path, n, (300, 300), (16, 16)) for n in range(3)])
    (tmp_path / "latents").mkdir()
    there = Catalogue.open(tmp_path / "latents")
    positions = located(there, found, rules(), PLAIN)
    assert positions.tolist() == [feed.NPZ] * 3
    feed.look_at_npz(positions, found, rules(), flip=True)
    made = Feed(there, positions, found)
    for _ in range(2):
        for row in range(3):
            for mirrored in (False, True):
                out = room(found, row)
                assert made.read(row, mirrored, out) and (out == row + mirrored / 2).all()


def test_kohyas_caches_and_pictures_behind_a_url_are_fetched(tmp_path: Path) -> None:
    import fsspec
    from PIL import Image

    memory = fsspec.filesystem("memory")
    local = kohyas(tmp_path, 3, (300, 300), (16, 16))
    memory.pipe("/set/a.npz", Path(local.npz).read_bytes())
    Image.new("RGB", (64, 64), "red").save(tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    memory.pipe("/set/p.tar", bytes(512) + data + bytes(99))
    cached = Row(0, "a", "", -1, 0, b"", 300, 300, "c", None, "memory://set/a.npz")
    found = index.write(tmp_path / "index", [cached])
    (tmp_path / "latents").mkdir()
    there = Catalogue.open(tmp_path / "latents")
    made = Feed(there, located(there, found, rules(), PLAIN), found)
    for mirrored in (False, True):
        out = room(found, 0)
        assert made.read(0, mirrored, out) and (out == 3 + mirrored / 2).all()
    bucket = placing.Bucket(64, 64)
    fit = placing.fit(64, 64, bucket)
    packed = Row(0, "p.png", "memory://set/p.tar", 512, len(data), b"", 64, 64, "", None, "")
    assert (decoding.pixels(packed, fit, bucket) == [255, 0, 0]).all()
    gone = Row(0, "q.png", "memory://set/q.png", -1, 9, b"", 64, 64, "", None, "")
    with pytest.raises(DataError, match=r"memory://set/q\.png cannot be decoded"):
        decoding.pixels(gone, fit, bucket)


def test_kohyas_caches_without_mirrored_latents_are_refused_before_training_where_those_are_wanted(
    tmp_path: Path,
) -> None:
    found = index.write(tmp_path / "index", [kohyas(tmp_path, 0, (300, 300), (16, 16), flipped=False)])
    (tmp_path / "latents").mkdir()
    positions = located(Catalogue.open(tmp_path / "latents"), found, rules(), PLAIN)
    feed.look_at_npz(positions, found, rules(), flip=False)
    with pytest.raises(DataError, match=r"holds no mirrored latents, which data\.cache\.flip asks for"):
        feed.look_at_npz(positions, found, rules(), flip=True)
    kohyas(tmp_path, 0, (300, 300), (16, 16))
    (tmp_path / "0000.npz").rename(tmp_path / "0000_flip.npz")
    kohyas(tmp_path, 0, (300, 300), (16, 16), flipped=False)
    feed.look_at_npz(positions, found, rules(), flip=True)  # the older kohya's file beside it has them


def test_kohyas_caches_for_other_buckets_are_refused_before_training_and_while_it_lasts(tmp_path: Path) -> None:
    rows = [kohyas(tmp_path, n, (300, 300), (16, 16) if n else (12, 20)) for n in range(2)]
    found = index.write(tmp_path / "index", rows)
    (tmp_path / "latents").mkdir()
    there = Catalogue.open(tmp_path / "latents")
    positions = located(there, found, rules(), PLAIN)
    told = r"0000\.npz holds latents of 160x96, where data.buckets gives the picture 128x128\..*data.buckets"
    with pytest.raises(DataError, match=told):
        feed.look_at_npz(positions, found, rules(), flip=False)
    with pytest.raises(DataError, match=told):
        Feed(there, positions, found).read(0, False, room(found, 0))


def test_a_cache_of_kohyas_without_mirrored_latents_is_refused_where_they_are_wanted(tmp_path: Path) -> None:
    found = index.write(tmp_path / "index", [kohyas(tmp_path, 0, (300, 300), (16, 16), flipped=False)])
    (tmp_path / "latents").mkdir()
    there = Catalogue.open(tmp_path / "latents")
    made = Feed(there, located(there, found, rules(), PLAIN), found)
    assert made.read(0, False, room(found, 0))
    with pytest.raises(DataError, match=r"0000\.npz"):
        made.read(0, True, room(found, 0))
