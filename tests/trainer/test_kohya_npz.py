"""Proves that kohya's caches are read as numpy reads them, that it can read ours, and that no bad file passes."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterft_trainer import kohya, placing
from clusterft_trainer.buckets import Bucket
from clusterft_trainer.errors import DataError
from clusterft_trainer.kohya import Cached

RANDOM = np.random.default_rng(1)


def made(height: int = 4, width: int = 6, *, flipped: bool = False, alpha: bool = False) -> Cached:
    """A cache with numbers of its own."""
    size = (width * 8 + 5, height * 8 + 3)
    shape = (4, height, width)
    return Cached(
        RANDOM.standard_normal(shape, np.float32),
        size,
        placing.letterbox(size, Bucket(width * 8, height * 8)),
        RANDOM.standard_normal(shape, np.float32) if flipped else None,
        RANDOM.random((height * 8, width * 8), np.float32) if alpha else None,
    )


def saved(path: Path, **arrays: object) -> Path:
    """A file as kohya writes one, by numpy."""
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def same(one: Cached, other: Cached) -> bool:
    """Whether two caches are equal to the last bit."""
    pairs = [(one.latents, other.latents), (one.flipped, other.flipped), (one.alpha, other.alpha)]
    equal = all(a is b is None or (a is not None and np.array_equal(a, b)) for a, b in pairs)
    return equal and (one.original, one.crop) == (other.original, other.crop)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
def test_what_numpy_wrote_is_read(tmp_path: Path, flipped: bool, alpha: bool) -> None:
    cached = made(flipped=flipped, alpha=alpha)
    arrays = {
        "latents": cached.latents,
        "original_size": np.array(cached.original),
        "crop_ltrb": np.array(cached.crop),
    }
    if cached.flipped is not None:
        arrays["latents_flipped"] = cached.flipped
    if cached.alpha is not None:
        arrays["alpha_mask"] = cached.alpha
    path = saved(tmp_path / "a.npz", **arrays)
    assert same(kohya.read(path), cached)
    assert kohya.encode(cached) == path.read_bytes(), "ours is not what np.savez writes"


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 20), st.booleans(), st.booleans())
def test_numpy_reads_what_we_wrote(height: int, width: int, flipped: bool, alpha: bool) -> None:
    cached = made(height, width, flipped=flipped, alpha=alpha)
    body = kohya.encode(cached)
    with np.load(io.BytesIO(body), allow_pickle=False) as found:
        assert np.array_equal(found["latents"], cached.latents) and found["latents"].dtype == np.float32
        assert found["original_size"].tolist() == list(cached.original)
        assert found["original_size"].dtype == np.int64 and found["crop_ltrb"].dtype == np.float64
        assert found["crop_ltrb"].tolist() == list(cached.crop)
        assert ("latents_flipped" in found, "alpha_mask" in found) == (flipped, alpha)
    assert same(kohya.decode(Path("x.npz"), body), cached)
    assert body == kohya.encode(kohya.decode(Path("x.npz"), body)), "read and written back, it is another file"


def test_a_look_tells_the_same_as_reading_all(tmp_path: Path) -> None:
    cached = made(flipped=True, alpha=True)
    path = tmp_path / "dir 1_0053x0035_sdxl.npz"
    path.write_bytes(kohya.encode(cached))
    seen = kohya.look(path)
    assert (seen.original, seen.crop, seen.flipped) == (cached.original, cached.crop, True)
    assert (seen.width, seen.height) == (48, 32)


def test_compressed_and_half_precision_files_are_read_too(tmp_path: Path) -> None:
    cached = made(30, 30)
    told = {"original_size": np.array(cached.original), "crop_ltrb": np.array(cached.crop)}
    np.savez_compressed(tmp_path / "a.npz", latents=cached.latents, **told)
    assert same(kohya.read(tmp_path / "a.npz"), cached)
    assert kohya.look(tmp_path / "a.npz").width == 240
    saved(tmp_path / "b.npz", latents=cached.latents.astype(np.float16), **told)
    found = kohya.latents(tmp_path / "b.npz")
    assert found.dtype == np.float32 and np.array_equal(found, cached.latents.astype(np.float16))
    saved(tmp_path / "c.npz", latents=np.asfortranarray(cached.latents), **told)
    assert same(kohya.read(tmp_path / "c.npz"), cached)


def test_the_mirrored_latents_come_from_the_file_or_from_the_one_beside_it(tmp_path: Path) -> None:
    cached = made(flipped=True)
    (tmp_path / "a.npz").write_bytes(kohya.encode(cached))
    assert np.array_equal(kohya.latents(tmp_path / "a.npz", mirrored=True), cached.flipped)
    old, beside = made(), made()
    (tmp_path / "b.npz").write_bytes(kohya.encode(old))
    with pytest.raises(DataError, match="holds no latents_flipped"):
        kohya.latents(tmp_path / "b.npz", mirrored=True)
    (tmp_path / "b_flip.npz").write_bytes(kohya.encode(beside))
    assert np.array_equal(kohya.latents(tmp_path / "b.npz", mirrored=True), beside.latents)
    assert np.array_equal(kohya.latents(tmp_path / "b.npz"), old.latents)


def test_names_of_both_generations_are_understood() -> None:
    assert kohya.names("a b", (640, 1024)) == ("a b.npz", "a b_0640x1024_sdxl.npz")
    assert kohya.parsed("a b_0640x1024_sdxl.npz") == ("a b", (640, 1024))
    assert kohya.parsed("a_12345x0064_sdxl.npz") == ("a", (12345, 64))
    assert kohya.parsed("a_sdxl.npz") == ("a_sdxl", None)
    assert kohya.parsed("1.5.npz") == ("1.5", None)
    for other in ("a_te_outputs.npz", "a_flip.npz", "a.png", "npz"):
        assert kohya.parsed(other) is None


def test_the_identity_follows_the_picture_and_its_latents_and_not_the_folder(tmp_path: Path) -> None:
    cached = made()
    (tmp_path / "x").mkdir()
    for name in ("a.npz", "x/a.npz", "x/a_0053x0035_sdxl.npz", "b.npz"):
        (tmp_path / name).write_bytes(kohya.encode(cached))
    first, moved, renamed, other = (
        kohya.look(tmp_path / n).identity for n in ("a.npz", "x/a.npz", "x/a_0053x0035_sdxl.npz", "b.npz")
    )
    assert first == moved == renamed and len(first) == 16
    assert other != first
    (tmp_path / "a.npz").write_bytes(kohya.encode(made()))
    assert kohya.look(tmp_path / "a.npz").identity != first


@pytest.mark.parametrize(
    ("size", "bucket", "expected"),
    [
        ((1000, 1000), (1024, 1024), (0, 0, 1024, 1024)),
        ((1920, 1080), (1024, 576), (0, 0, 1024, 576)),
        ((500, 1000), (704, 1024), (96, 0, 608, 1024)),
        ((1000, 500), (1024, 704), (0, 96, 1024, 608)),
        ((333, 1000), (320, 1024), (0, 31, 320, 31 + 320 / 0.333)),
    ],
)
def test_the_letterbox_is_the_one_of_the_rules(
    size: tuple[int, int], bucket: tuple[int, int], expected: tuple[float, ...]
) -> None:
    assert placing.letterbox(size, Bucket(*bucket)) == pytest.approx(expected)


def good() -> bytes:
    """A file in which any byte can be spoiled."""
    return kohya.encode(made(2, 2))


GOOD = good()


@settings(max_examples=300)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_changed_byte_is_noticed_or_changes_nothing(at: int, change: int) -> None:
    body = bytearray(GOOD)
    body[at] ^= change
    whole = kohya.decode(Path("x.npz"), GOOD)
    try:
        found = kohya.decode(Path("x.npz"), bytes(body))
    except DataError as error:
        assert "x.npz" in error.message and error.remedy
        return
    assert same(found, whole)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> tuple[kohya.Reader, Path]:
    """One that knows the layout of good files, and a file for it."""
    path = tmp_path_factory.mktemp("reader") / "x.npz"
    made = kohya.Reader()
    for _ in range(3):
        path.write_bytes(GOOD)
        assert same(made.read(str(path)), kohya.decode(path, GOOD))
    return made, path


@settings(max_examples=300)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_reader_that_knows_the_layout_notices_as_much(
    reader: tuple[kohya.Reader, Path], at: int, change: int
) -> None:
    body = bytearray(GOOD)
    body[at] ^= change
    reader[1].write_bytes(body)
    try:
        found = reader[0].read(str(reader[1]))
    except DataError as error:
        assert "x.npz" in error.message
        with pytest.raises(DataError):
            kohya.decode(reader[1], bytes(body))
        return
    assert same(found, kohya.decode(reader[1], bytes(body)))


def test_a_reader_reads_files_of_one_length_and_many_layouts(tmp_path: Path) -> None:
    made_of = [made(4, 6), made(6, 4), made(4, 6, flipped=True), made(9, 300), made(4, 6)]
    found = kohya.Reader()
    for number, one in enumerate(made_of * 2):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(kohya.encode(one))
        assert same(found.read(str(path)), one)
    (tmp_path / "large.npz").write_bytes(kohya.encode(made(300, 300)))  # more than it has room for at first
    assert found.read(str(tmp_path / "large.npz")).latents.shape == (4, 300, 300)
    told = {"original_size": np.array([53, 35]), "crop_ltrb": np.zeros(4)}
    np.savez_compressed(tmp_path / "packed.npz", latents=made_of[0].latents, **told)
    for _ in range(2):
        assert np.array_equal(found.read(str(tmp_path / "packed.npz")).latents, made_of[0].latents)


@given(st.integers(0, len(GOOD) - 1))
def test_a_file_that_lost_its_tail_is_refused(length: int) -> None:
    with pytest.raises(DataError, match=r"x\.npz"):
        kohya.decode(Path("x.npz"), GOOD[:length])


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, len(GOOD)), st.integers(0, 200))
def test_no_bytes_at_all_raise_anything_but_a_named_error(junk: bytes, at: int, over: int) -> None:
    try:
        kohya.decode(Path("x.npz"), GOOD[:at] + junk + GOOD[at + over :])
    except DataError as error:
        assert "x.npz" in error.message


def wrong(**changes: object) -> dict[str, object]:
    """Arrays of a good cache but for some."""
    cached = made()
    body: dict[str, object] = {
        "latents": cached.latents,
        "original_size": np.array([53, 35]),
        "crop_ltrb": np.array([0.0, 0, 1, 1]),
    }
    return {name: value for name, value in (body | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        (wrong(latents=np.zeros((3, 4, 4), np.float32)), "shape"),
        (wrong(latents=np.zeros((4, 4), np.float32)), "shape"),
        (wrong(latents=np.zeros((4, 0, 4), np.float32)), "shape"),
        (wrong(latents=np.zeros((4, 4, 4), np.int64)), "int64"),
        (wrong(latents=np.array([{"a": 1}], dtype=object)), "kind that is not read"),
        (wrong(latents=None), "holds no latents"),
        (wrong(original_size=None), "holds no original_size"),
        (wrong(original_size=np.array([0, 4])), "no width and height"),
        (wrong(original_size=np.array([np.nan, 4])), "no width and height"),
        (wrong(original_size=np.array([4, np.nan])), "no width and height"),
        (wrong(original_size=np.array([4.5, 4])), "no width and height"),
        (wrong(original_size=np.array(4)), "no width and height"),
        (wrong(original_size=np.array([1, 2, 3])), "no width and height"),
        (wrong(crop_ltrb=np.array([1.0, 2])), "not four numbers"),
        (wrong(crop_ltrb=np.array([1.0, 2, 3, np.inf])), "not four numbers"),
        (wrong(latents_flipped=np.zeros((4, 1, 1), np.float32)), "mirrored"),
        ({"arr_0": np.zeros((4, 4, 4), np.float32)}, "oldest kind"),
    ],
)
def test_arrays_that_are_no_cache_are_refused_with_the_reason(
    tmp_path: Path, arrays: dict[str, object], why: str
) -> None:
    path = saved(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=why):
        kohya.read(path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "owned",))

    path = saved(tmp_path / "a.npz", **wrong(original_size=np.array([Evil(), 1], dtype=object)))
    for reader in (kohya.read, kohya.look, kohya.latents):
        if reader is kohya.latents:
            reader(path)  # the array in question is not touched
            continue
        with pytest.raises(DataError):
            reader(path)
    assert not (tmp_path / "owned").exists()


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("latents.npy", bytes(1 << 22))
    body = bytearray(path.read_bytes())
    at = body.rindex(b"PK\x01\x02")
    struct.pack_into("<L", body, at + 24, 1 << 31)  # what it says it holds
    path.write_bytes(body)
    with pytest.raises(DataError, match="lies outside"):
        kohya.read(path)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    for reader in (kohya.read, kohya.look, kohya.latents):
        with pytest.raises(DataError, match="gone"):
            reader(tmp_path / "gone.npz")


def test_text_states_are_read_only_when_their_pooled_ones_are_asked_for(tmp_path: Path) -> None:
    states = kohya.States(
        RANDOM.standard_normal((77, 768), np.float32),
        RANDOM.standard_normal((77, 1280), np.float32),
        RANDOM.standard_normal(1280, np.float32),
    )
    path = tmp_path / "a_te_outputs.npz"
    path.write_bytes(kohya.encode_text(states))
    with pytest.raises(DataError, match="pooled"):
        kohya.read_text(path)
    found = kohya.read_text(path, pooled=True)
    assert np.array_equal(found.one, states.one) and np.array_equal(found.two, states.two)
    assert np.array_equal(found.pooled, states.pooled)
    with np.load(path, allow_pickle=False) as loaded:
        assert sorted(loaded) == ["hidden_state1", "hidden_state2", "pool2"]
