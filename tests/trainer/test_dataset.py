"""Proves what a micro-batch says of its pictures: captions, size numbers, pixels."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from PIL import Image  # noqa: E402

from clusterft_trainer import buckets, captions, config, dataset, objective, placing  # noqa: E402
from clusterft_trainer.buckets import Slot  # noqa: E402
from clusterft_trainer.corpus import index  # noqa: E402
from clusterft_trainer.corpus.index import Index, Row  # noqa: E402
from clusterft_trainer.dataset import Split  # noqa: E402

pytestmark = pytest.mark.trainer
CAPTION = "one, two, three, four"


def row(path: Path, source: int = 0, caption: str = CAPTION, size: tuple[int, int] | None = None) -> Row:
    """A picture's row; the picture need not be there if its size is given."""
    width, height = size or Image.open(path).size
    return Row(source, path.name, str(path), -1, 0, b"", width, height, caption, None, "")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Two pictures of one bucket: red above and blue below, larger and smaller than it."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for name, (width, height) in {"large": (700, 300), "small": (70, 30)}.items():
        image = Image.new("RGB", (width, height), "blue")
        image.paste("red", (0, 0, width, height // 2))
        image.save(folder / f"{name}.png")
        rows.append(row(folder / f"{name}.png"))
    return index.write(folder / "index", rows)


def many(folder: Path, counts: list[int]) -> Index:
    """So many pictures of each source, in three buckets; there are no files."""
    sizes = [(64, 64), (64, 128), (128, 64)]
    rows = [
        row(Path(f"/p/{n:04d}.png"), source, f"s{source} n{n}", sizes[n % 3])
        for source, count in enumerate(counts)
        for n in range(count)
    ]
    return index.write(folder, rows)


def pictures(found: Index, seed: int = 3, split: Split | None = None, **data: Any) -> dataset.Pictures:
    """The pictures under some settings."""
    body: dict[str, Any] = {"sources": [{"folder": "unused"}], "resolution": 512}
    return dataset.Pictures(found, config.Data.model_validate(body | data), seed, split)


def batch(made: dataset.Pictures, epoch: int = 0, known: bool = True) -> dataset.Batch:
    """Both pictures, the second only to fill up."""
    return made.batch([Slot(0, 1), Slot(1, 0)], epoch, lambda _: known)


def test_size_numbers_are_float32_and_tell_the_true_crop(found: Index) -> None:
    made = batch(pictures(found))
    assert (made.bucket.width, made.bucket.height) == (512, 192)
    assert made.time_ids.dtype == torch.float32
    # 300 -> 192 high is 448 wide, less than 512: scaled to the width instead, 219 high, 13 cut above
    assert made.time_ids.tolist() == [[300, 700, 13, 0, 192, 512], [30, 70, 13, 0, 192, 512]]


def test_size_numbers_tell_kohyas_offset_if_asked(found: Index) -> None:
    made = batch(pictures(found, crop_ids="kohya"))
    # 192 high is 448 wide; half of the 64 left over
    assert made.time_ids.tolist() == [[300, 700, 0, 32, 192, 512], [30, 70, 0, 32, 192, 512]]


def test_the_crop_that_is_told_is_the_crop_of_the_pixels(found: Index) -> None:
    made = batch(pictures(found), known=False)
    assert made.pixels is not None and made.pixels.shape == (2, 3, 192, 512)
    # the border between the colours lies in the middle of the 219 rows, 13 of them cut off
    for picture, slack in zip(made.pixels, (1, 5), strict=True):  # enlarged edges are soft
        blue = (picture[2, :, 256] > 127).int()
        assert abs(int(blue.argmax()) - (219 // 2 - 13)) <= slack


def test_pixels_that_are_known_are_not_decoded(found: Index) -> None:
    made = batch(pictures(found))
    assert made.pixels is None
    assert made.weights.tolist() == [1.0, 0.0] and made.indices == [0, 1]


class Stored:
    """Latents that tell which row they are of, and which way round; some rows have none."""

    def __init__(self, absent: set[int]) -> None:
        self.absent = absent

    def read(self, row: int, mirrored: bool, out: np.ndarray) -> bool:
        if row in self.absent:
            return False
        out[:] = row + (0.5 if mirrored else 0)
        return True


def test_cached_latents_come_with_the_batch_and_only_what_is_missing_is_decoded(found: Index) -> None:
    made = pictures(found)
    made.latents = Stored(set())
    whole = batch(made, known=False)
    assert whole.pixels is None and whole.places == ()
    assert whole.latents is not None and whole.latents.dtype == torch.float32
    assert whole.latents.shape == (2, 4, 24, 64) and whole.latents[:, 0, 0, 0].tolist() == [0, 1]
    made.latents = Stored({1})
    part = batch(made, known=False)
    assert part.places == (1,) and part.pixels is not None and part.pixels.shape == (1, 3, 192, 512)
    assert part.latents is not None and part.latents[0, 0, 0, 0] == 0
    assert batch(made, known=True).pixels is None
    made.latents = Stored({0, 1})
    none = batch(made, known=False)
    assert none.latents is None and none.places == (0, 1)


def test_a_coin_for_each_sample_and_epoch_mirrors_pixels_crop_and_latents(tmp_path: Path) -> None:
    image = Image.new("RGB", (701, 300), "blue")
    image.paste("red", (0, 0, 300, 300))
    image.save(tmp_path / "p.png")
    one = index.write(tmp_path / "index", [row(tmp_path / "p.png")])
    made = pictures(one, cache={"flip": True}, buckets={"sizes": ["256x256"]})
    made.latents = Stored(set())
    sides = []
    for epoch in range(40):
        of = made.batch([Slot(0, 1)], epoch, lambda _: False)
        assert of.latents is not None
        turned = bool(of.latents.mean() == 0.5)
        assert turned == bool(objective.key(3, epoch, 0, "flip") % 2) and of.keys == [int(turned)]
        # 598 wide: 171 cut off on the left, 171 on the right
        assert of.time_ids.tolist() == [[300, 701, 0, 171, 256, 256]]
        sides.append(turned)
        assert not made.batch([Slot(0, 1)], epoch, lambda _: False, plain=True).latents.any()  # type: ignore[union-attr]
    assert 8 < sum(sides) < 32
    straight, mirrored = sides.index(False), sides.index(True)
    made.latents = None
    pixels = [made.batch([Slot(0, 1)], e, lambda _: False).pixels for e in (straight, mirrored)]
    assert pixels[0] is not None and pixels[1] is not None
    assert torch.equal(pixels[0].flip(-1), pixels[1]) and not torch.equal(pixels[0], pixels[1])
    assert not pictures(one)._flip, "without a setting nothing is mirrored"


@pytest.mark.parametrize(
    ("size", "left", "turned"), [((703, 300), 86, 86), ((700, 301), 0, 0), ((700, 295), 0, 1)]
)
def test_the_left_edge_that_is_told_of_a_mirrored_picture(
    tmp_path: Path, size: tuple[int, int], left: int, turned: int
) -> None:
    # resized to cover 512x256, centred, with an odd pixel on the right
    bucket, fit = buckets.Bucket(512, 256), buckets.fit(*size, buckets.Bucket(512, 256))
    one = index.write(tmp_path / "index", [row(Path("/p.png"), size=size)])
    made = pictures(one, cache={"flip": True}, buckets={"sizes": ["512x256"]})
    over = fit.resized_width - 512
    assert made._time_ids(0, fit, False, bucket)[3] == fit.left == over // 2
    assert made._time_ids(0, fit, True, bucket)[3] == over - over // 2


def test_kohyas_left_edge_of_a_mirrored_picture_is_its_right_one_from_the_other_side(tmp_path: Path) -> None:
    size, bucket = (600, 401), buckets.Bucket(512, 256)
    one = index.write(tmp_path / "index", [row(Path("/p.png"), size=size)])
    made = pictures(one, crop_ids="kohya", cache={"flip": True}, buckets={"sizes": ["512x256"]})
    fit = buckets.fit(*size, bucket)
    shown = 256 * (600 / 401)  # 383.04 wide in a bucket of 512
    assert made._time_ids(0, fit, False, bucket) == [401, 600, 0, 64, 256, 512]
    assert made._time_ids(0, fit, True, bucket) == pytest.approx([401, 600, 0, 512 - (64 + shown), 256, 512])


def test_repeats_make_samples_of_their_own_of_a_picture(tmp_path: Path) -> None:
    sources = [{"folder": "a", "repeats": 1}, {"folder": "b", "repeats": 3}, {"folder": "c", "repeats": 2}]
    made = pictures(many(tmp_path, [4, 2, 3]), sources=sources)
    assert [made.row(i) for i in range(len(made))] == [0, 1, 2, 3, *([4, 5] * 3), *([6, 7, 8] * 2)]
    assert made.trained == len(made) == len(made.assigned) == 16
    assert all(made.table[n] == made.bucket(i) for i, n in enumerate(made.assigned))
    again = made.batch([Slot(4, 1), Slot(6, 1)], 0, lambda _: True)
    assert again.indices == [4, 6] and again.keys[0] == again.keys[1], "one picture, two samples"


def test_held_out_samples_follow_and_occur_once(tmp_path: Path) -> None:
    sources = [{"folder": "a", "repeats": 2}, {"folder": "b", "repeats": 1}]
    split = Split(np.array([0, 2, 3, 5], np.int32), np.array([1, 4], np.int32))
    made = pictures(many(tmp_path, [4, 2]), split=split, sources=sources)
    assert [made.row(i) for i in range(len(made))] == [0, 2, 3, 0, 2, 3, 5, 1, 4]
    assert (made.trained, len(made.assigned)) == (7, 7)


def test_without_repeats_a_sample_is_its_row(tmp_path: Path) -> None:
    made = pictures(many(tmp_path, [4, 2]), sources=[{"folder": "a"}, {"folder": "b"}])
    assert [made.row(i) for i in range(6)] == list(range(6))
    assert made.usual_size() == (64, 64)
    assert len(made.used) == 3


def test_work_is_in_order_and_made_by_threads_some_steps_ahead(tmp_path: Path) -> None:
    made = pictures(many(tmp_path, [40]))
    made.latents = Stored(set())
    threads = set()
    real = made.batch

    def noted(*args: Any, **options: Any) -> dataset.Batch:
        threads.add(threading.get_ident())
        return real(*args, **options)

    made.batch = noted  # type: ignore[method-assign]
    shape = buckets.Shape(2, 2, 2)
    epochs = buckets.Epochs(made.assigned, 3, shape)
    work = list(dataset.stream(made, epochs, shape, 1, lambda _: False)(buckets.Position(), 11, 0))
    expected = [next(walk) for walk in [epochs.walk(buckets.Position())] for _ in range(11)]
    assert [(w.position, w.real) for w in work] == [(at, len(b)) for at, b in expected]
    for one, (_, whole) in zip(work, expected, strict=True):
        shares = buckets.share(whole, shape, 1)
        assert [m.indices for m in one.micro] == [[s.index for s in slots] for slots in shares]
    assert threading.get_ident() not in threads


def test_captions_are_settled_by_seed_epoch_and_sample(found: Index) -> None:
    settings = {"shuffle": True, "keep": 1, "tag_dropout": 0.2, "dropout": 0.1}
    made = pictures(found, captions=settings)
    seen = set()
    for epoch in range(20):
        told = batch(made, epoch).captions
        for sample in range(2):
            number = objective.key(3, epoch, sample, "caption")
            assert told[sample] == captions.settle(CAPTION, config.Captions.model_validate(settings), number)
        seen |= set(told)
    assert "" in seen and len(seen) > 10
    assert batch(made, 4).captions == batch(made, 4).captions
    other = pictures(found, seed=4, captions=settings)
    assert [batch(made, e).captions for e in range(9)] != [batch(other, e).captions for e in range(9)]


def test_a_caption_is_left_alone_by_default(found: Index) -> None:
    assert batch(pictures(found)).captions == [CAPTION, CAPTION]


def test_held_out_pictures_keep_their_captions_whole(found: Index) -> None:
    made = pictures(found, captions={"shuffle": True, "dropout": 1.0})
    assert made.batch([Slot(0, 1)], 0, lambda _: True, plain=True).captions == [CAPTION]
    assert made.batch([Slot(0, 1)], 0, lambda _: True).captions == [""]


def test_captions_that_grow_are_told_the_step_that_they_are_for(tmp_path: Path) -> None:
    settings = {"warmup": {"steps": 10, "least": 1}, "shuffle": True}
    rows = [row(Path(f"/p/{n}.png"), size=(64, 64), caption="a, b, c, d, e, f") for n in range(20)]
    made = pictures(index.write(tmp_path / "index", rows), captions=settings)
    made.latents = Stored(set())
    shape = buckets.Shape(2, 1, 1)
    epochs = buckets.Epochs(made.assigned, 3, shape)
    counts = []
    for done in (0, 4, 50):
        for number, work in enumerate(
            dataset.stream(made, epochs, shape, 0, lambda _: False)(buckets.Position(0, done % 10), 3, done)
        ):
            for sample, told in zip(work.micro[0].indices, work.micro[0].captions, strict=True):
                drawn = objective.key(3, 0, sample, "caption")
                known = captions.settle(rows[0].caption, made._data.captions, drawn, step=done + number)
                assert told == known
                counts.append(len(told.split(", ")))
    assert counts[0] == 1 and counts == sorted(counts) and counts[-1] == 6


def test_pictures_that_keep_their_size_lie_where_the_rules_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "_ROWS", 3)
    sizes = [(100, 100), (300, 200), (64, 900), (70, 130), (100, 101), (2000, 1000), (300, 200)]
    rows = [row(Path(f"/p/{n}.png"), size=size) for n, size in enumerate(sizes)]
    made = pictures(index.write(tmp_path / "index", rows), buckets={"upscale": False})
    assert list(made.table) == sorted(made.table)
    for n, size in enumerate(sizes):
        bucket, fit = placing.place(*size, made._by)
        assert made.bucket(n) == bucket and made._fits([n], bucket) == [fit]
    assert {made.table[n] for n in made.assigned} == set(made.table) == set(made.used)
