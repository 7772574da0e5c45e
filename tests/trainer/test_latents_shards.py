"""Proves that a cached entry is found by what it is, read as it was written, and refused where it is damaged."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterft_trainer.buckets import Bucket, Fit
from clusterft_trainer.errors import DataError
from clusterft_trainer.latents import key, shard, tables
from clusterft_trainer.latents.catalogue import Catalogue
from clusterft_trainer.latents.key import Recipe, TextRecipe

pytestmark = pytest.mark.trainer
RECIPE = Recipe("vae", "float32", "mean", False, 0)


def _entries(count: int, form: shard.Form, seed: int = 0) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    source = np.random.default_rng(seed)
    keys = source.integers(0, 256, (count, 16), np.uint8)
    return keys, [[source.standard_normal(a.shape, np.float32) for a in form.arrays] for _ in range(count)]


def _saved(
    folder: Path, form: shard.Form, count: int = 5, seed: int = 0
) -> tuple[Path, np.ndarray, list[np.ndarray]]:
    keys, values = _entries(count, form, seed)
    path = shard.save(folder, form, keys, [shard.payload(form, each) for each in values])
    return path, keys, [each[0] for each in values]


def _form(recipe: Recipe = RECIPE, codec: shard.Codec = "none", side: int = 64) -> shard.Form:
    return shard.latent_form(recipe, (4, side // 8, side // 8), (side, side), codec)


def test_a_key_changes_with_all_that_decides_an_entry_and_with_nothing_else() -> None:
    picture, bucket, fit = b"p" * 16, Bucket(64, 128), Fit(64, 130, 0, 1)
    whole = key.entry_key(picture, bucket, fit, RECIPE)
    others = [
        key.entry_key(b"q" * 16, bucket, fit, RECIPE),
        key.entry_key(picture, Bucket(128, 64), fit, RECIPE),
        key.entry_key(picture, bucket, Fit(64, 130, 0, 2), RECIPE),
        *(
            key.entry_key(picture, bucket, fit, Recipe(*changed))
            for changed in (
                ("other", "float32", "mean", False, 0),
                ("vae", "bfloat16", "mean", False, 0),
                ("vae", "float32", "sample", False, 0),
                ("vae", "float32", "mean", True, 0),
                ("vae", "float32", "mean", False, 1),
            )
        ),
    ]
    assert len({whole, *others}) == 9
    assert whole == key.entry_key(picture, bucket, fit, Recipe("vae", "float32", "mean", False, 0))


def test_keys_are_the_same_in_every_version() -> None:
    made = key.entry_key(bytes(range(16)), Bucket(832, 1216), Fit(832, 1250, 0, 17), RECIPE)
    assert made.hex() == "77a6162adf2a6c60e3a173623d36f5fb"
    assert RECIPE.digest() == "55667e464c5a813e"


def test_many_keys_at_once_are_those_of_each_and_none_for_no_picture() -> None:
    hashes = np.arange(48, dtype=np.uint8).reshape(3, 16)
    hashes[1] = 0
    fits = np.array([[64, 70, 0, 3], [64, 64, 0, 0], [90, 64, 13, 0]])
    found = key.entry_keys(hashes, np.array([[64, 64]] * 3), fits, RECIPE)
    assert found[0].tobytes() == key.entry_key(hashes[0].tobytes(), Bucket(64, 64), Fit(64, 70, 0, 3), RECIPE)
    assert found[2].tobytes() == key.entry_key(hashes[2].tobytes(), Bucket(64, 64), Fit(90, 64, 13, 0), RECIPE)
    assert not found[1].any()


@given(st.lists(st.text(max_size=20), max_size=8))
def test_text_keys_are_those_of_each(captions: list[str]) -> None:
    recipe = TextRecipe("clip", "bfloat16", 75)
    found = key.text_keys(captions, recipe)
    assert [row.tobytes() for row in found] == [key.text_key(c, recipe) for c in captions]


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"kind":"text"}', RECIPE.to_json().replace("false", 'false,"more":1')]
)
def test_a_recipe_of_another_kind_or_version_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="cannot read"):
        Recipe.from_json(text)


@settings(deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_bfloat16_is_rounded_as_torch_rounds_it(numbers: list[float]) -> None:
    torch = pytest.importorskip("torch")
    values = np.array(numbers, np.float32)
    ours = shard.from_bfloat16(shard.to_bfloat16(values))
    theirs = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_read_by_us_and_by_safetensors(tmp_path: Path, codec: shard.Codec, dtype: str) -> None:
    form = _form(Recipe("vae", dtype, "mean", True, 0), codec)  # type: ignore[arg-type]
    path, keys, values = _saved(tmp_path, form)
    found = Catalogue.open(tmp_path, form.recipe)
    for place, value in zip(found.locate(keys), values, strict=True):
        exact = shard.from_bfloat16(shard.to_bfloat16(value)) if dtype == "bfloat16" else value
        np.testing.assert_array_equal(found.read(int(place), check=True), exact)
        room = np.empty(form.size, np.uint8)
        found.into(int(place), room, check=True)
        assert room.tobytes() == found.read(int(place), as_stored=True).tobytes()
        assert found.read(int(place)).shape == (2, 4, 8, 8)
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        assert set(file.keys()) == {"keys", "offsets", "sums", "data"}
        np.testing.assert_array_equal(file.get_tensor("keys"), keys)
        assert json.loads(file.metadata()["recipe"])["vae"] == "vae"
        assert file.metadata()["width"] == "64"


def test_text_states_are_several_arrays_of_one_entry(tmp_path: Path) -> None:
    form = shard.text_form(TextRecipe("clip", "float32", 75), (8, 12, 6))
    keys, values = _entries(3, form)
    shard.save(tmp_path, form, keys, [shard.payload(form, each) for each in values])
    found = Catalogue.open(tmp_path)
    arrays = found.arrays(int(found.locate(keys[1:2])[0]), check=True)
    assert {n: a.shape for n, a in arrays.items()} == {
        "hidden_state1": (77, 8),
        "hidden_state2": (77, 12),
        "pool2": (6,),
    }
    for array, value in zip(arrays.values(), values[1], strict=True):
        np.testing.assert_array_equal(array, value)


def test_the_same_entries_give_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        made.append(_saved(folder, _form())[0])
    assert made[0].name == made[1].name
    assert made[0].read_bytes() == made[1].read_bytes()


def test_the_first_of_two_shards_of_one_name_stays(tmp_path: Path) -> None:
    path, keys, _ = _saved(tmp_path, _form())
    before = path.stat().st_ino
    form = _form()
    shard.save(tmp_path, form, keys, [shard.payload(form, v) for v in _entries(5, form, 9)[1]])
    assert path.stat().st_ino == before
    assert os.listdir(tmp_path) == [path.name]


def _cut(body: bytes) -> bytes:
    return body[:-1]


def _cut_in_header(body: bytes) -> bytes:
    return body[:100]


def _longer(body: bytes) -> bytes:
    return body + b"\0"


def _keys_changed(body: bytes) -> bytes:
    at = len(body) - 5 * 1024 - 3  # in the table of keys, right before the data
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def _other_schema(body: bytes) -> bytes:
    return body.replace(b'"schema":"1"', b'"schema":"7"')


def _larger_shape(body: bytes) -> bytes:
    return body.replace(b"[4,8,8]", b"[4,9,9]")


def _endless_shape(body: bytes) -> bytes:
    return body.replace(b'"keys":{"dtype":"U8","shape":[5,16]', b'"keys":{"dtype":"U8","shape":[9,16]')


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (_cut, "lost its tail"),
        (_cut_in_header, "lost its tail"),
        (lambda body: b"", "empty"),
        (lambda body: b"\xff" * 400, "does not begin"),
        (_longer, "accounts for"),
        (_keys_changed, "checksum of its tables"),
        (_other_schema, "schema 7"),
        (_larger_shape, "another length than their arrays"),
        (_endless_shape, "header cannot be read"),
    ],
)
def test_a_shard_that_is_not_whole_is_refused_by_name(tmp_path: Path, harm: object, told: str) -> None:
    path = _saved(tmp_path, _form())[0]
    path.write_bytes(harm(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=told) as raised:
        Catalogue.open(tmp_path)
    assert path.name in str(raised.value)


def test_a_changed_entry_is_found_by_its_checksum(tmp_path: Path) -> None:
    path, keys, _ = _saved(tmp_path, _form())
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    found = Catalogue.open(tmp_path)
    places = found.locate(keys)
    found.read(int(places[3]), check=True)
    with pytest.raises(DataError, match="checksum of entry 4"):
        found.read(int(places[4]), check=True)


def test_a_shard_cut_off_after_it_was_opened_is_told_and_kills_nobody(tmp_path: Path) -> None:
    path, keys, _ = _saved(tmp_path, _form())
    found = Catalogue.open(tmp_path)
    place = int(found.locate(keys)[4])
    found.read(place)
    os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(DataError, match="lost its tail"):
        found.read(place)
    with pytest.raises(DataError, match="lost its tail"):
        found.into(place, np.empty(1024, np.uint8))


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path, _form())
    with pytest.raises(DataError, match="another recipe"):
        Catalogue.open(tmp_path, Recipe("other", "float32", "mean", False, 0).to_json())
    _saved(tmp_path, _form(Recipe("other", "float32", "mean", False, 0)), seed=1)
    with pytest.raises(DataError, match="another recipe"):
        Catalogue.open(tmp_path)


def test_the_catalogue_finds_exactly_what_the_shards_hold(tmp_path: Path) -> None:
    known = [
        _saved(tmp_path, _form(side=side), count, seed)[1]
        for seed, (side, count) in enumerate([(64, 7), (32, 300)])
    ]
    strangers = np.random.default_rng(99).integers(0, 256, (50, 16), np.uint8)
    near = known[0].copy()
    near[:, 15] ^= 1  # shares the first half
    found = Catalogue.open(tmp_path)
    assert len(found) == 307
    assert (found.locate(np.concatenate([strangers, near])) == -1).all()
    for keys in known:
        places = found.locate(keys)
        assert (places >= 0).all()
        for place, one in zip(places.tolist(), keys, strict=True):
            path, slot = found.file(place)
            assert shard.Shard(path).tables()[2][slot].tobytes() == one.tobytes()


def test_keys_that_share_their_first_half_are_told_apart(tmp_path: Path) -> None:
    form = _form()
    keys, values = _entries(4, form)
    keys[:, :8] = 7
    shard.save(tmp_path, form, keys, [shard.payload(form, each) for each in values])
    found = Catalogue.open(tmp_path)
    for place, each in zip(found.locate(keys).tolist(), values, strict=True):
        np.testing.assert_array_equal(found.read(place), each[0])


def test_an_entry_of_two_shards_is_read_from_the_first(tmp_path: Path) -> None:
    form = _form()
    keys, values = _entries(4, form)
    for count in (2, 4):
        shard.save(tmp_path, form, keys[:count], [shard.payload(form, each) for each in values[:count]])
    found = Catalogue.open(tmp_path)
    assert len(found) == 4
    first = sorted(os.listdir(tmp_path))[0]
    assert {found.file(p)[0].name for p in found.locate(keys[:2]).tolist()} <= {first} | set(found.shards)
    assert [found.read(p).tobytes() for p in found.locate(keys).tolist()] == [v[0].tobytes() for v in values]


def test_a_new_shard_and_a_lost_one_are_noticed(tmp_path: Path) -> None:
    assert len(Catalogue.open(tmp_path)) == 0
    path, keys, _ = _saved(tmp_path, _form())
    assert len(Catalogue.open(tmp_path)) == 5
    made = (tmp_path / "catalogue.table").stat().st_ino
    Catalogue.open(tmp_path)
    assert (tmp_path / "catalogue.table").stat().st_ino == made, "it was made again without need"
    path.unlink()
    assert (Catalogue.open(tmp_path).locate(keys) == -1).all()


def test_a_broken_catalogue_is_made_again(tmp_path: Path) -> None:
    _, keys, _ = _saved(tmp_path, _form())
    Catalogue.open(tmp_path)
    os.truncate(tmp_path / "catalogue.table", 200)
    assert (Catalogue.open(tmp_path).locate(keys) >= 0).all()


def test_many_may_make_the_catalogue_at_once(tmp_path: Path) -> None:
    _, keys, _ = _saved(tmp_path, _form(), 200)
    outcomes: list[bool] = []

    def look() -> None:
        for _ in range(10):
            (tmp_path / "catalogue.table").unlink(missing_ok=True)
            outcomes.append(bool((Catalogue.open(tmp_path).locate(keys) >= 0).all()))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [True] * 40


def test_more_shards_than_may_be_open_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clusterft_trainer.latents import catalogue

    monkeypatch.setattr(catalogue, "OPEN", 2)
    known = [_saved(tmp_path, _form(), 2, seed)[1:] for seed in range(6)]
    before = len(os.listdir("/proc/self/fd"))
    found = Catalogue.open(tmp_path)
    for _ in range(2):
        for keys, values in known:
            for place, value in zip(found.locate(keys).tolist(), values, strict=True):
                np.testing.assert_array_equal(found.read(place), value)
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_tables_refuse_what_was_announced_otherwise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="announced"):
        tables.write(tmp_path / "t", [tables.Part("data", "U8", (5,), [b"abc"])], {})
    assert os.listdir(tmp_path) == []
